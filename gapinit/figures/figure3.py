"""Figure 3: spectrum of the per-sample gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gapinit.figures import style
from gapinit.gap.gap_file import read_gap
from gapinit.gap.geometry import explained_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED_LEADING_SHARE = 0.16
"""Zhao et al., section 3.2: the leading direction's share "in our analysis", about 16 %."""


def draw(gap: Path, output: Path) -> None:
    """Draw the share of each singular direction of the per-sample gaps.

    The left panel shows the gaps as measured (shares of the second moment), the right panel the
    centred gaps (shares of the variance): the paper does not say to which its 16 % refers. Both
    show a lower, a middle and the top decoder layer.

    Reads a gap artifact; writes `<output>.pdf`, `.png`, `.svg` and `.csv`.

    Source: Zhao et al., "When Is Rank-1 Enough?", figure 3.
    """
    content = read_gap(gap)
    count = len(content.gap)
    # ASSUME: the paper names no layer for its figures 3 and 4.
    chosen = sorted({count // 4, count // 2, count - 1})
    shares = {
        "as measured": explained_share(content.singular_values),
        "mean taken off": explained_share(content.singular_values_centred),
    }
    with style.paper_style():
        figure, axes = style.panels(2, width=style.TEXT_WIDTH, height=2.5)
        for panel, (title, share) in zip(axes, shares.items(), strict=True):
            _draw_panel(panel, share, chosen)
            panel.set_title(f"Per-sample gaps, {title}")
        axes[0].set_ylabel("share of the total (%)")
        style.save(figure, output)

    as_measured, centred = shares.values()
    components = as_measured.shape[1]
    style.write_numbers(
        output,
        {
            "layer": [layer for layer in chosen for _ in range(components)],
            "component": [index + 1 for _ in chosen for index in range(components)],
            "share": np.concatenate([as_measured[layer] for layer in chosen]),
            "share_centred": np.concatenate([centred[layer] for layer in chosen]),
            "published_leading_share": [
                PUBLISHED_LEADING_SHARE if index == 0 else None
                for _ in chosen
                for index in range(components)
            ],
        },
    )


def _draw_panel(axes: Axes, share: np.ndarray, layers: Sequence[int]) -> None:
    component = np.arange(1, share.shape[1] + 1)
    for layer, colour in zip(layers, style.PALETTE, strict=False):
        axes.plot(
            component,
            100 * share[layer],
            color=colour,
            marker="o",
            markersize=2,
            label=f"layer {layer}: first {100 * share[layer, 0]:.1f} %",
        )
    axes.axhline(
        100 * PUBLISHED_LEADING_SHARE,
        color=style.GREY,
        linestyle="--",
        linewidth=1,
        label=f"published, first: about {100 * PUBLISHED_LEADING_SHARE:.0f} %",
    )
    axes.set_xscale("log")
    # Room for the legend above the highest point.
    highest = max(float(share[list(layers), 0].max()), PUBLISHED_LEADING_SHARE)
    axes.set_ylim(0, 100 * min(1.7 * highest, 1.45))
    axes.set_xlabel("component")
    axes.legend(loc="upper right")
