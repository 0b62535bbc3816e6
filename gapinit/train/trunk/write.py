"""Stage `trunk`: cache the outputs of the frozen layers on the training set, once for all runs.

All layers below the first adapted one are frozen: their output is the same for every seed, method,
noise level and epoch. The trunk caches the states at the input of that layer: once per image (its
tokens come first and attention is causal, so no text changes them) and once per text (a caption, a
question with its answer, a conversation). Training then runs only the layers above. The trunk's
mode says what is cached:

    layer     states at the input of the lowest adapted layer
    vision    image tokens: the lowest layer itself is adapted
    off       no states, only texts and image names: the vision tower is adapted
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch

from gapinit.artifacts.arrays import DTYPES, StoredAs, stored_type, to_stored
from gapinit.artifacts.artifacts import create_hdf5, sha256
from gapinit.artifacts.shards import WHOLE, Shard, blocks_of
from gapinit.backbones import load_backbone
from gapinit.backbones.fingerprint import backbone_digest
from gapinit.backbones.prompts import Segment, training_texts
from gapinit.backbones.read_ahead import Block, read_ahead
from gapinit.config.versions import VERSIONS
from gapinit.data.images import image_size
from gapinit.data.manifest import Manifest, read_manifest, require_images
from gapinit.errors import GapinitError
from gapinit.gap.layers import adapts_vision, read_layers
from gapinit.progress import track
from gapinit.train.trunk.modes import Mode, TrunkMode, trunk_mode
from gapinit.train.trunk.read import Trunk, read_trunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gapinit.backbones.base import Backbone

__all__ = ["Trunk", "encoded_texts", "extract_trunk", "read_trunk", "trunk_mode", "write_trunk"]

ENCODED_AT_ONCE = 4096
"""Texts tokenised at a time: lists of Python numbers need much memory."""
PACKED_TOKENS = 1024
"""Largest number of text tokens after one prefix: attention is quadratic in the length."""


@dataclass(frozen=True)
class Texts:
    """All texts of some images, concatenated, as token ids and labels (-100: none)."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    offset: NDArray[np.int64]
    """(texts + 1,): start of each text."""
    first: NDArray[np.int64]
    """(images + 1,): first text of each image."""

    def of_images(self, start: int, stop: int) -> Texts:
        """Return the texts of consecutive images."""
        first, last = self.first[start], self.first[stop]
        begin, end = self.offset[first], self.offset[last]
        return Texts(
            self.input_ids[begin:end],
            self.labels[begin:end],
            self.offset[first : last + 1] - begin,
            self.first[start : stop + 1] - first,
        )

    def groups(self) -> list[list[list[int]]]:
        """Return each image's texts as token ids."""
        ids = [
            self.input_ids[start:end].tolist()
            for start, end in zip(self.offset[:-1], self.offset[1:], strict=True)
        ]
        return [ids[start:end] for start, end in zip(self.first[:-1], self.first[1:], strict=True)]


def extract_trunk(
    backbone: Path,
    manifest: Path,
    layers: Path,
    strategy: str,
    output: Path,
    *,
    split: str = "train",
    max_tokens: int = 32,
    mode: TrunkMode = "auto",
    dtype: StoredAs = "auto",
    images_per_batch: int = 16,
    shard: str | None = None,
    device: str = "cpu",
) -> None:
    """Write the training set's states at the input of the lowest layer that `strategy` adapts.

    The file (kind "trunk") holds for all images, concatenated: `prefix` (tokens, d), the template's
    tokens in front of an image and the image's tokens; `prefix_offset` (images + 1,) and `grid`
    (images, k). For a model that reads images by cross-attention, `memory` holds the image tokens,
    with `memory_offset`. For all texts, concatenated: `input_ids`, `labels` (the next token, EOS
    last; -100: none) and, in mode "layer", `text` (tokens, d); `offset` (texts + 1,) and
    `image_row` (texts,). Mode "off" has no states, but `image`, the names below the dataset's root,
    and their `sha256`.

    `dtype`: of states on disk; "auto": the model's. `shard`: "I/N", part of the images.
    """
    first = min(read_layers(layers, strategy))
    own = trunk_mode(mode, first, vision=adapts_vision(strategy))
    part = Shard.parse(shard)
    data = read_manifest(manifest)
    named = data.images(split)
    require_images(manifest, named[part.of(len(named), images_per_batch)], data.root)
    model = load_backbone(backbone, device)
    images, texts = encoded_texts(model, data, split, max_tokens, origin=str(manifest))
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "first_layer": first if own == "layer" else 0,
        "mode": own,
        "dtype": str(_stored_kind(model, dtype)),
        "max_tokens": max_tokens,
        "images_per_batch": images_per_batch,
        "version": VERSIONS["trunk"],
    }
    write_trunk(
        model,
        images,
        texts,
        first,
        output,
        inputs,
        images_per_batch=images_per_batch,
        mode=own,
        dtype=dtype,
        shard=part,
        root=data.root,
    )


