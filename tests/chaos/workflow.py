"""Faults of the whole workflow: what Snakemake meets before any stage of gapinit does."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from .disks import disk
from .grid import finish

MANIFEST = "results/1_data/scenes-test-pretraining/manifest.json"
BACKBONE = "results/1_backbones/mini-blip2-test"


def told(folder: Path, target: str, *words: str) -> str | None:
    """Return what is wrong with how a call ends that may fail with these words; None: nothing."""
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    if finish(folder, log, target) == 0:
        return None
    said = log.read_text(encoding="utf-8", errors="replace")
    lacking = [word for word in words if word not in said]
    if "Traceback" in said:
        lacking.append("an end without a traceback")
    return f"lacks {lacking}: {said[-1500:]}" if lacking or not words else None


def faults(scratch: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the faults that were tried, and what was wrong with how each ended."""
    scratch.mkdir(parents=True, exist_ok=True)
    yield "the workflow into a read-only results folder", _read_only(scratch / "read only")
    yield "the workflow after its clock was set back", _clock(scratch / "clock")


def _read_only(folder: Path) -> str | None:
    with disk(folder / "results") as place:
        if place is None:
            return None  # a folder of the superuser's is always writable
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        problem = told(folder, MANIFEST, "results", "ead-only")
        if (folder / MANIFEST).exists():
            problem = "something was written"
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        return problem or told(folder, MANIFEST)


def _clock(folder: Path) -> str | None:
    """Let a clock be set back by a day between two stages, then be put right."""
    problem = told(folder, MANIFEST)
    content = (folder / MANIFEST).read_bytes()
    _date(folder / "results", time.time() + 86_400)
    problem = problem or told(folder, BACKBONE, "older", "manifest.json")
    _date(folder / "results", time.time() - 60)
    problem = problem or told(folder, BACKBONE)
    if problem is None and (folder / MANIFEST).read_bytes() != content:
        problem = "another manifest"
    return problem


def _date(folder: Path, when: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (when, when))
