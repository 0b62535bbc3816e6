"""Figure 3: spectrum of the per-sample gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gapinit.errors import GapinitError
from gapinit.figures import style
from gapinit.gap.gap_file import read_gap
from gapinit.gap.geometry import explained_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED_LEADING_SHARE = 0.16
"""Zhao et al., section 3.2: the leading direction's share "in our analysis", about 16 %."""


def draw(gap: Path, output: Path, *, layers: Sequence[int] | None = None) -> None:
    """Draw the share of each singular direction of the per-sample gaps.

    Left the gaps as they are (shares of the second moment), right after their mean is taken off
    (shares of the variance): the paper does not say which of them its 16 % is. `layers` are the
    decoder layers shown, by default a lower, a middle and the top one.

    Reads a gap artifact; writes `<output>.pdf`, `.png`, `.svg` and `.csv`. `GapinitError` for a
    layer that does not exist.

    Source: Zhao et al., "When Is Rank-1 Enough?", figure 3.
    """
    content = read_gap(gap)
    chosen = chosen_layers(len(content.gap), layers)
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


def chosen_layers(available: int, layers: Sequence[int] | None) -> list[int]:
    """Return the layers to show: those asked for, or a lower, a middle and the top one."""
    if layers is None:
        # ASSUME: the paper names no layer for its figures 3 and 4.
        return sorted({available // 4, available // 2, available - 1})
    for layer in layers:
        if not 0 <= layer < available:
            raise GapinitError(
                f"layers: layer {layer} asked for, but there are 0 to {available - 1}"
            )
    if not layers:
        raise GapinitError("layers: expected at least one layer to show")
    return sorted(set(layers))


def _draw_panel(axes: Axes, share: np.ndarray, layers: Sequence[int]) -> None:
    component = np.arange(1, share.shape[1] + 1)
    for layer, colour in zip(layers, _colours(len(layers)), strict=True):
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


def _colours(count: int) -> list[str]:
    return [style.PALETTE[index % len(style.PALETTE)] for index in range(count)]
