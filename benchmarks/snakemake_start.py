"""Time of Snakemake for a finished default grid, and for a dry run of the paper's grid.

If the default grid is not finished, its dry run is measured instead, and the table says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Result, Spread, Target, seconds

REPOSITORY = Path(__file__).parent.parent
TURNS = 3


def call(*options: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on this workflow; a failure ends the program with its output."""
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"),
        "--directory", str(folder), "--cores", str(os.cpu_count()), "--scheduler", "greedy",
        *options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done


def main() -> None:
    """Time both calls a few times."""
    targets, notes = [], []
    paper = str(REPOSITORY / "config" / "paper.yaml")
    dry = [
        seconds(lambda: call("-n", "--quiet", "all", "--configfile", paper)) for _ in range(TURNS)
    ]
    finished = (REPOSITORY / "results" / "scenes" / "report.html").is_file()
    if finished:
        idle = [seconds(lambda: call("--quiet", "all")) for _ in range(TURNS)]
        told = call().stdout + call().stderr
        if "Nothing to be done" not in told:
            raise SystemExit("the default grid is not finished: run `make all` first")
        targets.append(
            Target("no-op snakemake on the default grid", "-", Spread(idle), "at most", 5.0, "s")
        )
    else:
        default = [seconds(lambda: call("-n", "--quiet", "all")) for _ in range(TURNS)]
        notes.append(
            f"The default grid is not finished here; its dry run took {min(default):.1f} s at best."
        )
        targets.append(
            Target(
                "no-op snakemake on the default grid",
                "-",
                Spread(default),
                "at most",
                5.0,
                "s",
                scale="dry run: the grid is not there",
            )
        )
    targets.append(Target("-n on the paper grid", "-", Spread(dry), "at most", 15.0, "s"))
    Result("snakemake_start", targets, {}, {"turns": TURNS}, notes).write()


if __name__ == "__main__":
    main()
