"""Peak memory of the stages `states` and `trunk` at N = 256 and N = 4,096, one process each.

The backbone is small and random, so that its weights do not hide growth with N.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Result, Spread, Target
from benchmarks.scaled import write_small_world

SIZES = (256, 4096)
STAGES = {
    "states": ["--pairs", "{n}", "--batch-size", "64"],
    "trunk": ["--layers", "{world}/layers.json", "--strategy", "naive"],
}
# Runs the stage, then prints the peak memory of this process.
PROGRAM = (
    "import resource, sys; from gapinit.cli import main; code = 0\n"
    "try: main()\n"
    "except SystemExit as stopped: code = stopped.code or 0\n"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
)


def peak_mb(stage: str, world: Path, size: int) -> float:
    """Return the peak memory of a stage on `size` images, in MB."""
    options = [option.format(n=size, world=world) for option in STAGES[stage]]
    done = subprocess.run(
        [
            sys.executable, "-c", PROGRAM, stage, "--backbone", str(world / "backbone"),
            "--manifest", str(world / f"data/manifest-{size}.json"),
            "--output", str(world / f"{stage}-{size}.h5"), *options,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{stage}, N = {size}: {done.stderr}")
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    """Measure both stages at both sizes."""
    measured: dict[str, Spread | float | int | str] = {}
    growth = []
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        write_small_world(world, SIZES)
        for stage in STAGES:
            small, large = (peak_mb(stage, world, size) for size in SIZES)
            measured |= {
                f"MB, {stage}, N = {n}": mb for n, mb in zip(SIZES, (small, large), strict=True)
            }
            measured[f"growth, {stage}"] = large / small
            growth.append(large / small)
    Result(
        "memory",
        [
            Target(
                "peak memory, states and trunk, N = 256 to 4,096: growth (the larger)",
                "the same at N = 256",
                Spread([max(growth)]),
                "at most",
                1.1,
                scale="a small random BLIP-2",
            )
        ],
        measured,
        {"sizes": list(SIZES)},
    ).write()


if __name__ == "__main__":
    main()