def _stored_kind(model: Backbone, dtype: StoredAs) -> np.dtype[Any]:
    return stored_type(model.model.dtype if dtype == "auto" else DTYPES[dtype])


def write_trunk(
    model: Backbone,
    images: Sequence[Path],
    texts: Texts,
    first: int,
    output: Path,
    inputs: Mapping[str, Any],
    *,
    images_per_batch: int = 16,
    mode: Mode | None = None,
    dtype: StoredAs = "auto",
    shard: Shard = WHOLE,
    root: Path | None = None,
) -> None:
    """Write the trunk of some images and their texts (see `extract_trunk`); cut the model."""
    mode = mode or trunk_mode("auto", first, vision=False)
    first = first if mode == "layer" else 0
    items = shard.of(len(images), images_per_batch)
    own, own_texts = images[items], texts.of_images(items.start, items.stop)
    blocks = blocks_of(len(own), images_per_batch)
    kind = _stored_kind(model, dtype)
    with create_hdf5(output, "trunk", inputs) as file:
        shard.record(file)
        file.attrs["first_layer"], file.attrs["mode"] = first, mode
        offsets = _write_known(file, model, own, own_texts)
        if mode == "off":
            assert root is not None, "image names are relative to a root"
            _write_names(file, own, root, output.parent)
            return
        if mode == "vision":
            del offsets["text"]
        for name, offset in offsets.items():
            file.create_dataset(name, (offset[-1], model.hidden_size), kind)
        model.keep_below(first)
        for block in track(read_ahead(model, own, blocks), "trunk", len(blocks)):
            some = own_texts.of_images(block.rows.start, block.rows.stop)
            grid, states = _trunk_states(model, block, some.groups(), first)
            file["grid"][block.rows] = grid
            for name, offset in offsets.items():
                rows = slice(offset[block.rows.start], offset[block.rows.stop])
                file[name][rows] = to_stored(states[name], kind)


def _write_known(
    file: h5py.File, model: Backbone, images: Sequence[Path], texts: Texts
) -> dict[str, NDArray[np.int64]]:
    """Write the datasets that need no forward pass; return the offsets of states.

    The offsets are (images + 1,) for each dataset of states.
    """
    counts = np.array([model.image_tokens(*image_size(path)) for path in images], dtype=np.int64)
    in_stream = model.stream_counts(torch.from_numpy(counts)).numpy() + len(model.head)
    offsets = {
        "prefix": np.concatenate([[0], np.cumsum(in_stream)]),
        "text": texts.offset[texts.first],
    }
    file["input_ids"], file["labels"], file["offset"] = texts.input_ids, texts.labels, texts.offset
    file["image_row"] = np.repeat(np.arange(len(images)), np.diff(texts.first))
    file["prefix_offset"] = offsets["prefix"]
    file["grid"] = np.zeros((len(images), model.grid_width), np.int64)
    if model.cross_attends:
        file["memory_offset"] = offsets["memory"] = np.concatenate([[0], np.cumsum(counts)])
    return offsets


