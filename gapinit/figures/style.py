"""Sizes, colours and file formats of all figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.artifacts.artifacts import atomic_file
from gapinit.tables.records import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_WIDTH = 3.25
"""Inches: one column of a two-column page."""
TEXT_WIDTH = 6.75
"""Inches: both columns."""

# Okabe and Ito's palette, distinct under every common colour vision deficiency.
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#8C8C8C"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY_BLUE, BLACK, YELLOW)

GAP_INIT = GREEN
RANDOM = VERMILION
VISION = BLUE
TEXT = ORANGE

_RC: Any = {
    "axes.edgecolor": "#333333",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "savefig.facecolor": "white",
    # A fixed salt: otherwise the element ids in an SVG are random.
    "svg.hashsalt": "gapinit",
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}

# No dates and no program versions, so that the same data give the same bytes.
_FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 200},
    "svg": {"metadata": {"Date": None, "Creator": None}},
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Apply the style to all figures that are made and saved within the block."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def panels(
    columns: int = 1, *, rows: int = 1, width: float = COLUMN_WIDTH, height: float = 2.3
) -> tuple[Figure, list[Axes]]:
    """Make a figure with `columns` panels side by side, row by row; sizes in inches.

    `height` is that of one row. Needs no display.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def save(figure: Figure, output_stem: Path) -> None:
    """Write the figure as `<stem>.pdf`, `<stem>.png` (200 dots per inch) and `<stem>.svg`.

    Each file appears whole or not at all; the same figure gives the same bytes.
    """
    for suffix, options in _FORMATS.items():
        with atomic_file(_with_suffix(output_stem, suffix)) as temporary:
            figure.savefig(temporary, format=suffix, **options)


def write_numbers(output_stem: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Write the numbers that a figure shows as `<stem>.csv`, a column per entry of `columns`.

    All columns have one length; None becomes an empty field; floats keep all their digits.
    """
    lines = ([_field(value) for value in row] for row in zip(*columns.values(), strict=True))
    write_csv(_with_suffix(output_stem, "csv"), columns, lines)


def _with_suffix(stem: Path, suffix: str) -> Path:
    stem = Path(stem)
    return stem.with_name(f"{stem.name}.{suffix}")


def _field(value: Any) -> Any:
    """Turn a NumPy number into a Python number, which prints all its digits and no type."""
    return value.item() if hasattr(value, "item") else value
