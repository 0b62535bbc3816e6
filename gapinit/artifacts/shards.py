"""Shards: parts of an artifact that several jobs extract, one file each; readers join them.

A shard has the kind and inputs of the whole artifact and some of its items. It is written
atomically, so a killed extraction resumes at the first missing shard.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.artifacts.artifacts import hdf5_inputs, open_hdf5
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import h5py

STATES_AXES = {"vision": 1, "text": 1, "image_id": 0}
"""The axis of the pairs in each dataset of a states file."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Return the shard that "I/N" names; None: the whole."""
        match = re.fullmatch(r"(\d+)/(\d+)", "1/1" if text is None else text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise GapinitError(
                f"--shard: expected I/N with I from 1 to N, for example 2/4; found '{text}'"
            )
        return cls(int(match[1]), int(match[2]))

    def of(self, total: int, size: int) -> slice:
        """Return the slice of `total` items that is this shard: whole blocks of `size` items.

        Blocks do not depend on the number of shards, so the computed numbers do not, either.
        """
        blocks = -(-total // size)
        start, stop = (
            min(number * blocks // self.count * size, total)
            for number in (self.index - 1, self.index)
        )
        return slice(start, stop)

    def record(self, file: h5py.File) -> None:
        """Write the shard's number as an attribute; a whole artifact has no such attribute."""
        if self.count > 1:
            file.attrs["shard"] = json.dumps(asdict(self))


WHOLE = Shard()


def blocks_of(count: int, size: int) -> list[slice]:
    """Return the slices of `count` items in blocks of `size`; the last may be shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def shard_sets(paths: Sequence[Path], kind: str) -> list[list[Path]]:
    """Return files grouped into whole artifacts, in the order of their first files.

    Raises GapinitError for a missing or repeated shard.
    """
    found: dict[Any, dict[Shard, Path]] = {}
    for number, path in enumerate(map(Path, paths)):
        with open_hdf5(path, kind) as file:
            shard = Shard(**json.loads(file.attrs.get("shard", "{}")))
            inputs = hdf5_inputs(file)
        # Two whole files with the same inputs are two artifacts.
        whole = number if shard == WHOLE else None
        group = found.setdefault((json.dumps(inputs, sort_keys=True), shard.count, whole), {})
        if shard in group:
            raise GapinitError(
                f"{path}: shard {shard.index} of {shard.count}, the same as {group[shard]}. Name "
                "each shard once."
            )
        group[shard] = path
    return [_complete(group, kind) for group in found.values()]


def shard_set(paths: Path | Sequence[Path], kind: str) -> list[Path]:
    """Return the files of one artifact in row order; raise GapinitError for several artifacts."""
    given = [Path(paths)] if isinstance(paths, str | Path) else list(paths)
    sets = shard_sets(given, kind)
    if len(sets) != 1:
        names = " and ".join(str(group[0]) for group in sets) or "no file"
        raise GapinitError(
            f"{names}: expected the file or all shards of one artifact of kind '{kind}', found "
            "several whole files or shards with different inputs"
        )
    return sets[0]


def _complete(group: Mapping[Shard, Path], kind: str) -> list[Path]:
    count = next(iter(group)).count
    shards = [Shard(index, count) for index in range(1, count + 1)]
    missing = [f"{shard.index}/{count}" for shard in shards if shard not in group]
    if missing:
        raise GapinitError(
            f"{next(iter(group.values()))}: other shards of this {kind} artifact are missing: "
            f"{', '.join(missing)}. Run `gapinit {kind} --shard I/{count}` for each and name all "
            "files."
        )
    return [group[shard] for shard in shards]


@contextmanager
def open_shards(paths: Sequence[Path], kind: str, axes: Mapping[str, int]) -> Iterator[h5py.File]:
    """Open the files of one artifact as one file; `axes`: the axis of the items in each dataset.

    HDF5 virtual datasets join the files without copying.
    """
    import h5py

    with ExitStack() as stack:
        parts = [stack.enter_context(open_hdf5(path, kind)) for path in paths]
        if len(parts) == 1:
            yield parts[0]
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        joined = Path(folder) / "joined.h5"
        with h5py.File(joined, "w") as file:
            for name, value in parts[0].attrs.items():
                if name != "shard":
                    file.attrs[name] = value
            for name, axis in axes.items():
                _join(file, name, axis, parts)
        yield stack.enter_context(h5py.File(joined, "r"))


def _join(file: h5py.File, name: str, axis: int, parts: Sequence[h5py.File]) -> None:
    import h5py

    shapes = [part[name].shape for part in parts]
    total = sum(shape[axis] for shape in shapes)
    shape = (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
    layout = h5py.VirtualLayout(shape, parts[0][name].dtype)
    start = 0
    for part, own in zip(parts, shapes, strict=True):
        if own[axis]:
            rows = (*[slice(None)] * axis, slice(start, start + own[axis]))
            path = str(Path(part.filename).resolve()).replace("%", "%%")
            layout[rows] = h5py.VirtualSource(path, name, own)
        start += own[axis]
    file.create_virtual_dataset(name, layout)
