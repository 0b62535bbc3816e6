"""Stage `trunk`: what the frozen layers compute on the training set, once for all runs.

Everything below the first adapted layer is frozen: its output is the same for every seed, method,
noise level and epoch. The trunk keeps the states that enter that layer: an image's tokens once
(they stand first and attention is causal, so no text changes them), the tokens of a text (a
caption, a question with its answer, a conversation) once each. Training then runs the layers
above only. What is kept is the trunk's mode:

    layer     states at the input of the lowest adapted layer
    vision    the images' tokens: the lowest layer itself is adapted
    off       no states: the vision tower is adapted. Texts and names of images
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
from gapinit.artifacts.artifacts import sha256
from gapinit.artifacts.partial import Filled, Layout, blocks_of, resumable_hdf5
from gapinit.artifacts.shards import WHOLE, Shard
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
"""Texts that are lists of Python's numbers at a time."""
PACKED_TOKENS = 1024
"""Text tokens behind one prefix at most: attention costs the square of a sequence's length."""
ADVICE = (
    "Make room; choose another folder; store half as much (`--dtype bfloat16`, "
    "training.trunk_dtype); or keep the images' tokens alone (`--mode vision`, training.trunk), "
    "or nothing (`--mode off`)."
)


@dataclass(frozen=True)
class Texts:
    """The texts of some images, one after another, as token ids and labels (-100: not learned)."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    offset: NDArray[np.int64]
    """(texts + 1,): where each text begins."""
    first: NDArray[np.int64]
    """(images + 1,): which text is an image's first."""

    def of_images(self, start: int, stop: int) -> Texts:
        """Return the texts of some images in a row."""
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

    The file (kind "trunk") holds, for all images one after another, `prefix` (tokens, d): what the
    template puts in front of an image and the image's tokens; `prefix_offset` (images + 1,) and
    `grid` (images, k). A model that reads images by cross-attention has their tokens in `memory`,
    with `memory_offset`. For all texts one after another: `input_ids`, `labels` (the next token,
    EOS last; -100: not learned) and, in mode "layer", `text` (tokens, d);
    `offset` (texts + 1,) and `image_row` (texts,). In mode "off" there are no states but `image`,
    the names below the dataset's root, and `sha256` of each.

    `dtype`: the states' on disk; "auto" is the model's own. `shard`: "I/N", part of the images.
    A job that was killed goes on at its last block that is on disk (`gapinit.artifacts.partial`).
    """
    first = min(read_layers(layers, strategy))
    own = trunk_mode(mode, first, vision=adapts_vision(strategy))
    part = Shard.parse(shard)
    data = read_manifest(manifest)
    named = data.images(split)
    for block in blocks_of(len(named), images_per_batch, part):
        require_images(manifest, named[block], data.root)
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
    """Write the trunk of some images and their texts, as `extract_trunk` does; the model is cut."""
    mode = mode or trunk_mode("auto", first, vision=False)
    first = first if mode == "layer" else 0
    blocks = blocks_of(len(images), images_per_batch, shard)
    start, stop = (blocks[0].start, blocks[-1].stop) if blocks else (0, 0)
    own, own_texts = images[start:stop], texts.of_images(start, stop)
    layout = _layout(model, own, own_texts, mode, inputs, _stored_kind(model, dtype))
    attributes: dict[str, Any] = {"first_layer": first, "mode": mode}
    known = dict(layout.known)
    if mode == "off":
        assert root is not None, "images are named below a root"
        attributes["root"] = os.path.relpath(root, output.parent)
        names = [Path(os.path.relpath(path, root)).as_posix() for path in own]
        known["image"] = np.array(names, dtype=h5py.string_dtype())
        known["sha256"] = np.array([sha256(path) for path in own], dtype=h5py.string_dtype())
    layout = Layout(
        "trunk", inputs, known, layout.filled, attributes, shard.holding(blocks, len(images))
    )
    # Within this file.
    rows = [slice(block.start - start, block.stop - start) for block in blocks]
    with resumable_hdf5(output, layout, ADVICE) as file:
        if mode == "off":
            return
        model.keep_below(first)
        left = rows[file.done :]
        for block in track(read_ahead(model, own, left), "trunk", len(left)):
            some = own_texts.of_images(block.rows.start, block.rows.stop)
            for name, values in _trunk_states(model, block, some.groups(), first).items():
                kind = layout.filled[name].dtype
                file.write(name, values if name == "grid" else to_stored(values, kind))
            file.end_block()


def _layout(
    model: Backbone,
    images: Sequence[Path],
    texts: Texts,
    mode: Mode,
    inputs: Mapping[str, Any],
    kind: np.dtype[Any],
) -> Layout:
    """Return what a trunk of these images and texts holds."""
    counts = np.array([model.image_tokens(*image_size(path)) for path in images], dtype=np.int64)
    in_stream = model.stream_counts(torch.from_numpy(counts)).numpy() + len(model.head)
    known = {
        "input_ids": texts.input_ids,
        "labels": texts.labels,
        "offset": texts.offset,
        "image_row": np.repeat(np.arange(len(images)), np.diff(texts.first)),
        "prefix_offset": np.concatenate([[0], np.cumsum(in_stream)]),
    }
    grid = Filled((len(images), model.grid_width), np.dtype(np.int64))
    if mode == "off":
        known["grid"] = np.zeros(grid.shape, grid.dtype)
        return Layout("trunk", inputs, known, {})
    filled = {"prefix": Filled((int(in_stream.sum()), model.hidden_size), kind), "grid": grid}
    if model.cross_attends:
        known["memory_offset"] = np.concatenate([[0], np.cumsum(counts)])
        filled["memory"] = Filled((int(counts.sum()), model.hidden_size), kind)
    if mode == "layer":
        filled["text"] = Filled((len(texts.input_ids), model.hidden_size), kind)
    return Layout("trunk", inputs, known, filled)


def encoded_texts(
    backbone: Backbone, manifest: Manifest, split: str, max_tokens: int, origin: str
) -> tuple[list[Path], Texts]:
    """Return the images of a split and, one image after another, its samples' texts.

    Raises GapinitError for a text of which nothing is left to learn within `max_tokens`.
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
                    f"{origin}: a text about {about[row]} has nothing to learn in its first "
                    f"{max_tokens} tokens: its prompt is longer. Raise training.max_sequence_tokens"
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
) -> dict[str, Any]:
    """Return the next rows of each dataset for some images and their texts."""
    images = backbone.seen(block.pixels, block.sizes)
    found: dict[str, Any] = {"grid": images.grid.cpu().numpy()}
    if backbone.cross_attends:
        found["memory"] = images.tokens
    if first == 0:
        alone = backbone.embed(images, [[] for _ in groups])
        position = torch.arange(alone.states.shape[1], device=alone.states.device)[None]
        found["prefix"] = alone.states[position < alone.length[:, None]]
        return found
    rows, packs = _packs(groups, PACKED_TOKENS if backbone.packs_texts else 0)
    taken = images.take(rows)
    if any(len(pack) > 1 for pack in packs):
        inputs = backbone.embed_packed(taken, packs)
    else:
        inputs = backbone.embed(taken, [text for (text,) in packs])
    states = backbone.decode(inputs)
    position = torch.arange(states.shape[1], device=states.device)[None]
    is_prefix = position < inputs.prefix_length[:, None]
    # An image's prefix is the same in all its sequences: that of the first one is kept.
    once = torch.tensor([row == 0 or rows[row - 1] != rows[row] for row in range(len(rows))])
    found["prefix"] = states[is_prefix & once.to(states.device)[:, None]]
    found["text"] = states[~is_prefix & (position < inputs.length[:, None])]
    return found


def _packs(
    groups: Sequence[Sequence[Sequence[int]]], tokens: int
) -> tuple[list[int], list[list[Sequence[int]]]]:
    """Return which image each sequence is of, and its texts: at most `tokens` together, or one."""
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
