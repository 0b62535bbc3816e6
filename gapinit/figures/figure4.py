"""Figure 4: the cone effect, each modality's states against its own mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gapinit.figures import style
from gapinit.gap.gap_file import read_gap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40
BAND = (5, 95)


def draw(gap: Path, output: Path) -> None:
    """Draw the cosine between the centred states of each modality and their mean.

    The states are centred by the mean over both modalities. The left panel shows the distribution
    of the cosine in the top layer, the right panel its mean and the band from the 5th to the 95th
    percentile in every layer.

    Reads a gap artifact; writes `<output>.pdf`, `.png`, `.svg` and `.csv` (the distribution's bins
    and, below, the layers; a column that does not apply is empty).

    Source: Zhao et al., "When Is Rank-1 Enough?", section 3.3 and figure 4.
    """
    content = read_gap(gap)
    count = len(content.gap)
    shown = count - 1
    cosines = {"vision": content.vision_cosine, "text": content.text_cosine}
    lowest = min(float(values[shown].min()) for values in cosines.values())
    # The bins start at the lowest cosine, rounded down to a tenth.
    edges = np.linspace(max(-1.0, np.floor(10 * min(lowest, 0.0)) / 10), 1.0, BINS + 1)
    shares = {
        name: np.histogram(values[shown], edges)[0] / values.shape[1]
        for name, values in cosines.items()
    }
    means = {name: values.mean(axis=1) for name, values in cosines.items()}
    bands = {name: np.percentile(values, BAND, axis=1) for name, values in cosines.items()}

    with style.paper_style():
        figure, (left, right) = style.panels(2, width=style.TEXT_WIDTH, height=2.4)
        _draw_shares(left, edges, shares, means, shown)
        _draw_layers(right, means, bands)
        style.save(figure, output)

    empty_bins, empty_layers = [None] * BINS, [None] * count
    columns: dict[str, Sequence[object]] = {
        "panel": ["distribution"] * BINS + ["layers"] * count,
        "layer": [shown] * BINS + list(range(count)),
        "cosine_from": [*edges[:-1], *empty_layers],
        "cosine_to": [*edges[1:], *empty_layers],
    }
    for name in cosines:
        columns[f"{name}_share"] = [*shares[name], *empty_layers]
        columns[f"{name}_mean"] = [*empty_bins, *means[name]]
        columns[f"{name}_p{BAND[0]}"] = [*empty_bins, *bands[name][0]]
        columns[f"{name}_p{BAND[1]}"] = [*empty_bins, *bands[name][1]]
    style.write_numbers(output, columns)


def _draw_shares(
    axes: Axes,
    edges: np.ndarray,
    shares: dict[str, np.ndarray],
    means: dict[str, np.ndarray],
    layer: int,
) -> None:
    for name, colour in (("vision", style.VISION), ("text", style.TEXT)):
        axes.stairs(
            shares[name],
            edges,
            fill=True,
            color=colour,
            alpha=0.5,
            label=f"{name} (mean {means[name][layer]:.2f})",
        )
    axes.set_title(f"Decoder layer {layer}")
    axes.set_xlabel("cosine to the modality's mean, centred")
    axes.set_ylabel("share of states per bin")
    # Room for the legend above the highest bar.
    axes.set_ylim(0, 1.3 * max(float(share.max()) for share in shares.values()))
    axes.legend(loc="upper left")


def _draw_layers(axes: Axes, means: dict[str, np.ndarray], bands: dict[str, np.ndarray]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, colour in (("vision", style.VISION), ("text", style.TEXT)):
        layer = np.arange(len(means[name]))
        axes.plot(layer, means[name], color=colour, marker="o", markersize=2.5, label=name)
        axes.fill_between(layer, *bands[name], color=colour, alpha=0.2, linewidth=0)
    axes.set_title(f"Every layer: mean, {BAND[0]}th to {BAND[1]}th percentile")
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("cosine")
    axes.set_ylim(top=1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
