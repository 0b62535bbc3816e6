"""Bars of every row of a table: measured here beside the published number (figures 1a, 1b)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gapinit.errors import GapinitError
from gapinit.figures import style
from gapinit.tables.formats import NAMES
from gapinit.tables.records import Measurement, read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = 0.36
"""Thickness of a bar; a row is 1."""


def draw(table: Path, output: Path, *, metric: str) -> None:
    """Draw two bars a row: the published score, and the measured one with its 95 % interval.

    `table` is a table's CSV file. Rows without a published number (the controls) have one bar.
    Writes `<output>.pdf`, `.png`, `.svg` and `.csv` (the numbers drawn, metric in percent).
    `GapinitError` if the table has no row with this metric.

    Source: Zhao et al., "When Is Rank-1 Enough?", figures 1(a) and 1(b).
    """
    lines = read_table(table)
    rows = [line for line in lines if line.metric == metric]
    if not rows:
        found = ", ".join(dict.fromkeys(line.metric for line in lines))
        raise GapinitError(f"{table}: expected rows with the metric '{metric}', found: {found}")
    with style.paper_style():
        figure, (axes,) = style.panels(width=style.TEXT_WIDTH, height=0.8 + 0.36 * len(rows))
        draw_rows(axes, rows)
        axes.set_xlabel(f"{NAMES.get(metric, metric)} (percent)")
        style.save(figure, output)
    columns = ("row", "label", "published", "measured", "interval_low", "interval_high", "n_seeds")
    style.write_numbers(output, {name: [getattr(row, name) for row in rows] for name in columns})


def draw_rows(axes: Axes, rows: list[Measurement]) -> None:
    """Draw the bars from the top down, in the order of the table."""
    published = {
        place: row.published for place, row in enumerate(rows) if row.published is not None
    }
    if published:
        axes.barh(
            [place - BAR / 2 for place in published],
            list(published.values()),
            BAR,
            color="white",
            edgecolor=style.GREY,
            linewidth=0.8,
            hatch="////",
            label="published (the paper's own scale)",
        )
    axes.barh(
        # A row without a published number has its bar in the middle.
        [place + (BAR / 2 if row.published is not None else 0) for place, row in enumerate(rows)],
        [row.measured for row in rows],
        BAR,
        color=[_colour(row) for row in rows],
        label="measured here, 95 % interval",
    )
    for place, row in enumerate(rows):
        height = place + (BAR / 2 if row.published is not None else 0)
        if row.interval:
            axes.hlines(height, row.interval.low, row.interval.high, style.BLACK, linewidth=1.0)
        end = max(row.measured, row.interval.high if row.interval else row.measured)
        axes.annotate(
            f"{row.measured:.1f}", (end, height), (3, 0), textcoords="offset points", va="center",
            fontsize=6.5,
        )  # fmt: skip
    # Labels come from data: a dollar sign must not start a formula.
    axes.set_yticks(range(len(rows)), [row.label.replace("$", r"\$") for row in rows])
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside upper right", ncols=2)


def _colour(row: Measurement) -> str:
    """Return the colour of a row: Gap-Init's own, or that of all other methods."""
    return style.GAP_INIT if any("/gap-init/" in run for run in row.runs) else style.SKY_BLUE
