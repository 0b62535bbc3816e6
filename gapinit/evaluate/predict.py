"""Stage `predict`: captions and answers for an evaluation split, from cached image features.

The vision part is frozen, so image features are the same for every run: they are computed once per
backbone and split.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import torch

from gapinit.artifacts.arrays import stored_type, to_stored
from gapinit.artifacts.artifacts import create_hdf5, sha256
from gapinit.artifacts.shards import Shard, blocks_of
from gapinit.backbones import load_backbone
from gapinit.backbones.fingerprint import backbone_digest
from gapinit.backbones.generation import generate
from gapinit.backbones.prompts import sample_prompt
from gapinit.backbones.read_ahead import read_ahead
from gapinit.config.versions import VERSIONS
from gapinit.data.images import image_size
from gapinit.data.manifest import Manifest, read_manifest, require_images
from gapinit.errors import GapinitError
from gapinit.evaluate.image_features import Features, Take, look, read_features
from gapinit.evaluate.predictions import write_part, write_predictions
from gapinit.progress import track

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
    shard: str | None = None,
    device: str = "cpu",
) -> None:
    """Write the image tokens of a split in the language model's space (kind "features").

    The file holds `features` (tokens of all images, d), `counts` (images,), `grid` (images, k) and
    `image`, the names. Each image has one entry, however many questions are about it.
    `shard`: "I/N", part of the images.
    """
    data = read_manifest(manifest)
    images = data.images(split)
    part = Shard.parse(shard)
    own = images[part.of(len(images), batch_size)]
    blocks = blocks_of(len(own), batch_size)
    require_images(manifest, own, data.root)
    model = load_backbone(backbone, device)
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "batch_size": batch_size,
        "version": VERSIONS["predict"],
    }
    counts = np.array([model.image_tokens(*image_size(path)) for path in own], dtype=np.int64)
    offset = np.concatenate([[0], np.cumsum(counts)])
    kind = stored_type(model.model.dtype)
    with create_hdf5(output, "features", inputs) as file:
        part.record(file)
        file["counts"] = counts
        file["image"] = np.array([data.file(path) for path in own], dtype=h5py.string_dtype())
        file.create_dataset("features", (offset[-1], model.hidden_size), kind)
        file.create_dataset("grid", (len(own), model.grid_width), np.int64)
        for block in track(read_ahead(model, own, blocks), "image features", len(blocks)):
            found = model.seen(block.pixels, block.sizes)
            tokens = slice(offset[block.rows.start], offset[block.rows.stop])
            file["features"][tokens] = to_stored(found.tokens, kind)
            file["grid"][block.rows] = found.grid.cpu().numpy()


@dataclass(frozen=True)
class Questions:
    """A dataset to answer, with the features of its images."""

    manifest: Path
    features: Path | Sequence[Path]
    """One file, or all its shards."""
    max_new_tokens: int
    """Largest number of tokens of an answer."""


def predict(
    backbone: Path,
    manifest: Path,
    features: Path | Sequence[Path],
    adapter: Path | None,
    output: Path,
    *,
    num_beams: int,
    max_new_tokens: int,
    batch_size: int,
    device: str = "cpu",
) -> None:
    """Answer every sample of a feature file's split, in the benchmark's format.

    Captions: COCO's result format. VQAv2 and OK-VQA: a list of {question_id, answer}. POPE: JSON
    lines of {question_id, category, question, answer}.

    `adapter`: a PEFT adapter folder, or None for the untrained backbone (zero-shot).
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
    shard: str | None = None,
    device: str = "cpu",
) -> None:
    """Answer several datasets with several adapters on one backbone, which is loaded once.

    `outputs[i][j]`: the file for the answers of `adapters[i]` to `questions[j]`, byte-identical to
    that of `predict`. All inputs are checked before the first answer. `shard`: "I/N", part of the
    batches; each output is then a part, for `gapinit gather`.
    """
    part = Shard.parse(shard)
    asked = [_read(backbone, one) for one in questions]
    model = load_backbone(backbone, device)
    if any(adapters):
        from gapinit.adapters.files import adapter_on, require_fit
    for path in filter(None, adapters):
        require_fit(model, path)
    batches = [_batches(model, one, batch_size) for one in asked]
    for adapter, paths in zip(adapters, outputs, strict=True):
        with adapter_on(model, adapter) if adapter else nullcontext(False) as changes_tower:
            for one, blocks, output in zip(asked, batches, paths, strict=True):
                take: Take = one.features.take
                if changes_tower:  # the cached features come from the frozen tower
                    take = partial(look, model, one.data.root)
                # Every N-th batch: batches are sorted by length, so parts take similar time.
                own = blocks[part.index - 1 :: part.count]
                answers = _answers(model, one, take, own, num_beams)
                if part.count == 1:
                    write_predictions(output, one.data, one.samples, answers)
                    continue
                asked_of = {
                    **one.features.inputs,
                    "adapter": adapter and sha256(adapter / "adapter_model.safetensors"),
                    "decoding": [num_beams, batch_size, one.max_new_tokens],
                }
                said = {index: answers[index] for block in own for index in block}
                write_part(output, part, asked_of, said)


@dataclass(frozen=True)
class _Asked:
    """Checked samples and the features of their images."""

    data: Manifest
    samples: Sequence[Sample]
    features: Features
    names: Sequence[str]
    """The image of each sample, below the dataset's root."""
    max_new_tokens: int


def _read(backbone: Path, questions: Questions) -> _Asked:
    """Read a manifest and its features; raise GapinitError for features of other inputs."""
    data = read_manifest(questions.manifest)
    features = read_features(questions.features)
    expected = {"backbone": backbone_digest(backbone), "manifest": sha256(questions.manifest)}
    for name, value in expected.items():
        if features.inputs[name] != value:
            raise GapinitError(
                f"{features.path}: made from another {name}. Delete it and run `gapinit features` "
                "again."
            )
    samples = data.split(features.inputs["split"])
    names = [data.file(sample.path) for sample in samples]
    return _Asked(data, samples, features, names, questions.max_new_tokens)


def _batches(model: Backbone, asked: _Asked, batch_size: int) -> list[list[int]]:
    """Return batches of samples with similar length, image tokens included, to avoid padding.

    The longest come first, so that a batch that is too large for the memory fails at once.
    """
    prompts = [sample_prompt(model.prompts, sample) for sample in asked.samples]
    different = list(dict.fromkeys(prompts))
    encoded = model.encode_prompts(different, asked.max_new_tokens)
    tokens = {prompt: len(ids) for prompt, ids in zip(different, encoded, strict=True)}
    counts = torch.from_numpy(asked.features.counts_of(asked.names))
    seen = model.stream_counts(counts).tolist()
    lengths = [count + tokens[prompt] for count, prompt in zip(seen, prompts, strict=True)]
    order = sorted(range(len(prompts)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _answers(
    model: Backbone,
    asked: _Asked,
    take: Take,
    batches: Sequence[Sequence[int]],
    num_beams: int,
) -> list[str]:
    answers = [""] * len(asked.samples)
    for block in track(batches, asked.data.kind):
        said = generate(
            model,
            take([asked.names[index] for index in block]),
            max_new_tokens=asked.max_new_tokens,
            num_beams=num_beams,
            prompts=[sample_prompt(model.prompts, asked.samples[index]) for index in block],
        )
        for index, answer in zip(block, said, strict=True):
            answers[index] = answer
    return answers
