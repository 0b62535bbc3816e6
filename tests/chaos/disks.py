"""Disks that are full or read-only while a stage writes to them, and then are not."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .isolated import Outcome, isolated
from .stages import Stage


@contextmanager
def disk(folder: Path, megabytes: int = 64) -> Iterator[Path | None]:
    """Yield a file system of its own, in memory; None where there is no right to mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def size_of(path: Path) -> int:
    """Return how many bytes a file or a folder takes."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in paths if one.is_file())


def refused(outcome: Outcome, output: Path, *words: str) -> str | None:
    """Return what is wrong with how a call ended that had to fail; None: nothing."""
    if outcome.kind != "error":
        return f"{outcome.kind} {outcome.text[-800:]}"
    lacking = [word for word in (output.name, *words) if word not in outcome.text]
    if lacking:
        return f"the message lacks {lacking}: {outcome.text}"
    left = [path for path in output.parent.glob("*") if path.name != "filler"]
    left = [path for path in left if not path.name.startswith(".") and path.name != output.name]
    if output.is_file() or (output / "manifest.json").exists():
        return "something stands under the final name"
    partial = [path for path in output.parent.rglob("*.partial")]
    return f"left behind: {partial}" if partial else None


def full_disk(stage: Stage, folder: Path, share: float) -> str | None:
    """Let a disk fill up after a share of what the stage writes; then free it."""
    usual = folder / "usual"
    usual.mkdir(parents=True)
    first = isolated(lambda: stage.call(usual))
    if first.kind != "result":
        return f"without a fault: {first}"
    need = size_of(usual / stage.output)
    with disk(folder / "disk") as place:
        if place is None:
            return _limited(stage, folder / "limited", need, share)
        free = shutil.disk_usage(place).free
        with (place / "filler").open("wb") as file:
            # Pages of 4 KiB; what the records of digests need comes on top.
            file.write(bytes(max(0, free - int(need * share) // 4096 * 4096)))
        outcome = isolated(lambda: stage.call(place))
        problem = refused(outcome, place / stage.output, "No space left", "run the same command")
        (place / "filler").unlink()
        return problem or _completes(stage, place, usual)


def _limited(stage: Stage, place: Path, need: int, share: float) -> str | None:
    """The same without the right to mount: no file may become larger than a limit."""
    place.mkdir(parents=True)

    def call() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(need * share) // 4, resource.RLIM_INFINITY))
        return stage.call(place)

    outcome = isolated(call)
    return None if outcome.kind in ("error", "result") else f"{outcome.kind}: {outcome.text[-800:]}"


def read_only(stage: Stage, folder: Path) -> str | None:
    """Write into a file system that is read-only, then make it writable."""
    usual = folder / "usual"
    usual.mkdir(parents=True)
    isolated(lambda: stage.call(usual))
    with disk(folder / "disk") as place:
        if place is None:
            return None  # a folder of the superuser's is always writable
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        outcome = isolated(lambda: stage.call(place))
        problem = refused(outcome, place / stage.output, "Read-only", "writable")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        return problem or _completes(stage, place, usual)


def _completes(stage: Stage, place: Path, usual: Path) -> str | None:
    """The same call, after the cause is gone."""
    outcome = isolated(lambda: stage.call(place))
    if outcome.kind != "result":
        return f"does not complete afterwards: {outcome}"
    return same(usual / stage.output, place / stage.output)


PER_PROCESS = ("run.json", "process.json", "report.html", ".sha256")


def same(one: Path, other: Path) -> str | None:
    """Return what two results differ in; None: nothing."""
    pairs = (
        [(one, other)]
        if one.is_file()
        else [(path, other / path.relative_to(one)) for path in one.rglob("*") if path.is_file()]
    )
    for path, again in pairs:
        if path.name not in PER_PROCESS and path.read_bytes() != again.read_bytes():
            return f"{path.name} is another one afterwards"
    return None
