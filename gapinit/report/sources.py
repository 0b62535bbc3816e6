"""The sources of a report: code, machine, digests of its inputs, and the papers' numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gapinit.artifacts.artifacts import sha256
from gapinit.config.versions import VERSIONS
from gapinit.tables.published import (
    Contradiction,
    PublishedSetting,
    contradictions,
    read_paper,
    read_settings,
)


class Paper(NamedTuple):
    """The settings that one paper prints, and its contradictions."""

    name: str
    contradictions: list[Contradiction]
    settings: list[PublishedSetting]


def read_papers(folder: Path, names: Sequence[str]) -> list[Paper]:
    """Read settings and contradictions of the named papers from the folder of their numbers."""
    return [
        Paper(name, contradictions(read_paper(folder, name)), read_settings(folder, name))
        for name in dict.fromkeys(names)
    ]


def machine() -> dict[str, str]:
    """Describe the machine and the stage versions, without the machine's name or paths."""
    return {
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "CPU cores": str(os.cpu_count() or 1),
        "stage versions": ", ".join(f"{stage} {version}" for stage, version in VERSIONS.items()),
    }


def digests(paths: Sequence[Path], root: Path) -> Mapping[str, str]:
    """Return the SHA-256 of files by name; names of files below `root` are relative to it."""
    found = {}
    for path in paths:
        inside = path.resolve().is_relative_to(root.resolve())
        name = path.resolve().relative_to(root.resolve()) if inside else Path(path.name)
        found[name.as_posix()] = sha256(path)
    return found


def source_commit() -> str | None:
    """Return the commit of the code and whether it has local changes; None outside git."""
    folder = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(folder)]
    try:
        head = _output(*git, "rev-parse", "HEAD")
        changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + (" and local changes" if changed else "")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
