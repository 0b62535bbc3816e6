"""Run the workflow as a user does, watch which stage runs, and compare what two runs leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "data": "data",
    "backbone": "backbone",
    "states": "states",
    "gap": "gap",
    "layers": "gap",
    "trunk": "trunk",
    "train": "train",
    "features": "predict",
    "predict": "predict",
    "score": "score",
    "table": "tables",
    "runs": "tables",
    "claims": "tables",
    "figure": "figures",
    "report": "figures",
}
"""Command of `gapinit` -> stage."""
NOT_COMPARED = re.compile(
    r"(^|/)(logs|benchmarks)/|process\.json$|costs\.csv$|\.(pdf|png|svg|html)$|\.sha256$|"
    r"\.snakemake_timestamp$|\.partial"
)
"""Files that say what a run took, or that hold the time of their making."""
SETTINGS = """\
backbones: {}
experiments: [test-captioning]
figures: [figure1a, figure2]
shards: {states: 2, trunk: 2}
training: {checkpoint_steps: 4, epochs: 5}
"""
"""On top of the small grid: one experiment, whose runs are long enough to be killed on the way."""


def start(folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the workflow in a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.yaml"
    settings.write_text(SETTINGS, encoding="utf-8")
    command = [
        str(Path(sys.executable).parent / "snakemake"), *arguments, "--cores", "2",
        "--snakefile", str(ROOT / "Snakefile"),
        "--configfile", str(ROOT / "config/test.yaml"), str(settings),
    ]  # fmt: skip
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(folder: Path, log: Path, *arguments: str) -> int:
    """Run the workflow to its end and return its exit status."""
    return start(folder, log, *arguments).wait()


def _processes(group: int) -> Iterator[list[str]]:
    """Yield the command lines of a process group."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.getpgid(int(entry)) == group:
                with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as file:
                    yield file.read().split("\0")


def running(group: int) -> set[str]:
    """Return the stages that a group's jobs are in."""
    found = set()
    for words in _processes(group):
        if words[1:3] == ["-m", "gapinit"]:
            rest = words[5:] if words[3:4] == ["--log-file"] else words[3:]
            found.add(STAGES.get(rest[0] if rest else "", ""))
    return found - {""}


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Java has a group of its own; it ends when nobody reads it any more.
    end = time.monotonic() + 5
    while time.monotonic() < end and any(_processes(process.pid)):
        time.sleep(0.05)


def committed(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every file whose job Snakemake saw end."""
    marks = folder / ".snakemake/incomplete"
    begun = {
        _decoded("".join(path.relative_to(marks).parts).replace("@", ""))
        for path in marks.rglob("*")
        if path.is_file() and path.name != "migration_underway"
    }
    found = {}
    for path in (folder / "results").rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or NOT_COMPARED.search(name):
            continue
        # A job's files beside its outputs are begun when those are.
        if any(name == one or Path(name).is_relative_to(Path(one).parent) for one in begun):
            continue
        status = path.stat()
        found[name] = (status.st_ino, status.st_mtime_ns)
    return found


def _decoded(name: str) -> str:
    """Return the output that a mark of Snakemake's is for."""
    return b64decode(name + "=" * (-len(name) % 4), altchars=b"-_").decode()


def differences(one: Path, other: Path) -> tuple[int, list[str]]:
    """Compare what two runs left, byte for byte; return how many files, and what differs."""
    names = [
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not NOT_COMPARED.search(path.relative_to(folder).as_posix())
        }
        for folder in (one, other)
    ]
    found = [f"only one run has {name}" for name in sorted(names[0] ^ names[1])]
    both = sorted(names[0] & names[1])
    found += [name for name in both if (one / name).read_bytes() != (other / name).read_bytes()]
    return len(both), found
