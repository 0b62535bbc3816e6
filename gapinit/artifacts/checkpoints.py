"""Where a training keeps what is done until all of it is: finished runs and checkpoints.

They lie in folders beside the outputs, `.partial-...`: Snakemake deletes the outputs of a killed
job, and does not know these folders. A seal in each says which run, recipe and inputs it belongs
to; a folder is used again only if its seal matches and its files have their recorded checksums.
"""

from __future__ import annotations

import os
import shutil
from glob import escape
from pathlib import Path

from gapinit.artifacts.artifacts import atomic_folder, read_json, write_json
from gapinit.artifacts.digests import (
    LISTING,
    is_record,
    read_listing,
    record_folder,
    require_folder_unaltered,
)
from gapinit.errors import GapinitError

_SEAL = "seal.json"
_PREFIX = ".partial-"


def seal(folder: Path, identity: str) -> None:
    """Write into a folder what it belongs to, and the checksums of its files."""
    write_json(folder / _SEAL, {"identity": identity}, recorded=False)
    record_folder(folder)


def sealed(folder: Path, identity: str) -> bool:
    """Return whether a folder belongs to `identity`, and holds just what was sealed."""
    if not (folder / LISTING).is_file():
        return False
    names = {path.relative_to(folder).as_posix() for path in _files(folder)}
    if names != read_listing(folder / LISTING).keys():
        return False
    try:
        require_folder_unaltered(folder)
        return bool(read_json(folder / _SEAL) == {"identity": identity})
    except GapinitError:
        return False


def place_of(output: Path, identity: str) -> Path:
    """Return where a finished run waits for the others of its process."""
    return output.parent / f"{_PREFIX}{output.name}-{identity[:16]}"


def checkpoints_of(output: Path, identity: str) -> Path:
    """Return the folder of the checkpoints of runs, the first of which is written to `output`."""
    return output.parent / f"{_PREFIX}{output.name}-checkpoints-{identity[:16]}"


def publish(place: Path, output: Path) -> None:
    """Put a finished run under its final name, and leave it where it waits, too."""
    with atomic_folder(output) as folder:
        for path in _files(place):
            if path == place / _SEAL:
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
