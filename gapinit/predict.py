"""Stage `predict`: captions and answers for an evaluation split, from cached image features.

The vision part is frozen, so an image's features are the same for every run: they are computed
once for each backbone and split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, sha256, write_json
from gapinit.backbones import load_backbone
from gapinit.backbones.inputs import Images
from gapinit.backbones.prompts import sample_prompt
from gapinit.data.images import image_size, load_image
from gapinit.data.manifest import Manifest, read_manifest, require_images
from gapinit.data.references import write_lines
from gapinit.errors import GapinitError
from gapinit.plan import VERSIONS
from gapinit.progress import track
from gapinit.ragged import require_offsets, require_rows
from gapinit.states import backbone_digest
from gapinit.stored import as_tensor, memory_map, stored_type, to_stored

if TYPE_CHECKING:
    from gapinit.backbones.base import Backbone
    from gapinit.data.manifest import Sample


@torch.inference_mode()
def extract_features(
    backbone: Path,
    manifest: Path,
    output: Path,
    *,
    split: str = "test",
    batch_size: int = 64,
    device: str = "cpu",
) -> None:
    """Write the image tokens of a split in the language model's space (kind "features").

    The file holds `features` (tokens of all images, d), `counts` (images,), `grid` (images, k) and
    `image`, the names. An image about which several questions are asked stands there once.
    """
    data = read_manifest(manifest)
    images = data.images(split)
    require_images(manifest, images, data.root)
    model = load_backbone(backbone, device)
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "version": VERSIONS["predict"],
    }
    counts = np.array([model.image_tokens(*image_size(path)) for path in images])
    ends = np.cumsum(counts)
    kind = stored_type(model.model.dtype)
    with create_hdf5(output, "features", inputs) as file:
        features = file.create_dataset("features", (int(ends[-1]), model.hidden_size), dtype=kind)
        file["counts"] = counts
        file["image"] = [data.file(path) for path in images]
        grids = []
        for start in track(range(0, len(images), batch_size), "image features"):
            block = images[start : start + batch_size]
            found = model.look([load_image(path) for path in block])
            first = int(ends[start] - counts[start])
            features[first : first + len(found.tokens)] = to_stored(found.tokens, kind)
            grids.append(found.grid.cpu().numpy())
        file["grid"] = np.concatenate(grids)


def predict(
    backbone: Path,
    manifest: Path,
    features: Path,
    adapter: Path | None,
    output: Path,
    *,
    num_beams: int,
    max_new_tokens: int,
    batch_size: int,
    device: str = "cpu",
) -> None:
    """Answer every sample of the split that a feature file holds, in the benchmark's own format.

    Captions: COCO's result format. VQAv2 and OK-VQA: a list of {question_id, answer}. POPE: JSON
    lines of {question_id, category, question, answer}.

    `adapter`: a PEFT adapter folder, or None for the backbone as it is (zero-shot).
    """
    data = read_manifest(manifest)
    with open_hdf5(features, "features") as file:
        inputs = hdf5_inputs(file)
        expected = {"backbone": backbone_digest(backbone), "manifest": sha256(manifest)}
        for name, value in expected.items():
            if inputs[name] != value:
                raise GapinitError(
                    f"{features}: made from another {name}. Delete it and run `gapinit features` "
                    "again."
                )
        require_rows("features", file["features"])
        counts = file["counts"][:]
        require_offsets("counts", np.concatenate([[0], np.cumsum(counts)]), len(file["features"]))
        if not len(counts) == len(file["image"]) == len(file["grid"]):
            raise ValueError("'counts', 'image' and 'grid' are not of as many images")
        row_of = {name: row for row, name in enumerate(file["image"].asstr()[:])}
        images = Images(
            as_tensor(memory_map(features, file["features"])),
            torch.from_numpy(file["counts"][:]),
            torch.from_numpy(file["grid"][:]),
        )
    samples = data.split(inputs["split"])
    lacking = [sample.path for sample in samples if data.file(sample.path) not in row_of]
    if lacking:
        raise GapinitError(
            f"{features}: has no features of {lacking[0]}. Delete it and run `gapinit features` "
            "again."
        )
    rows = torch.tensor([row_of[data.file(sample.path)] for sample in samples])
    model = load_backbone(backbone, device)
    if adapter is not None:
        from gapinit.adapter_folder import load_adapter

        adapted = load_adapter(model, adapter).eval()
        if model.model.dtype == torch.float32:
            # This changes no output beyond rounding and saves the adapters' own products. In half
            # precision the rounding of a merged weight is as large as a rank-1 update.
            adapted.merge_and_unload()
    answers = [""] * len(samples)
    for block in track(_batches(model, samples, batch_size), data.kind):
        said = model.generate(
            images.take(rows[block]),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            prompts=[sample_prompt(model.prompts, samples[index]) for index in block],
        )
        for index, answer in zip(block, said, strict=True):
            answers[index] = answer
    _write(output, data, samples, answers)


def _batches(model: Backbone, samples: Sequence[Sample], batch_size: int) -> list[list[int]]:
    """Return batches of samples with prompts of like length, so that little padding is computed."""
    lengths = [len(sample_prompt(model.prompts, sample)) for sample in samples]
    order = sorted(range(len(samples)), key=lambda index: lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _write(output: Path, data: Manifest, samples: Sequence[Any], answers: Sequence[str]) -> None:
    pairs = list(zip(samples, answers, strict=True))
    if data.kind == "captions":
        write_json(output, [{"image_id": item.image_id, "caption": said} for item, said in pairs])
    elif data.kind == "vqa":
        write_json(
            output, [{"question_id": item.question_id, "answer": said} for item, said in pairs]
        )
    else:
        write_lines(
            output,
            [
                {
                    "question_id": item.question_id,
                    "category": item.category,
                    "question": item.text,
                    "answer": said,
                }
                for item, said in pairs
            ],
        )
