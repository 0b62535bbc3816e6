"""Read batches of a trunk, one file or several shards, through memory maps."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from gapinit.artifacts.arrays import Rows, as_tensor, joined_rows, memory_map, widened
from gapinit.artifacts.artifacts import hdf5_inputs, open_hdf5
from gapinit.artifacts.shards import shard_set
from gapinit.errors import GapinitError
from gapinit.train.trunk.modes import Mode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gapinit.backbones.base import Backbone


@dataclass(frozen=True)
class Ragged:
    """Items of several rows each, concatenated and mapped from disk."""

    rows: Rows
    """In the type on disk (`gapinit.artifacts.arrays`)."""
    offset: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return widened(self.rows[self.offset[index] : self.offset[index + 1]])

    def lengths(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of rows of each given item."""
        return self.offset[items + 1] - self.offset[items]


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a trunk without states, which training reads."""

    root: Path
    names: list[str]
    """Paths below the root."""
    digests: list[str]
    """SHA-256 of each file when the trunk was made."""

    def load(self, index: int) -> Any:
        """Return an image in RGB; raise GapinitError for a missing or changed file."""
        from gapinit.data.images import load_image

        path = self.root / self.names[index]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise GapinitError(
                f"{path}: cannot be read ({error.strerror}), but the trunk refers to it. Restore "
                "it, or run `gapinit trunk` again."
            ) from None
        if hashlib.sha256(content).hexdigest() != self.digests[index]:
            raise GapinitError(
                f"{path}: changed since the trunk was made. Restore it, or run `gapinit trunk` "
                "again."
            )
        return load_image(path, io.BytesIO(content))


@dataclass(frozen=True)
class Trunk:
    """A trunk, read through memory maps: random access without loading the file."""

    first_layer: int
    mode: Mode
    prefix: Ragged | None
    """None in mode "off", without states."""
    prefix_lengths: NDArray[np.int64]
    """(images,): number of tokens in front of an image's texts."""
    grid: NDArray[np.int64]
    text: Rows | None
    memory: Ragged | None
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    offset: NDArray[np.int64]
    image_row: NDArray[np.int64]
    inputs: dict[str, Any]
    files: ImageFiles | None = None
    pixels: Callable[[Sequence[Any]], dict[str, torch.Tensor]] | None = None
    """The backbone's image processor, set by `prepare`."""

    def __len__(self) -> int:
        return len(self.image_row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a text's index and token ids; `batch` reads a whole batch's states at once."""
        start, end = self.offset[index], self.offset[index + 1]
        return {"index": index, "input_ids": self.input_ids[start:end]}

    def prepare(self, backbone: Backbone) -> Trunk:
        """Remove the cached part from a backbone; return the trunk for the rest."""
        if self.mode == "layer":
            backbone.cut_below(self.first_layer)
        elif self.mode == "vision":
            backbone.drop_vision()
        return replace(self, pixels=backbone.pixels) if self.mode == "off" else self

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch of the texts that Trainer's sampler selected."""
        return self.batch([item["index"] for item in items])

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return one batch, padded on the right: `gapinit.backbones.inputs.Inputs` and labels.

        `labels` (n, width; -100: none), `prefix_length` (n,), `length` (n,); `states`
        (n, width, d) in the type on disk, and `grid`; `input_ids` (n, width) if the states of
        texts are not cached; `memory` if the trunk has one. Without states: `pixels`, the image
        processor's output for the batch's distinct images, and `image` (n,), each text's row in it.
        """
        chosen = np.asarray(indices)
        images = self.image_row[chosen]
        prefix = self.prefix_lengths[images]
        texts = self.offset[chosen + 1] - self.offset[chosen]
        length = prefix + texts
        shape = (len(chosen), int(length.max()))
        # Positions of all text tokens, in the file and in the flattened batch.
        source = _ranges(self.offset[chosen], texts)
        target = _ranges(np.arange(len(chosen)) * shape[1] + prefix, texts)
        batch = {
            "labels": _filled(shape, -100, target, self.labels[source]),
            "prefix_length": torch.from_numpy(prefix),
            "length": torch.from_numpy(length),
        }
        if self.text is None:
            batch["input_ids"] = _filled(shape, 0, target, self.input_ids[source])
        if self.prefix is None:
            return batch | self._pixels(images)
        kept = [(self.prefix.rows, self.prefix.offset[images], prefix, np.zeros_like(prefix))]
        if self.text is not None:
            kept.append((self.text, self.offset[chosen], texts, prefix))
        batch |= {"states": _states(shape, kept), "grid": torch.from_numpy(self.grid[images])}
        if self.memory is not None:
            counts = self.memory.lengths(images)
            read = (self.memory.rows, self.memory.offset[images], counts, np.zeros_like(counts))
            batch["memory"] = _states((len(images), int(counts.max())), [read])
            batch["memory_length"] = torch.from_numpy(counts)
        return batch

    def _pixels(self, images: NDArray[np.int64]) -> dict[str, Any]:
        assert self.files is not None, "a trunk without states lists its images"
        if self.pixels is None:
            raise GapinitError(
                "this trunk holds no states (mode 'off'): call Trunk.prepare(backbone), which sets "
                "the image processor"
            )
        once, image = np.unique(images, return_inverse=True)
        loaded = [self.files.load(int(row)) for row in once]
        return {"pixels": self.pixels(loaded), "image": torch.from_numpy(image)}


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the concatenated ranges start, ..., start + count - 1."""
    ends = np.cumsum(counts)
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return np.repeat(starts, counts) + within


def _filled(
    shape: tuple[int, int], padding: int, target: NDArray[np.int64], values: NDArray[np.int64]
) -> torch.Tensor:
    flat = np.full(shape[0] * shape[1], padding, dtype=np.int64)
    flat[target] = values
    return torch.from_numpy(flat.reshape(shape))


def _states(shape: tuple[int, int], parts: Sequence[tuple[Rows, Any, Any, Any]]) -> torch.Tensor:
    """Return padded states, (n, width, d), from (rows, starts, counts, positions in a sequence).

    Slices of the map are copied once; an index array would copy twice.
    """
    rows = parts[0][0]
    values = np.zeros((*shape, rows.shape[1]), dtype=rows.dtype)
    for rows, starts, counts, places in parts:
        if isinstance(rows, np.ndarray):
            rows = rows.view(np.ndarray)  # slicing a memmap is slower than the copy
        stretches = zip(starts.tolist(), counts.tolist(), places.tolist(), strict=True)
        for row, (start, count, place) in enumerate(stretches):
            values[row, place : place + count] = rows[start : start + count]
    return as_tensor(values)


def read_trunk(path: Path | Sequence[Path]) -> Trunk:
    """Open a trunk, one file or all its shards: states are mapped, other arrays are loaded."""
    paths = shard_set(path, "trunk")
    parts = [_read_file(part) for part in paths]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    offset = _joined_offsets([part.offset for part in parts])
    before = np.cumsum([0, *(len(part.prefix_lengths) for part in parts)])
    rows = [part.image_row + start for part, start in zip(parts, before[:-1], strict=True)]

    def ragged(found: Sequence[Ragged | None]) -> Ragged | None:
        items = [it for it in found if it is not None]
        if not items:
            return None
        return Ragged(
            joined_rows([it.rows for it in items]), _joined_offsets([it.offset for it in items])
        )

    texts = [part.text for part in parts if part.text is not None]
    files = [part.files for part in parts if part.files is not None]
    return replace(
        first,
        prefix=ragged([part.prefix for part in parts]),
        prefix_lengths=np.concatenate([part.prefix_lengths for part in parts]),
        grid=np.concatenate([part.grid for part in parts]),
        text=joined_rows(texts) if texts else None,
        memory=ragged([part.memory for part in parts]),
        input_ids=np.concatenate([part.input_ids for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        offset=offset,
        image_row=np.concatenate(rows),
        files=_joined_files(files) if files else None,
    )


def _joined_offsets(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = np.concatenate([np.diff(offset) for offset in offsets])
    return np.concatenate([[0], np.cumsum(lengths)])


def _joined_files(files: Sequence[ImageFiles]) -> ImageFiles:
    roots = {it.root.resolve() for it in files}
    if len(roots) != 1:
        raise GapinitError(
            f"the trunk's shards have images in different folders: {', '.join(map(str, roots))}"
        )
    names = [name for it in files for name in it.names]
    return ImageFiles(files[0].root, names, [found for it in files for found in it.digests])


def _read_file(path: Path) -> Trunk:
    with open_hdf5(path, "trunk") as file:
        mode = cast("Mode", file.attrs["mode"])

        def ragged(name: str) -> Ragged | None:
            if name not in file:
                return None
            return Ragged(memory_map(path, file[name]), file[f"{name}_offset"][:])

        files = None
        if mode == "off":
            root = path.parent / str(file.attrs["root"])
            names = file["image"].asstr()[:].tolist()
            files = ImageFiles(root, names, file["sha256"].asstr()[:].tolist())
        return Trunk(
            first_layer=int(file.attrs["first_layer"]),
            mode=mode,
            prefix=ragged("prefix"),
            prefix_lengths=np.diff(file["prefix_offset"][:]),
            grid=file["grid"][:],
            text=memory_map(path, file["text"]) if "text" in file else None,
            memory=ragged("memory"),
            input_ids=file["input_ids"][:],
            labels=file["labels"][:],
            offset=file["offset"][:],
            image_row=file["image_row"][:],
            inputs=hdf5_inputs(file),
            files=files,
        )
