"""Where a training leaves what is done so far, until all of it is: finished runs, checkpoints.

A folder beside the outputs, `.partial-...`: Snakemake deletes the outputs of a job that was killed
and knows nothing of this. What lies there is taken up again only if it is whole and of the very
same run, recipe and inputs, which its seal says: an identity and the SHA-256 of every file.
"""

from __future__ import annotations

import os
import shutil
from glob import escape
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_folder, read_json, sha256, write_json
from gapinit.artifacts.digests import is_record
from gapinit.errors import GapinitError

_SEAL = "seal.json"
_PREFIX = ".partial-"


def seal(folder: Path, identity: str) -> None:
    """Say in a folder what it belongs to and what is in it; the last thing written into it."""
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    write_json(
        folder / _SEAL,
        {"identity": identity, "files": {one: sha256(folder / one) for one in names}},
    )


def sealed(folder: Path, identity: str) -> bool:
    """Return whether a folder belongs to `identity`, and holds just what was sealed."""
    try:
        content = read_json(folder / _SEAL)
    except GapinitError:
        return False
    if not isinstance(content, dict) or content.get("identity") != identity:
        return False
    files = content.get("files")
    paths = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    paths.pop(_SEAL)
    return isinstance(files, dict) and files == {name: sha256(one) for name, one in paths.items()}


def place_of(output: Path, identity: str) -> Path:
    """Return where a finished run waits for the others of its process."""
    return output.parent / f"{_PREFIX}{output.name}-{identity[:16]}"


def checkpoints_of(output: Path, identity: str) -> Path:
    """Return where the checkpoints of runs lie, the first of which is written to `output`."""
    return output.parent / f"{_PREFIX}{output.name}-checkpoints-{identity[:16]}"


def publish(place: Path, output: Path) -> None:
    """Put a finished run under its final name, and leave it where it waits, too."""
    with atomic_folder(output) as folder:
        for path in _files(place):
            if path.name == _SEAL and path.parent == place:
                continue
            target = folder / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, target)


def clear(output: Path) -> None:
    """Remove all that waits for an output or was left of earlier trainings to it."""
    for path in output.parent.glob(f"{_PREFIX}{escape(output.name)}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not is_record(path)]
