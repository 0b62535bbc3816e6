"""Run the workflow as a user does, watch which stage runs, and compare what two runs leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
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
    "configuration": "tables",
    "table": "tables",
    "runs": "tables",
    "claims": "tables",
    "figure": "figures",
    "report": "figures",
}
"""Command of `gapinit` -> stage."""
NOT_COMPARED = re.compile(
    r"(^|/)(logs|benchmarks)/|process\.json$|costs\.csv$|\.(pdf|png|svg|html)$|\.sha256(-read)?$|"
    r"\.snakemake_timestamp$"
)
RESUMED = re.compile(r"resum|taken up|goes on (from|at|behind)|go on (from|at)", re.IGNORECASE)


OFTEN = "training:\n  checkpoint_steps: 4\n  epochs: 5\n"
"""On top of the small grid, whose runs are too short to be killed on the way."""


def command(folder: Path, *arguments: str, cores: int = 2) -> list[str]:
    """Return the command of the README, on the small grid."""
    often = folder / "often.yaml"
    often.write_text(OFTEN, encoding="utf-8")
    return [
        str(SNAKEMAKE), *arguments, "--snakefile", str(ROOT / "Snakefile"), "--cores", str(cores),
        "--configfile", str(ROOT / "config/test.yaml"), str(often),
    ]  # fmt: skip


def start(folder: Path, log: Path, *arguments: str, cores: int = 2) -> subprocess.Popen[bytes]:
    """Start the workflow in a process group of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command(folder, *arguments, cores=cores),
            cwd=folder, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1"}, start_new_session=True,
        )  # fmt: skip


def finish(folder: Path, log: Path, *arguments: str, cores: int = 2) -> int:
    """Run the workflow to its end and return its exit status."""
    return start(folder, log, *arguments, cores=cores).wait()


def processes(group: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the processes of a process group with their command lines."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.getpgid(int(entry)) != group:
                continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                yield int(entry), file.read().decode(errors="replace").split("\0")
        except OSError:
            continue


def running(group: int) -> list[str]:
    """Return the stages that a group's jobs are in."""
    found = []
    for _, words in processes(group):
        if words[1:3] != ["-m", "gapinit"]:
            continue
        rest = words[5:] if words[3:4] == ["--log-file"] else words[3:]
        if rest and rest[0] in STAGES:
            found.append(STAGES[rest[0]])
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the whole process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Java has a group of its own; it ends when nobody reads it any more.
    end = time.monotonic() + 5
    while time.monotonic() < end and any(processes(process.pid)):
        time.sleep(0.05)


def incomplete(folder: Path) -> set[str]:
    """Return the outputs of jobs that Snakemake knows it did not see end."""
    found = set()
    for path in (folder / ".snakemake/incomplete").glob("*/**/*"):
        if path.is_file():
            found.add(_decoded("".join(path.relative_to(folder / ".snakemake/incomplete").parts)))
    for path in (folder / ".snakemake/incomplete").glob("*"):
        if path.is_file() and path.name != "migration_underway":
            found.add(_decoded(path.name))
    return found


def _decoded(name: str) -> str:
    for text in (name, name.replace("@", "")):
        try:
            return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_").decode()
        except (ValueError, UnicodeDecodeError):
            continue
    return name


def committed(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of every file under a final name whose job was seen to end."""
    begun = incomplete(folder)
    found = {}
    for path in (folder / "results").rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name.startswith(".") or ".partial" in name:
            continue
        if NOT_COMPARED.search(name):
            continue
        # A job's files beside its outputs are begun when those are.
        if any(name == one or Path(name).is_relative_to(Path(one).parent) for one in begun):
            continue
        status = path.stat()
        found[name] = (status.st_ino, status.st_mtime_ns)
    return found


def differences(one: Path, other: Path) -> tuple[int, list[str]]:
    """Compare what two runs left, byte for byte; return how many files, and what differs.

    What a run took stands in `process.json` and `costs.csv`, and they are left out.
    """
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


def resumptions(lines: Sequence[str]) -> int:
    """Count the lines in which a stage says that it goes on where it was killed."""
    return sum(1 for line in lines if RESUMED.search(line))
