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
from gapinit.artifacts.digests import is_record, require_folder_unaltered
from gapinit.errors import GapinitError

_SEAL = "seal.json"
_PREFIX = ".partial-"


def seal(folder: Path, identity: str) -> None:
    """Write into a folder of `atomic_folder` what it belongs to."""
    write_json(folder / _SEAL, {"identity": identity})


def sealed(folder: Path, identity: str) -> bool:
    """Return whether a folder belongs to `identity`, and holds what was written."""
    try:
        if read_json(folder / _SEAL) != {"identity": identity}:
            return False
        require_folder_unaltered(folder)
    except GapinitError:
        return False
    return True


def place_of(output: Path, identity: str) -> Path:
    """Return where a finished run waits for the others of its process."""
    return output.parent / f"{_PREFIX}{output.name}-{identity[:16]}"


def checkpoints_of(output: Path, identity: str) -> Path:
    """Return the folder of the checkpoints of runs, the first of which is written to `output`."""
    return output.parent / f"{_PREFIX}{output.name}-checkpoints-{identity[:16]}"


def publish(place: Path, output: Path) -> None:
    """Put a finished run under its final name, and leave it where it waits, too."""
    with atomic_folder(output) as folder:
        for path in place.rglob("*"):
            if path.is_dir() or is_record(path) or path == place / _SEAL:
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
