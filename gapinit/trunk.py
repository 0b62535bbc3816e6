"""Stage `trunk`: what the frozen layers compute on the training set, once for all runs.

Everything below the first adapted layer is frozen: its output is the same for every seed, method,
noise level and epoch. The trunk keeps the states that enter that layer: an image's tokens once
(they stand first and attention is causal, so no text changes them), the tokens of a text (a
caption, a question with its answer, a conversation) once each. Training then runs the layers
above only. If the first layer itself is adapted, the trunk keeps the image features alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gapinit.artifacts import create_hdf5, hdf5_inputs, open_hdf5, read_json, sha256
from gapinit.backbones import load_backbone
from gapinit.backbones.prompts import Segment, training_texts
from gapinit.data.images import image_size, load_image
from gapinit.data.manifest import Manifest, read_manifest, require_images
from gapinit.errors import GapinitError
from gapinit.plan import VERSIONS
from gapinit.progress import track
from gapinit.ragged import require_offsets, require_places, require_rows
from gapinit.states import backbone_digest
from gapinit.stored import memory_map, stored_type, to_stored, widened

if TYPE_CHECKING:
    import h5py
    from numpy.typing import NDArray

    from gapinit.backbones.base import Backbone


Encoded = tuple[list[int], list[int]]
"""Token ids and labels of one text."""


def extract_trunk(
    backbone: Path,
    manifest: Path,
    layers: Path,
    strategy: str,
    output: Path,
    *,
    split: str = "train",
    max_tokens: int = 32,
    images_per_batch: int = 16,
    device: str = "cpu",
) -> None:
    """Write the training set's states at the input of the lowest layer that `strategy` adapts.

    The file (kind "trunk") holds, for all images one after another, `prefix` (tokens, d): what the
    template puts in front of an image and the image's tokens; `prefix_offset` (images + 1,) and
    `grid` (images, k). A model that reads images by cross-attention has their tokens in `memory`,
    with `memory_offset`. For all texts one after another: `input_ids`, `labels` (the next token,
    EOS last; -100: not learned) and, unless the lowest layer is adapted, `text` (tokens, d);
    `offset` (texts + 1,) and `image_row` (texts,).
    """
    first = min(read_json(layers)[strategy])
    data = read_manifest(manifest)
    require_images(manifest, data.images(split), data.root)
    model = load_backbone(backbone, device)
    images, encoded = encoded_texts(model, data, split, max_tokens, origin=str(manifest))
    inputs = {
        "backbone": backbone_digest(backbone),
        "manifest": sha256(manifest),
        "split": split,
        "first_layer": first,
        "max_tokens": max_tokens,
        "version": VERSIONS["trunk"],
    }
    write_trunk(model, images, encoded, first, output, inputs, images_per_batch=images_per_batch)


def write_trunk(
    model: Backbone,
    images: Sequence[Path],
    encoded: Sequence[Sequence[Encoded]],
    first: int,
    output: Path,
    inputs: Mapping[str, Any],
    *,
    images_per_batch: int = 16,
) -> None:
    """Write the trunk of some images and their texts, as `extract_trunk` does; the model is cut."""
    lengths = np.array([len(ids) for texts in encoded for ids, _ in texts])
    counts = np.array([model.image_tokens(*image_size(path)) for path in images])
    in_stream = model.stream_counts(torch.from_numpy(counts)).numpy()
    model.keep_below(first)
    with create_hdf5(output, "trunk", inputs) as file:
        file.attrs["first_layer"] = first
        write = _Writer(file, model.hidden_size, stored_type(model.model.dtype))
        write.create("prefix", in_stream + len(model.head))
        if model.cross_attends:
            write.create("memory", counts)
        if first > 0:
            write.create("text", lengths)
        file["offset"] = np.concatenate([[0], np.cumsum(lengths)])
        file["image_row"] = np.repeat(np.arange(len(images)), [len(texts) for texts in encoded])
        file["input_ids"] = np.concatenate([ids for texts in encoded for ids, _ in texts])
        file["labels"] = np.concatenate([labels for texts in encoded for _, labels in texts])
        grids = []
        for start in track(range(0, len(images), images_per_batch), "trunk"):
            rows = slice(start, start + images_per_batch)
            states, grid = _trunk_states(model, images[rows], encoded[rows], first)
            grids.append(grid)
            for name, values in states.items():
                write.append(name, values)
        file["grid"] = np.concatenate(grids)


class _Writer:
    """Appends rows to contiguous datasets whose length is known beforehand."""

    def __init__(self, file: h5py.File, width: int, kind: np.dtype[Any]) -> None:
        self._file = file
        self._width = width
        self._kind = kind
        self._written: dict[str, int] = {}

    def create(self, name: str, counts: NDArray[np.int64]) -> None:
        """Make room for items of so many rows each."""
        self._file.create_dataset(name, (int(counts.sum()), self._width), dtype=self._kind)
        if name != "text":
            self._file[f"{name}_offset"] = np.concatenate([[0], np.cumsum(counts)])
        self._written[name] = 0

    def append(self, name: str, values: torch.Tensor) -> None:
        """Write the next rows."""
        start = self._written[name]
        self._file[name][start : start + len(values)] = to_stored(values, self._kind)
        self._written[name] = start + len(values)


def encoded_texts(
    backbone: Backbone, manifest: Manifest, split: str, max_tokens: int, origin: str
) -> tuple[list[Path], list[list[Encoded]]]:
    """Return the images of a split and, for each, its samples' texts as token ids and labels.

    Raises GapinitError for a text of which nothing is left to learn within `max_tokens`.
    """
    texts: dict[Path, list[list[Segment]]] = {}
    for sample in manifest.split(split):
        new = training_texts(backbone.prompts, manifest.kind, sample)
        texts.setdefault(sample.path, []).extend(new)
    flat = [text for group in texts.values() for text in group]
    encoded = iter(backbone.encode_segments(flat, max_tokens))
    grouped = [[next(encoded) for _ in group] for group in texts.values()]
    for path, group in zip(texts, grouped, strict=True):
        for _, labels in group:
            if all(label == -100 for label in labels):
                raise GapinitError(
                    f"{origin}: a text about {path} has nothing to learn in its first "
                    f"{max_tokens} tokens: its prompt is longer. Raise training.max_sequence_tokens"
                )
    return list(texts), grouped


@torch.inference_mode()
def _trunk_states(
    backbone: Backbone,
    paths: Sequence[Path],
    encoded: Sequence[Sequence[Encoded]],
    first: int,
) -> tuple[dict[str, torch.Tensor], NDArray[np.int64]]:
    """Return the next rows of each dataset for some images and their texts, and their grids."""
    images = backbone.look([load_image(path) for path in paths])
    found: dict[str, torch.Tensor] = {}
    if backbone.cross_attends:
        found["memory"] = images.tokens
    if first == 0:
        alone = backbone.embed(images, [[] for _ in paths])
        found["prefix"] = alone.states[_positions(alone.states) < alone.length[:, None]]
    else:
        texts = [len(group) for group in encoded]
        rows = torch.repeat_interleave(torch.arange(len(paths)), torch.tensor(texts))
        inputs = backbone.embed(images.take(rows), [ids for group in encoded for ids, _ in group])
        states = backbone.decode(inputs)
        position = _positions(states)
        is_prefix = position < inputs.prefix_length[:, None]
        # An image's prefix is the same for all its texts: that of the first one is kept.
        once = torch.zeros(len(states), dtype=torch.bool)
        once[np.cumsum([0, *texts[:-1]])] = True
        found["prefix"] = states[is_prefix & once.to(states.device)[:, None]]
        found["text"] = states[~is_prefix & (position < inputs.length[:, None])]
    return found, images.grid.cpu().numpy()


def _positions(states: torch.Tensor) -> torch.Tensor:
    return torch.arange(states.shape[1], device=states.device)[None]


@dataclass(frozen=True)
class Ragged:
    """Items of several rows each, one after another, mapped from disk."""

    rows: NDArray[Any]
    """As they are stored (`gapinit.stored`)."""
    offset: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return widened(self.rows[self.offset[index] : self.offset[index + 1]])

    def lengths(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many rows some items have."""
        return self.offset[items + 1] - self.offset[items]