def _write_names(file: h5py.File, images: Sequence[Path], root: Path, folder: Path) -> None:
    """Write the names below `root` and the checksums of the images that training reads."""
    names = [Path(os.path.relpath(path, root)).as_posix() for path in images]
    file.attrs["root"] = os.path.relpath(root, folder)
    file["image"] = np.array(names, dtype=h5py.string_dtype())
    file["sha256"] = np.array([sha256(path) for path in images], dtype=h5py.string_dtype())


def encoded_texts(
    backbone: Backbone, manifest: Manifest, split: str, max_tokens: int, origin: str
) -> tuple[list[Path], Texts]:
    """Return the images of a split and their texts, in the order of the images.

    Raises GapinitError for a text without a label in its first `max_tokens` tokens.
    """
    texts: dict[Path, list[list[Segment]]] = {}
    for sample in manifest.split(split):
        new = training_texts(backbone.prompts, manifest.kind, sample)
        texts.setdefault(sample.path, []).extend(new)
    about = [path for path, group in texts.items() for _ in group]
    flat = [text for group in texts.values() for text in group]
    ids, labels, lengths = [], [], []
    for start in range(0, len(flat), ENCODED_AT_ONCE):
        some = backbone.encode_segments(flat[start : start + ENCODED_AT_ONCE], max_tokens)
        for row, (_, found) in enumerate(some, start):
            if all(label == -100 for label in found):
                raise GapinitError(
                    f"{origin}: the prompt of a text about {about[row]} has more than {max_tokens} "
                    "tokens, so no answer token remains. Raise training.max_sequence_tokens"
                )
        lengths += [len(found) for found, _ in some]
        ids.append(np.array([token for found, _ in some for token in found], dtype=np.int64))
        labels.append(np.array([label for _, found in some for label in found], dtype=np.int64))
    counts = np.array([len(group) for group in texts.values()], dtype=np.int64)
    return list(texts), Texts(
        np.concatenate(ids),
        np.concatenate(labels),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([[0], np.cumsum(counts)]),
    )


@torch.inference_mode()
def _trunk_states(
    backbone: Backbone, block: Block, groups: Sequence[Sequence[Sequence[int]]], first: int
) -> tuple[NDArray[np.int64], dict[str, torch.Tensor]]:
    """Return the grids of some images, and the states of images and texts by dataset name."""
    images = backbone.seen(block.pixels, block.sizes)
    grid = images.grid.cpu().numpy()
    found: dict[str, torch.Tensor] = {}
    if backbone.cross_attends:
        found["memory"] = images.tokens
    if first == 0:
        alone = backbone.embed(images, [[] for _ in groups])
        position = torch.arange(alone.states.shape[1], device=alone.states.device)[None]
        found["prefix"] = alone.states[position < alone.length[:, None]]
        return grid, found
    rows, packs = _packs(groups, PACKED_TOKENS if backbone.packs_texts else 0)
    taken = images.take(rows)
    if any(len(pack) > 1 for pack in packs):
        inputs = backbone.embed_packed(taken, packs)
    else:
        inputs = backbone.embed(taken, [text for (text,) in packs])
    states = backbone.decode(inputs)
    position = torch.arange(states.shape[1], device=states.device)[None]
    is_prefix = position < inputs.prefix_length[:, None]
    # An image's prefix is the same in all its sequences; the first one is kept.
    once = torch.tensor([row == 0 or rows[row - 1] != rows[row] for row in range(len(rows))])
    found["prefix"] = states[is_prefix & once.to(states.device)[:, None]]
    found["text"] = states[~is_prefix & (position < inputs.length[:, None])]
    return grid, found


def _packs(
    groups: Sequence[Sequence[Sequence[int]]], tokens: int
) -> tuple[list[int], list[list[Sequence[int]]]]:
    """Return each sequence's image row and texts: at most `tokens` tokens, or a single text."""
    rows: list[int] = []
    packs: list[list[Sequence[int]]] = []
    for row, group in enumerate(groups):
        room = -1
        for text in group:
            if len(text) > room:
                rows.append(row)
                packs.append([])
                room = tokens
            packs[-1].append(text)
            room -= len(text)
    return rows, packs
