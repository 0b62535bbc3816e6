"""HDF5 artifacts that are written block by block: a killed job goes on where it was.

The file is laid out whole before the first block: what is known beforehand is written, and room is
made for what will be computed. From then on HDF5 is out of it: blocks go to their places in the
file, and every few blocks the data is flushed and a journal beside it says which blocks are there,
with a checksum of each. So a kill at any moment leaves a layout that is whole and a journal that
names nothing that is not on disk, and the finished file has the same bytes however often it was
interrupted.

    <name>.partial            the file in the making; renamed to <name> when all of it is there
    <name>.partial.journal    a line a block: the rows of each dataset, and their CRC-32
    <name>.lock               held by the one process that writes
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.artifacts.artifacts import write_header
from gapinit.artifacts.digests import mark_checked, record
from gapinit.artifacts.shards import WHOLE, Shard
from gapinit.artifacts.storage_errors import storage_problem
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import h5py

COMMIT_BLOCKS = 8
"""Blocks between two flushes: what a killed job computes again at most."""
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Filled:
    """A dataset that is filled block by block, along one axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int = 0

    @property
    def nbytes(self) -> int:
        """Return the bytes of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """What an artifact holds."""

    kind: str
    inputs: Mapping[str, Any]
    known: Mapping[str, Any]
    """Datasets that are known before anything is computed."""
    filled: Mapping[str, Filled]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = WHOLE

    @property
    def nbytes(self) -> int:
        """Return the bytes of its numbers, without names and HDF5's own."""
        arrays = [np.asarray(values) for values in self.known.values()]
        known = sum(array.nbytes for array in arrays if array.dtype.kind in "iuf")
        return known + sum(it.nbytes for it in self.filled.values())


@contextmanager
def resumable_hdf5(path: Path, layout: Layout, advice: str = "") -> Iterator[Partial]:
    """Yield an artifact to be filled block by block; it appears under `path` when it is complete.

    Blocks that an interrupted job left are taken over if its file is of the same kind, inputs and
    layout and their checksums are right; anything else that is there is dropped. A GapinitError in
    the block drops the file, since then its inputs are wrong; any other end keeps it.

    Raises GapinitError, before anything is written, if another process writes the same artifact or
    the disk has not enough room; `advice` says what to do about the latter.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        partial = _open(path, layout, advice)
        try:
            yield partial
            partial.finish()
        except GapinitError:
            partial.drop()
            raise
        except OSError as error:
            partial.keep()
            raise GapinitError(
                f"{path}: cannot be written ({error.strerror or error}). What is computed is kept "
                f"in {partial.path}: make room or choose another folder, and run the same command "
                "again."
            ) from error
        except BaseException:
            with suppress(OSError):
                partial.commit()
            partial.keep()
            raise


def require_room(path: Path, needed: int, advice: str) -> None:
    """Raise GapinitError unless the disk of `path` has room for so many bytes."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise GapinitError(
            f"{path}: No space left for it: it needs {needed:,} bytes ({needed / 1e9:.1f} GB), but "
            f"its disk has {free:,} ({free / 1e9:.1f} GB) free. "
            f"{advice or 'Make room, or choose another folder.'} Then run the same command again."
        )