@dataclass(frozen=True)
class Trunk:
    """A trunk file, read through memory maps: random access without loading it."""

    first_layer: int
    prefix: Ragged
    grid: NDArray[np.int64]
    text: NDArray[Any] | None
    memory: Ragged | None
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    offset: NDArray[np.int64]
    image_row: NDArray[np.int64]
    inputs: dict[str, Any]

    def __len__(self) -> int:
        return len(self.image_row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a text's index and token ids; `batch` reads a whole batch's states at once."""
        start, end = self.offset[index], self.offset[index + 1]
        return {"index": index, "input_ids": self.input_ids[start:end]}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of the texts that Trainer's sampler chose."""
        return self.batch([item["index"] for item in items])

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return one batch, padded on the right (`gapinit.backbones.inputs.Inputs`, and labels).

        `states` (n, width, d), `labels` (n, width; -100: none), `prefix_length`, `length`, `grid`;
        `input_ids` (n, width) where the texts' states are not cached; `memory` where there is one.
        """
        chosen = np.asarray(indices)
        images = self.image_row[chosen]
        starts, ends = self.offset[chosen], self.offset[chosen + 1]
        prefix = self.prefix.lengths(images)
        length = prefix + ends - starts
        shape = (len(chosen), int(length.max()))
        states = np.zeros((*shape, self.prefix.rows.shape[1]), dtype=np.float32)
        labels = np.full(shape, -100, dtype=np.int64)
        input_ids = np.zeros(shape, dtype=np.int64)
        for row, (image, start, end) in enumerate(zip(images, starts, ends, strict=True)):
            text = slice(prefix[row], length[row])
            states[row, : prefix[row]] = self.prefix[image]
            labels[row, text] = self.labels[start:end]
            if self.text is None:
                input_ids[row, text] = self.input_ids[start:end]
            else:
                states[row, text] = widened(self.text[start:end])
        batch = {
            "states": states,
            "labels": labels,
            "prefix_length": prefix,
            "length": length,
            "grid": self.grid[images],
        }
        if self.text is None:
            batch["input_ids"] = input_ids
        if self.memory is not None:
            batch |= _padded_memory(self.memory, images)
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def _padded_memory(memory: Ragged, images: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    lengths = memory.lengths(images)
    values = np.zeros((len(images), int(lengths.max()), memory.rows.shape[1]), dtype=np.float32)
    for row, image in enumerate(images):
        values[row, : lengths[row]] = memory[image]
    return {"memory": values, "memory_length": lengths}


def read_trunk(path: Path) -> Trunk:
    """Open a trunk file; states are mapped from disk, token ids are read."""
    with open_hdf5(path, "trunk") as file:

        def ragged(name: str) -> Ragged:
            return Ragged(memory_map(path, file[name]), file[f"{name}_offset"][:])

        _require_consistent(file)
        return Trunk(
            first_layer=int(file.attrs["first_layer"]),
            prefix=ragged("prefix"),
            grid=file["grid"][:],
            text=memory_map(path, file["text"]) if "text" in file else None,
            memory=ragged("memory") if "memory" in file else None,
            input_ids=file["input_ids"][:],
            labels=file["labels"][:],
            offset=file["offset"][:],
            image_row=file["image_row"][:],
            inputs=hdf5_inputs(file),
        )


def _require_consistent(file: h5py.File) -> None:
    """Raise ValueError for numbers that point beyond what they number."""
    offset, ids = file["offset"][:], file["input_ids"]
    width = file["prefix"].shape[-1]
    require_offsets("offset", offset, len(ids))
    if file["labels"].shape != ids.shape or file["image_row"].shape != (len(offset) - 1,):
        raise ValueError("'labels', 'input_ids', 'image_row' and 'offset' do not belong together")
    for name in ("prefix", "memory"):
        if name in file:
            require_rows(name, file[name], width)
            require_offsets(f"{name}_offset", file[f"{name}_offset"][:], len(file[name]))
    images = len(file["prefix_offset"]) - 1
    require_places("image_row", file["image_row"][:], images)
    if len(file["grid"]) != images or file["grid"].dtype.kind not in "iu":
        raise ValueError(f"'grid' has no row for each of {images} images")
    if "text" in file:
        require_rows("text", file["text"], width)
        if len(file["text"]) != len(ids):
            raise ValueError(f"'text' has {len(file['text'])} rows for {len(ids)} tokens")
