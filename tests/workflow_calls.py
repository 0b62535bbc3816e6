"""Calls of Snakemake on this workflow, and a small folder of photographs for it to read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gapinit.data.scenes.settings import ScenesSettings
from gapinit.data.scenes.write import make_scenes

ROOT = Path(__file__).parent.parent
SNAKEMAKE = Path(sys.executable).parent / "snakemake"
TEST = ("--configfile", str(ROOT / "config/test.yaml"))


def snakemake(
    folder: Path,
    *arguments: str,
    expect: int = 0,
    snakefile: Path = ROOT / "Snakefile",
    **environment: str,
) -> str:
    """Run a workflow from `folder`, which holds its results and Snakemake's own records."""
    done = subprocess.run(
        [str(SNAKEMAKE), "--snakefile", str(snakefile), "--cores", "2", *arguments],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == expect, output[-6000:]
    return output


def make_photographs(folder: Path) -> Path:
    """Write a small folder in the COCO layout."""
    settings = {
        "name": "photographs",
        "generator": "scenes",
        "layout": "coco",
        "domain": "outdoor",
        "seed": 5,
        "images": {"train": 52, "val": 2, "test": 8},
    }
    make_scenes(ScenesSettings.model_validate(settings), folder)
    return folder
