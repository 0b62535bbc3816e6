"""No command pays for packages that it does not use: what is imported before it works."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "accelerate", "sklearn", "scipy", "sympy"}
DRAWING = {"matplotlib", "pandas", "PIL"}
FILES = {"h5py", "requests"}
HELP = """
import sys; sys.argv = ['gapinit', '--help']
from gapinit.cli import main
try: main()
except SystemExit as end: assert not end.code, end.code
"""
SCORING = "captions gapinit.evaluate.metrics.vqa gapinit.evaluate.metrics.pope"
TABLES = "gapinit.tables.table gapinit.tables.claims gapinit.workflow.progress_line"
STAGES = "gapinit.states.states gapinit.train.trunk.write gapinit.evaluate.predict"
# Modules that must not import some packages share a process.
CASES = {
    "gapinit": HEAVY | DRAWING | FILES | {"numpy", "pydantic", "typer"},
    # The Snakefile reads these at every parse.
    "gapinit.workflow.plan gapinit.workflow.shared_jobs gapinit.data.downloads": HEAVY
    | DRAWING
    | {"numpy"},
    "gapinit.data.dataset": HEAVY | {"matplotlib", "pandas", "h5py"},
    "gapinit.gap.gap_file": HEAVY | DRAWING,
    "gapinit.gap.layers": HEAVY | DRAWING | {"pydantic"},
    f"gapinit.evaluate.metrics.{SCORING} pycocoevalcap.bleu.bleu_scorer {TABLES}": HEAVY
    | DRAWING
    | FILES,
    "gapinit.report.page": HEAVY | {"matplotlib", "pandas"} | FILES,
    "gapinit.figures.bars gapinit.figures.figure4": HEAVY,
    # Image features and states need no adapter.
    f"{STAGES} gapinit.backbones.blip2": {"peft", "pandas", "matplotlib", "sklearn"},
    "gapinit.train.train": {"pandas", "matplotlib", "sklearn"},
}
START_SECONDS = 0.5


def imported(code: str) -> set[str]:
    """Return the top-level packages that some code imports in a process of its own."""
    code += "\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("modules", CASES)
def test_what_is_not_imported(modules: str) -> None:
    code = f"import importlib, sys\nfor name in {modules.split()!r}: importlib.import_module(name)"
    assert not CASES[modules] & imported(code)


def test_help_imports_nothing_heavy() -> None:
    assert not (HEAVY | DRAWING | FILES | {"numpy", "pydantic"}) & imported(HELP)


@pytest.mark.parametrize("code", ["import gapinit", HELP])
def test_a_start_takes_under_half_a_second_of_cpu(code: str) -> None:
    def cpu_seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    cpu_seconds()  # the first one may have to compile
    assert statistics.median(cpu_seconds() for _ in range(3)) < START_SECONDS
