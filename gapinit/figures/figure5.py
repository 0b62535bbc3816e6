"""Figure 5: the Gaussian toy model, gradient along the gap against the dimension."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gapinit.figures import style
from gapinit.figures.toy import effective_gradient, mean_alignment, root_mean_square_alignment

DIMENSIONS = (64, 128, 256, 512, 1024, 2048, 4096)
DIRECTIONS = 500
PAIRS = 256
GAP_TO_NOISE = 1.0
BAND = (5, 95)


def draw(output: Path) -> None:
    """Draw |<b, ĝ>| of random directions and of Gap-Init for d = 64 ... 4096, both axes log.

    Random directions: mean over 500 draws with the band from the 5th to the 95th percentile,
    beside the exact mean Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) and the root mean square
    d^(-1/2). Gap-Init: the gap is estimated from 256 sampled pairs, not taken as known.

    Writes `<output>.pdf`, `.png`, `.svg` and `.csv`; always the same bytes.

    Source: Zhao et al., "When Is Rank-1 Enough?", Appendix A and figure 5.
    """
    generator = np.random.default_rng(0)
    # ASSUME: 500 directions and 256 pairs (the calibration size of Appendix G.4), and a gap whose
    # length is that of the noise; the paper gives none of the three.
    sampled = [
        effective_gradient(
            dimension,
            directions=DIRECTIONS,
            pairs=PAIRS,
            gap_to_noise=GAP_TO_NOISE,
            generator=generator,
        )
        for dimension in DIMENSIONS
    ]
    low, high = np.transpose([np.percentile(sample.random, BAND) for sample in sampled])
    columns = {
        "dimension": list(DIMENSIONS),
        "random_mean": [float(sample.random.mean()) for sample in sampled],
        f"random_p{BAND[0]}": low,
        f"random_p{BAND[1]}": high,
        "gap_init": [sample.gap_init for sample in sampled],
        "exact_mean": [mean_alignment(dimension) for dimension in DIMENSIONS],
        "exact_root_mean_square": [root_mean_square_alignment(d) for d in DIMENSIONS],
    }
    with style.paper_style():
        figure, (axes,) = style.panels(height=2.9)
        axes.fill_between(DIMENSIONS, low, high, color=style.RANDOM, alpha=0.2, linewidth=0)
        axes.plot(
            DIMENSIONS,
            columns["random_mean"],
            color=style.RANDOM,
            marker="o",
            markersize=4,
            linestyle="none",
            label=f"random, mean of {DIRECTIONS}",
        )
        axes.plot(DIMENSIONS, columns["exact_mean"], color=style.RANDOM, label="exact mean")
        axes.plot(
            DIMENSIONS,
            columns["exact_root_mean_square"],
            color=style.GREY,
            linestyle="--",
            label=r"$d^{-1/2}$ (root mean square)",
        )
        axes.plot(
            DIMENSIONS,
            columns["gap_init"],
            color=style.GAP_INIT,
            marker="s",
            markersize=4,
            label=f"Gap-Init, gap of {PAIRS} pairs",
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(DIMENSIONS, [str(dimension) for dimension in DIMENSIONS])
        axes.set_xlabel("dimension d")
        axes.set_ylabel(r"$|\langle b, \hat{g} \rangle|$")
        figure.legend(loc="outside upper center", ncols=2)
        style.save(figure, output)
    style.write_numbers(output, columns)
