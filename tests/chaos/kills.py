"""Kill test: the small grid, killed again and again at seeded random moments of every stage.

After each SIGKILL of the whole process group it is started again as a user would (`--unlock`, then
`--rerun-incomplete`), until it is done. Then everything that it made is compared with a run that
nobody disturbed, and nothing that was committed before a kill may have been made again.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .grid import committed, differences, finish, kill, resumptions, running, start

SEED = 60
QUOTAS: Mapping[str, int] = {
    "data": 8,
    "backbone": 12,
    "states": 10,
    "gap": 8,
    "trunk": 10,
    "train": 22,
    "predict": 17,
    "score": 10,
    "tables": 6,
    "figures": 5,
}
"""How often each stage is wanted to be killed. Two jobs run at once: 108 are some 60 kills."""
LASTS = {
    "data": 2.5, "backbone": 12.0, "states": 7.0, "gap": 3.0, "trunk": 9.0, "train": 14.0,
    "predict": 9.0, "score": 5.0, "tables": 4.0, "figures": 5.0,
}  # fmt: skip
"""About how many seconds a job of a stage lasts, imports included."""
POLL = 0.05
UNLOCKED = 3
"""How often `--unlock` is called for itself; later starts take the lock with `--nolock`."""


@dataclass
class Kills:
    """What a kill test found."""

    hit: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    starts: int = 0
    resumed: int = 0
    compared: int = 0
    recomputed: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[str]:
        """Return what was lost, wrong or made twice, a line each."""
        return [*self.recomputed, *self.different, *self.problems]


def kill_test(folder: Path, reference: Path, *, seed: int, minutes: float) -> Kills:
    """Kill a run in `folder` until `QUOTAS` are met, let it end, and compare with `reference`.

    After `minutes` it is killed no more.
    """
    found, draw, log = Kills(), random.Random(seed), folder / "snakemake.log"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    before: dict[str, tuple[int, int]] = {}
    while True:
        arguments = ["--rerun-incomplete"] if found.starts else []
        if found.starts == 1:
            _lock_is_told(folder, found, "after a kill")
        if 0 < found.starts <= UNLOCKED:
            finish(folder, log, "--unlock")
        elif found.starts:
            arguments.append("--nolock")
        written = log.stat().st_size if log.exists() else 0
        process = start(folder, log, *arguments)
        found.starts += 1
        # Not the first start: its data would be done before anything is killed.
        if found.starts == 2:
            _second_is_refused(folder, process, found)
        more = time.monotonic() - began < 60 * minutes
        struck = _strike(process.pid, QUOTAS if more else {}, found.hit, draw, process)
        kill(process) if struck else process.wait()
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(written)
            said = file.read().splitlines()
        found.resumed += resumptions(said)
        _look_for_remakes(folder, before, found)
        if not struck:
            if process.returncode != 0:
                found.problems.append(
                    f"start {found.starts} ended with {process.returncode}: "
                    + " / ".join(said[-15:])
                )
            break
        found.kills += 1
        if found.kills % 10 == 0:
            print(f"kills so far: {found.kills}, gone on from: {found.resumed}", flush=True)
        found.hit.update(dict.fromkeys(struck, 1))
        before |= committed(folder)
        if time.monotonic() - began > 120 * minutes:
            found.problems.append("not done in twice the time")
            break
    found.compared, found.different = differences(reference / "results", folder / "results")
    found.seconds = time.monotonic() - began
    return found


def _second_is_refused(folder: Path, process: subprocess.Popen[bytes], found: Kills) -> None:
    """A second Snakemake on one folder has to stop, and the first has to go on."""
    end = time.monotonic() + 120
    while not running(process.pid) and process.poll() is None and time.monotonic() < end:
        time.sleep(POLL)
    log = folder / "second.log"
    status = finish(folder, log)
    said = log.read_text(errors="replace")
    # Where a running job has begun to write, Snakemake asks about that before it meets the lock.
    if status == 0 or ("--unlock" not in said and "--rerun-incomplete" not in said):
        found.problems.append(f"two at once: nothing is told ({status})")
    _lock_is_told(folder, found, "two at once")
    if process.poll() not in (None, 0):
        found.problems.append("the first Snakemake ended when a second one came")


def _lock_is_told(folder: Path, found: Kills, when: str) -> None:
    """A start that would make everything again meets the lock, and says how that is removed."""
    log = folder / "locked.log"
    log.unlink(missing_ok=True)
    status = finish(folder, log, "--rerun-incomplete")
    if status == 0 or "--unlock" not in log.read_text(errors="replace"):
        found.problems.append(f"{when}: the lock is not told ({status})")


def _strike(
    group: int,
    quotas: Mapping[str, int],
    hit: Counter[str],
    draw: random.Random,
    process: object,
) -> set[str]:
    """Wait for a stage that is to be killed, then for a moment within it; return what then runs.

    Empty: the run came to its end. A kill between two jobs counts as one of no stage.
    """
    poll = process.poll  # type: ignore[attr-defined]
    while poll() is None:
        wanted = [stage for stage in running(group) if hit[stage] < quotas.get(stage, 0)]
        if not wanted:
            time.sleep(POLL)
            continue
        # What was killed least comes first: stages that are over in seconds are missed otherwise.
        goal = min(sorted(set(wanted)), key=lambda stage: hit[stage] / quotas[stage])
        end = time.monotonic() + draw.uniform(0.0, 0.9) * LASTS[goal]
        while time.monotonic() < end and poll() is None:
            # A stage that is about to be over is struck rather than missed.
            if goal not in running(group):
                break
            time.sleep(POLL)
        if poll() is not None:
            return set()
        struck = set(running(group))
        if struck & set(wanted):
            return struck
    return set()


def _look_for_remakes(folder: Path, before: dict[str, tuple[int, int]], found: Kills) -> None:
    """Note what was committed at an earlier kill and is another file now."""
    for name, (inode, changed) in list(before.items()):
        path = folder / name
        if not path.exists():
            found.recomputed.append(f"{name}: gone after it was committed")
            del before[name]
            continue
        status = path.stat()
        if (status.st_ino, status.st_mtime_ns) != (inode, changed):
            found.recomputed.append(f"{name}: made again after it was committed")
            del before[name]
