"""Finished runs and checkpoints of a training process that has not ended yet.

They are stored in folders `.partial-...` beside the outputs: Snakemake deletes the outputs of a
killed job but not these folders. A seal in each folder identifies its run, recipe and inputs; a
folder is reused only if its seal matches and its files have their recorded checksums.
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
    """Write a folder's identity and the checksums of its files into it."""
    write_json(folder / _SEAL, {"identity": identity}, recorded=False)
    record_folder(folder)


def sealed(folder: Path, identity: str) -> bool:
    """Return whether a folder has the seal `identity` and exactly the sealed files."""
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
    """Return the folder of a finished run until all runs of its process are finished."""
    return output.parent / f"{_PREFIX}{output.name}-{identity[:16]}"


def checkpoints_of(output: Path, identity: str) -> Path:
    """Return the folder of the checkpoints of the run that is written to `output`."""
    return output.parent / f"{_PREFIX}{output.name}-checkpoints-{identity[:16]}"


def publish(place: Path, output: Path) -> None:
    """Link or copy a finished run to its final folder; `place` remains."""
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
    """Delete an output's `.partial-...` folders, those of earlier trainings included."""
    for path in output.parent.glob(f"{_PREFIX}{escape(output.name)}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not is_record(path)]
