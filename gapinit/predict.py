"""Stage `predict`: captions and answers for an evaluation split, from cached image features.

The vision part is frozen, so an image's features are the same for every run: they are computed
once for each backbone and split.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, sha256, write_json
from gapinit.backbones import load_backbone
from gapinit.backbones.inputs import Images
from gapinit.backbones.prompts import sample_prompt
from gapinit.data.images import image_size, load_image
from gapinit.data.manifest import Manifest, read_manifest
from gapinit.data.references import write_lines
from gapinit.errors import GapinitError
from gapinit.plan import VERSIONS
from gapinit.progress import track
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


@dataclass(frozen=True)
class Questions:
    """What is asked: a dataset's samples, by the features of its images."""

    manifest: Path
    features: Path
    max_new_tokens: int
    """How long an answer may become."""


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
    predict_several(
        backbone,
        [Questions(manifest, features, max_new_tokens)],
        [adapter],
        [[output]],
        num_beams=num_beams,
        batch_size=batch_size,
        device=device,
    )


def predict_several(
    backbone: Path,
    questions: Sequence[Questions],
    adapters: Sequence[Path | None],
    outputs: Sequence[Sequence[Path]],
    *,
    num_beams: int,
    batch_size: int,
    device: str = "cpu",
) -> None:
    """Answer several datasets with several adapters on one backbone, which is loaded once.

    `outputs[i][j]`: where the answers of `adapters[i]` to `questions[j]` go, in the format that
    `predict` says and byte for byte what it would write. All inputs are checked before the first
    answer.
    """
    asked = [_read(backbone, one) for one in questions]
    model = load_backbone(backbone, device)
    for adapter in adapters:
        if adapter is not None:
            from gapinit.adapter_folder import require_fit

            require_fit(model, adapter)
    batches = [_batches(model, one, batch_size) for one in asked]
    for adapter, paths in zip(adapters, outputs, strict=True):
        with _adapter_on(model, adapter):
            for one, blocks, output in zip(asked, batches, paths, strict=True):
                _write(output, one.data, one.samples, _answers(model, one, blocks, num_beams))


@dataclass(frozen=True)
class _Asked:
    """Samples and the tokens of their images, read and checked."""

    data: Manifest
    samples: Sequence[Sample]
    images: Images
    rows: Tensor
    """Which image each sample is about."""
    max_new_tokens: int


def _read(backbone: Path, questions: Questions) -> _Asked:
    """Read a manifest and the features made from it; GapinitError if they were not."""
    data = read_manifest(questions.manifest)
    features = questions.features
    with open_hdf5(features, "features") as file:
        inputs = hdf5_inputs(file)
        expected = {"backbone": backbone_digest(backbone), "manifest": sha256(questions.manifest)}
        for name, value in expected.items():
            if inputs[name] != value:
                raise GapinitError(
                    f"{features}: made from another {name}. Delete it and run `gapinit features` "
                    "again."
                )
        row_of = {name: row for row, name in enumerate(file["image"].asstr()[:])}
        images = Images(
            as_tensor(memory_map(features, file["features"])),
            torch.from_numpy(file["counts"][:]),
            torch.from_numpy(file["grid"][:]),
        )
    samples = data.split(inputs["split"])
    rows = torch.tensor([row_of[data.file(sample.path)] for sample in samples])
    return _Asked(data, samples, images, rows, questions.max_new_tokens)


def _adapter_on(model: Backbone, adapter: Path | None) -> AbstractContextManager[None]:
    if adapter is None:
        return nullcontext()
    from gapinit.adapter_folder import adapter_on

    return adapter_on(model, adapter)


def _batches(model: Backbone, asked: _Asked, batch_size: int) -> list[list[int]]:
    """Return batches of samples of like length, image tokens and all: little padding is computed.

    The longest come first: what does not fit in memory fails at once.
    """
    prompts = [sample_prompt(model.prompts, sample) for sample in asked.samples]
    different = list(dict.fromkeys(prompts))
    encoded = model.encode_prompts(different, asked.max_new_tokens)
    tokens = {prompt: len(ids) for prompt, ids in zip(different, encoded, strict=True)}
    seen = model.stream_counts(asked.images.counts)[asked.rows].tolist()
    lengths = [count + tokens[prompt] for count, prompt in zip(seen, prompts, strict=True)]
    order = sorted(range(len(prompts)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _answers(
    model: Backbone, asked: _Asked, batches: Sequence[Sequence[int]], num_beams: int
) -> list[str]:
    answers = [""] * len(asked.samples)
    for block in track(batches, asked.data.kind):
        said = model.generate(
            asked.images.take(asked.rows[block]),
            max_new_tokens=asked.max_new_tokens,
            num_beams=num_beams,
            prompts=[sample_prompt(model.prompts, asked.samples[index]) for index in block],
        )
        for index, answer in zip(block, said, strict=True):
            answers[index] = answer
    return answers


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
