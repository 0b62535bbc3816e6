"""Figure 2: alignment of the update direction with the gap, before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.errors import GapinitError
from gapinit.figures import style
from gapinit.figures.toy import alignment_probability, random_alignments
from gapinit.gap.gap_file import read_gap
from gapinit.tables.measures import read_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANDOM_VECTORS = 20_000
BINS = 100


def draw(gap: Path, runs: list[Path], output: Path) -> None:
    """Draw how well Gap-Init and random directions align with the gap at initialisation.

    `gap` is a gap artifact with a held-out gap; `runs` are `run.json` files with
    "alignment_at_init" (the cosine of B's first column to the held-out gap, for each adapted
    module) and "factors" ("method": "gap-init" or "random-b"; other methods are ignored). For
    comparison, the figure shows many random unit vectors against the held-out gap, and the exact
    law <b, u>^2 ~ Beta(1/2, (d-1)/2). All are shares of directions per bin of the cosine.

    Writes `<output>.pdf`, `.png`, `.svg` and `.csv`. `GapinitError` if there is no held-out gap,
    no Gap-Init run, or an alignment that is not a cosine.

    Source: Zhao et al., "When Is Rank-1 Enough?", figure 2. The alignment
    is measured against the gap of pairs that the initialisation has not seen.
    """
    heldout = read_gap(gap).heldout_gap
    if heldout is None:
        raise GapinitError(
            f"{gap}: has no held-out gap, which figure 2 measures against. Run the gap stage "
            "with `heldout` above 0."
        )
    alignments = _alignments(runs)
    # By symmetry the law is the same for every layer's gap; the top layer stands for all.
    random = random_alignments(RANDOM_VECTORS, heldout[-1], np.random.default_rng(0))
    width = heldout.shape[1]
    edges = np.linspace(-1.0, 1.0, BINS + 1)
    shares: dict[str, Any] = {
        "random_vectors": _share(random, edges),
        "exact_law": alignment_probability(edges, width),
        "random_b": _share(alignments["random-b"], edges),
        "gap_init": _share(alignments["gap-init"], edges),
    }
    with style.paper_style():
        figure, (axes,) = style.panels(height=2.5)
        _draw_shares(axes, edges, shares, alignments, width)
        style.save(figure, output)
    style.write_numbers(output, {"cosine_from": edges[:-1], "cosine_to": edges[1:], **shares})


def _draw_shares(
    axes: Axes,
    edges: np.ndarray,
    shares: dict[str, Any],
    alignments: dict[str, list[float]],
    width: int,
) -> None:
    middle = (edges[:-1] + edges[1:]) / 2
    axes.stairs(
        shares["random_vectors"],
        edges,
        fill=True,
        color=style.RANDOM,
        alpha=0.35,
        label=f"random unit vectors, d = {width}",
    )
    inside = shares["exact_law"] > 1e-6
    axes.plot(middle[inside], shares["exact_law"][inside], color=style.BLACK, label="exact law")
    if alignments["random-b"]:
        axes.stairs(
            shares["random_b"],
            edges,
            color=style.RANDOM,
            label=f"random B, {len(alignments['random-b'])} modules",
        )
    mean = float(np.mean(alignments["gap-init"]))
    axes.stairs(
        shares["gap_init"],
        edges,
        fill=True,
        color=style.GAP_INIT,
        alpha=0.8,
        label=f"Gap-Init, {len(alignments['gap-init'])} modules (mean {mean:.3f})",
    )
    axes.set_xlim(-1.02, 1.02)
    axes.set_ylim(0, 1.45 * max(float(np.max(share)) for share in shares.values()))
    axes.set_xlabel("cosine to the gap of unseen pairs")
    axes.set_ylabel("share of directions per bin")
    axes.legend(loc="upper left")


def _alignments(runs: list[Path]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"gap-init": [], "random-b": []}
    for path in runs:
        record = read_record(path)
        method = record.factors.get("method")
        if method in found:
            if not record.alignment_at_init:
                raise GapinitError(
                    f"{path}: key 'alignment_at_init': expected a cosine for each adapted module, "
                    f"found {record.alignment_at_init!r}. Train the run again."
                )
            found[method] += record.alignment_at_init
    if not found["gap-init"]:
        raise GapinitError(
            f"figure 2: none of the {len(runs)} runs has the method 'gap-init'. Name one."
        )
    return found


def _share(values: Any, edges: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.clip(values, -1.0, 1.0), edges)
    return counts / max(len(values), 1)
