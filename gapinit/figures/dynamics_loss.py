"""The dynamics study's curves: training loss of every initialisation, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gapinit.figures.curves import draw_curves


def draw(runs: Sequence[Path], output: Path) -> None:
    """Draw the training loss over the steps, a line a method; inputs and files as `curves.draw`.

    Source: Baek et al., "Understanding LoRA Finetuning Dynamics within Vision Language Models",
    figures 3 to 6.
    """
    draw_curves(runs, output, ("loss",))