class Partial:
    """An artifact in the making."""

    def __init__(self, path: Path, output: Path, places: Mapping[str, _Place], done: int) -> None:
        self.path = path
        self.done = done
        """How many blocks are there."""
        self._output = output
        self._places = places
        self._descriptor = os.open(path, os.O_RDWR)
        self._journal = _journal(path).open("a", encoding="utf-8")
        self._rows: dict[str, list[int]] = {}
        self._sums: dict[str, int] = {}
        self._lines: list[str] = []

    def write(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Write the block's rows of a dataset, behind those of the blocks before."""
        place = self._places[name]
        start, stop = place.next, place.next + values.shape[place.filled.axis]
        expected = place.shape_of(stop - start)
        if values.shape != expected or values.dtype != place.filled.dtype or name in self._rows:
            raise ValueError(
                f"{name}: expected {expected} {place.filled.dtype} once a block, found "
                f"{values.shape} {values.dtype}"
            )
        if stop > place.filled.shape[place.filled.axis]:
            raise ValueError(f"{name}: {stop} rows, but there is room for {place.filled.shape}")
        parts = np.ascontiguousarray(values).reshape(place.outer, -1)
        total = 0
        for part, (offset, _) in zip(parts, place.segments(start, stop), strict=True):
            data: memoryview = part.view(np.uint8).data if part.size else memoryview(b"")
            total = zlib.crc32(data, total)
            _write_at(self._descriptor, data, offset)
        place.next = stop
        self._rows[name] = [start, stop]
        self._sums[name] = total

    def end_block(self) -> None:
        """Say that all of a block is written; every few blocks it is flushed to disk."""
        line = {"block": self.done, "rows": self._rows, "crc32": self._sums}
        self._lines.append(json.dumps(line, sort_keys=True))
        self._rows, self._sums = {}, {}
        self.done += 1
        if len(self._lines) >= COMMIT_BLOCKS:
            self.commit()

    def commit(self) -> None:
        """Flush the data, then the journal that names it."""
        if not self._lines:
            return
        os.fsync(self._descriptor)
        self._journal.write("".join(f"{line}\n" for line in self._lines))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._lines = []

    def finish(self) -> None:
        """Mark the file as complete and give it its name."""
        import h5py

        for name, place in self._places.items():
            room = place.filled.shape[place.filled.axis]
            if place.next != room:
                raise ValueError(f"{name}: {place.next} rows are written, expected {room}")
        self.commit()
        self.close()
        with h5py.File(self.path, "r+") as file:
            file.attrs.modify("complete", True)
        with open(self.path, "rb") as handle:
            os.fsync(handle.fileno())
        record(self._output, self.path)
        os.replace(self.path, self._output)
        mark_checked(self._output)
        _journal(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files."""
        if not self._journal.closed:
            self._journal.close()
            os.close(self._descriptor)

    def keep(self) -> None:
        """Let go of the files; without a block that is in the journal, remove them."""
        self.close()
        journal = _journal(self.path)
        if not journal.is_file() or journal.stat().st_size == 0:
            self.drop()

    def drop(self) -> None:
        """Remove the unfinished file."""
        self.close()
        for path in (_journal(self.path), self.path):
            path.unlink(missing_ok=True)


@dataclass
class _Place:
    """Where a filled dataset lies in the file, and how far it is filled."""

    filled: Filled
    offset: int
    next: int = 0

    @property
    def outer(self) -> int:
        """Return how many stretches of the file the rows of a block go to."""
        return math.prod(self.filled.shape[: self.filled.axis])

    def shape_of(self, rows: int) -> tuple[int, ...]:
        """Return the shape of so many rows."""
        axis = self.filled.axis
        return (*self.filled.shape[:axis], rows, *self.filled.shape[axis + 1 :])

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length, in bytes, of each stretch of some rows."""
        shape, axis = self.filled.shape, self.filled.axis
        row = math.prod(shape[axis + 1 :]) * self.filled.dtype.itemsize
        for index in range(self.outer):
            yield self.offset + (index * shape[axis] + start) * row, (stop - start) * row


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the artifact's lock. It goes when the process ends, and leaves no file behind."""
    name = path.with_name(f"{path.name}.lock")
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise GapinitError(
                f"{path}: another process is writing it (it holds {name.name}). Wait for it, or "
                "end it."
            ) from None
        # A holder removes the file before it lets go: this one may have been that.
        with suppress(FileNotFoundError):
            if os.stat(name).st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
    try:
        yield
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def _open(path: Path, layout: Layout, advice: str) -> Partial:
    """Return the unfinished artifact of this layout that is there, or an empty one."""
    partial = path.with_name(f"{path.name}.partial")
    new = path.with_name(f"{path.name}.partial.new")
    there = _allocated(partial)
    require_room(path, layout.nbytes - there, advice)
    try:
        places = _lay_out(new, layout)
        done = _taken_over(partial, new, places)
        if done is None:
            _journal(partial).unlink(missing_ok=True)
            os.replace(new, partial)
            done = 0
        if done:
            print(f"{path}: goes on from block {done}", file=sys.stderr, flush=True)
    except OSError as error:
        said, way_out = storage_problem(error) or (error.strerror or str(error), "")
        raise GapinitError(f"{path}: cannot be written ({said}). {way_out}".rstrip()) from error
    finally:
        new.unlink(missing_ok=True)
    return Partial(partial, path, places, done)


def _allocated(path: Path) -> int:
    """Return the bytes that a file has on disk; room that is yet to be filled is none."""
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def _lay_out(path: Path, layout: Layout) -> dict[str, _Place]:
    """Write the artifact without what is filled; return where that goes."""
    import h5py

    places = {}
    with h5py.File(path, "w") as file:
        write_header(file, layout.kind, layout.inputs)
        if layout.shard != WHOLE:
            file.attrs["shard"] = json.dumps(layout.shard.as_json())
        for name, value in layout.attributes.items():
            file.attrs[name] = value
        file.attrs["complete"] = False
        for name, values in layout.known.items():
            file[name] = values
        for name, filled in layout.filled.items():
            places[name] = _Place(filled, _allocate(file, name, filled))
    return places


def _allocate(file: h5py.File, name: str, filled: Filled) -> int:
    """Make room for a contiguous dataset, without writing it; return its offset in the file."""
    import h5py

    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_layout(h5py.h5d.CONTIGUOUS)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    options.set_obj_track_times(False)
    kind = h5py.h5t.py_create(filled.dtype, logical=True)
    space = h5py.h5s.create_simple(filled.shape)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, options)
    return int(dataset.get_offset() or 0)  # an empty one lies nowhere


def _taken_over(partial: Path, new: Path, places: Mapping[str, _Place]) -> int | None:
    """Return how many blocks of an interrupted job are good; None: its file is of no use.

    `new` is the layout that is asked for: outside of what is filled, the bytes have to be those.
    """
    import h5py

    journal = _journal(partial)
    if not (partial.is_file() and journal.is_file()):
        return None
    if partial.stat().st_size != new.stat().st_size:
        return None
    try:
        with h5py.File(partial, "r+") as file:  # it may have been killed just before its renaming
            file.attrs.modify("complete", False)
    except (OSError, KeyError, RuntimeError):
        return None
    if _digest_outside(partial, places) != _digest_outside(new, places):
        return None
    good: list[bytes] = []
    with open(partial, "rb") as file:
        for line in journal.read_bytes().splitlines(keepends=True):
            if not _is_good(line, len(good), places, file):
                break
            good.append(line)
    journal.write_bytes(b"".join(good))
    return len(good)


def _is_good(line: bytes, block: int, places: Mapping[str, _Place], file: Any) -> bool:
    """Say whether a journal's line names the next block and its rows are as they were written."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else {}
        rows, sums = found["rows"], found["crc32"]
        if found["block"] != block or not set(rows) == set(sums) == set(places):
            return False
        for name, (start, stop) in rows.items():
            place = places[name]
            room = place.filled.shape[place.filled.axis]
            if not place.next == start <= stop <= room:
                return False
            if _checksum(file, place.segments(start, stop)) != sums[name]:
                return False
    except (ValueError, KeyError, TypeError):
        return False
    for name, (_, stop) in rows.items():
        places[name].next = stop
    return True


def _checksum(file: Any, segments: Iterator[tuple[int, int]]) -> int:
    total = 0
    for offset, length in segments:
        file.seek(offset)
        while length > 0:
            data = file.read(min(length, _CHUNK))
            if not data:
                return -1
            total = zlib.crc32(data, total)
            length -= len(data)
    return total


def _digest_outside(path: Path, places: Mapping[str, _Place]) -> list[int]:
    """Return a checksum of everything in a file but what is filled block by block."""
    size, start, sums = path.stat().st_size, 0, []
    spans = sorted((it.offset, it.offset + it.filled.nbytes) for it in places.values())
    with open(path, "rb") as file:
        for begin, end in [*(span for span in spans if span[1] > span[0]), (size, size)]:
            sums.append(_checksum(file, iter([(start, begin - start)])))
            start = end
    return sums


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(descriptor, data[: 1 << 30], offset)
        data, offset = data[written:], offset + written


def blocks_of(count: int, size: int, shard: Shard = WHOLE) -> Sequence[slice]:
    """Return the blocks of `size` of so many items that are a shard's; the last may be shorter.

    Blocks do not depend on the shard, nor numbers with them.
    """
    blocks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    return blocks[shard.span(len(blocks))]
