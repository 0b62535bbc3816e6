"""Parts of an artifact that is extracted by several jobs: each a file of its own, read together.

A shard is a file of the same kind and inputs as the whole, with some of its rows. Nothing is copied
together: readers take the list of files, which has to be complete.
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


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: rows `start` to `stop` of the whole's `total`."""

    index: int = 1
    count: int = 1
    start: int = 0
    stop: int = 0
    total: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Return the shard that "I/N" names; None: the whole."""
        if text is None:
            return WHOLE
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise GapinitError(
                f"--shard: expected I/N with I from 1 to N, for example 2/4; found '{text}'"
            )
        return cls(int(match[1]), int(match[2])) if int(match[2]) > 1 else WHOLE

    def span(self, blocks: int) -> slice:
        """Return which of so many blocks are this shard's: as many in a row as others have."""
        return slice((self.index - 1) * blocks // self.count, self.index * blocks // self.count)

    def holding(self, blocks: Sequence[slice], total: int) -> Shard:
        """Return the shard with the rows of its blocks filled in; of the whole, the whole."""
        if self == WHOLE:
            return WHOLE
        start, stop = (blocks[0].start, blocks[-1].stop) if blocks else (0, 0)
        return Shard(self.index, self.count, start, stop, total)

    def as_json(self) -> dict[str, int]:
        """Return it as it is recorded in a file."""
        return asdict(self)


WHOLE = Shard()
STATES_AXES = {"vision": 1, "text": 1, "image_id": 0}
"""Along which axis the pairs of a states file stand."""


def shard_of(file: h5py.File) -> Shard:
    """Return which part of an artifact an open file is."""
    found = file.attrs.get("shard")
    return WHOLE if found is None else Shard(**json.loads(found))


def shard_sets(paths: Sequence[Path], kind: str) -> list[list[Path]]:
    """Return files grouped into whole artifacts, in the order of their first files.

    Raises GapinitError for a set of shards that is not complete, or whose inputs differ.
    """
    found: dict[Any, dict[int, tuple[Path, Shard]]] = {}
    for number, path in enumerate(map(Path, paths)):
        with open_hdf5(path, kind) as file:
            shard, inputs = shard_of(file), hdf5_inputs(file)
        if shard == WHOLE:
            found[number] = {1: (path, shard)}
            continue
        own = found.setdefault((json.dumps(inputs, sort_keys=True), shard.count), {})
        if shard.index in own:
            raise GapinitError(
                f"{path}: shard {shard.index} of {shard.count}, as {own[shard.index][0]} is. Name "
                "each shard once."
            )
        own[shard.index] = path, shard
    return [_complete(group, kind) for group in found.values()]


def shard_set(paths: Path | Sequence[Path], kind: str) -> list[Path]:
    """Return the files of one artifact in the order of its rows; more than one is an error."""
    given = [Path(paths)] if isinstance(paths, str | Path) else list(paths)
    sets = shard_sets(given, kind)
    if len(sets) != 1:
        names = " and ".join(str(group[0]) for group in sets) or "no file"
        raise GapinitError(
            f"{names}: expected the file or all shards of one artifact of kind '{kind}'; these are "
            "not made from the same inputs, or are several whole files"
        )
    return sets[0]


def _complete(group: Mapping[int, tuple[Path, Shard]], kind: str) -> list[Path]:
    ordered = [group[index] for index in sorted(group)]
    first_path, first = ordered[0]
    if first == WHOLE:
        return [first_path]
    missing = sorted(set(range(1, first.count + 1)) - set(group))
    if missing:
        names = ", ".join(f"{index}/{first.count}" for index in missing)
        raise GapinitError(
            f"{first_path}: shard of a {kind} artifact whose other shards are missing: {names}. "
            f"Run `gapinit {kind} --shard I/{first.count}` for each and name all files."
        )
    end = 0
    for path, shard in ordered:
        if shard.total != first.total or (shard.stop > shard.start and shard.start != end):
            raise GapinitError(
                f"{path}: holds rows {shard.start} to {shard.stop} of {shard.total}, expected rows "
                f"from {end} of {first.total}. Make all shards again with the same options."
            )
        end = max(end, shard.stop)
    if end != first.total:
        raise GapinitError(f"{ordered[-1][0]}: the shards end at row {end} of {first.total}")
    return [path for path, _ in ordered]


@contextmanager
def open_shards(paths: Sequence[Path], kind: str, axes: Mapping[str, int]) -> Iterator[h5py.File]:
    """Open the files of one artifact as one; `axes`: along which each dataset goes on.

    Several files are seen through HDF5's virtual datasets: nothing is copied.
    """
    import h5py

    if len(paths) == 1:
        with open_hdf5(paths[0], kind) as file:
            yield file
        return
    with ExitStack() as stack:
        parts = [stack.enter_context(open_hdf5(path, kind)) for path in paths]
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
