"""`python -m benchmarks [NAME ...]`: run the programs one after another, then redraw the table.

Each program runs in its own process with the allocator settings of the workflow's jobs. If one
fails, the others still run; the failed ones are listed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.table import redraw

# In the order of the table. Programs that are not in this checkout are skipped.
PROGRAMS = (
    "train_step",
    "default_grid",
    "spot_gap",
    "states_overhead",
    "scoring",
    "memory",
    "snakemake_start",
    "startup",
)
FOLDER = Path(__file__).parent
# As in the Snakefile: to keep freed memory is much faster than a new mapping for each tensor.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


def main(chosen: list[str]) -> int:
    """Run the named programs (default: all), redraw, and return the number of failures."""
    unknown = sorted(set(chosen) - set(PROGRAMS))
    if unknown:
        print(f"error: no such program: {', '.join(unknown)}; there are: {', '.join(PROGRAMS)}")
        return 1
    failed = []
    for name in chosen or PROGRAMS:
        if not (FOLDER / f"{name}.py").is_file():
            continue
        print(f"== {name}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"],
            cwd=FOLDER.parent,
            env=os.environ | ALLOCATOR | {"TOKENIZERS_PARALLELISM": "false"},
        )
        print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
        if done.returncode:
            failed.append(name)
    redraw(PROGRAMS)
    if failed:
        print(f"error: failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
