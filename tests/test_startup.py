"""No command pays for packages that it does not use: what is imported before it works."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "accelerate", "sklearn", "scipy", "sympy"}
DRAWING = {"matplotlib", "pandas", "PIL"}
FILES = {"h5py", "requests"}
CASES = {
    "gapinit": HEAVY | DRAWING | FILES | {"numpy", "pydantic", "typer"},
    "gapinit.cli": HEAVY | DRAWING | FILES | {"numpy", "pydantic"},
    # The Snakefile reads these at every parse.
    "gapinit.workflow.plan gapinit.workflow.shared_jobs gapinit.data.downloads": HEAVY
    | DRAWING
    | {"numpy"},
    "gapinit.data.dataset": HEAVY | {"matplotlib", "pandas", "h5py"},
    "gapinit.gap.gap_file": HEAVY | DRAWING,
    "gapinit.gap.layers": HEAVY | DRAWING | {"pydantic"},
    "gapinit.evaluate.metrics.captions pycocoevalcap.bleu.bleu_scorer": HEAVY | DRAWING | FILES,
    "gapinit.evaluate.metrics.vqa": HEAVY | DRAWING | FILES,
    "gapinit.evaluate.metrics.pope": HEAVY | DRAWING | FILES,
    "gapinit.tables.table": HEAVY | DRAWING | FILES,
    "gapinit.tables.claims": HEAVY | DRAWING | FILES,
    "gapinit.report.page": HEAVY | {"matplotlib", "pandas"} | FILES,
    "gapinit.figures.figure1a": HEAVY,
    "gapinit.figures.figure4": HEAVY,
    "gapinit.workflow.progress_line": HEAVY | DRAWING | FILES,
    # Image features and states need no adapter.
    "gapinit.states.states gapinit.backbones.blip2": {"peft", "pandas", "matplotlib", "sklearn"},
    "gapinit.train.trunk.write gapinit.backbones.blip2": {
        "peft",
        "pandas",
        "matplotlib",
        "sklearn",
    },
    "gapinit.evaluate.predict gapinit.backbones.blip2": {"peft", "pandas", "matplotlib", "sklearn"},
    "gapinit.train.train": {"pandas", "matplotlib", "sklearn"},
}


@pytest.mark.parametrize("modules", CASES)
def test_what_is_not_imported(modules: str) -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {modules.split()!r}: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not CASES[modules] & set(done.stdout.split())
