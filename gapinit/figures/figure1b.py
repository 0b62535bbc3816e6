"""Figure 1b: VQAv2 accuracy of every method, measured here beside the published number."""

from __future__ import annotations

from pathlib import Path

from gapinit.figures.bars import draw_bars


def draw(table: Path, output: Path, *, metric: str = "VQAv2_accuracy") -> None:
    """Draw one pair of bars a row of a table's CSV file: published and measured.

    Source: Zhao et al., "When Is Rank-1 Enough?", figure 1(b).
    """
    draw_bars(table, output, metric)
