"""Figure 1c: the geometry of the modality gap, drawn from real hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.artifacts.shards import STATES_AXES, open_shards, shard_set
from gapinit.errors import GapinitError
from gapinit.figures import style
from gapinit.figures.toy import random_unit_directions
from gapinit.gap.gap_file import read_gap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAIRS = 400
"""How many pairs are drawn: the first ones of the calibration set."""
DIRECTIONS = 1000
"""How many random directions are drawn to choose the typical one."""


@dataclass(frozen=True)
class Plane:
    """States of one layer in the plane of the gap and the widest direction across it.

    Coordinates are in units of the hidden states, with the mean vision state at the origin.
    """

    vision: np.ndarray
    """(N, 2): along the gap, across it."""
    text: np.ndarray
    gap_norm: float
    random: np.ndarray
    """(2,): a typical random direction of the gap's length."""
    typical_cosine: float
    """Median of |cos(b, gap)| over random directions b."""
    width: int


def draw(states: Path | Sequence[Path], gap: Path, output: Path) -> None:
    """Draw both modalities' states, the gap between them, and a random direction's share of it.

    Horizontal is the unit gap u = g/||g|| that initialises B; vertical the first principal
    component of both modalities' states with the gap projected out. The random rank-1 direction
    b, uniform on the sphere and drawn as long as the gap, keeps only <b, u> of it:
    E<b, u>^2 = 1/d (Proposition 3.1).

    `states` (or all its shards) and `gap` are the HDF5 artifacts of one backbone and dataset.
    Writes `<output>.pdf`, `.png`, `.svg` and `.csv`. `GapinitError` if the two do not fit together.
    """
    # ASSUME: the paper draws a sketch of no layer; the top one is always adapted (naive).
    directions = read_gap(gap).gap
    shown = len(directions) - 1
    paths = shard_set(states, "states")
    with open_shards(paths, "states", STATES_AXES) as file:
        found = file["vision"].shape
        if (found[0], found[2]) != directions.shape:
            raise GapinitError(
                f"{paths[0]}: holds {found[0]} layers of width {found[2]}, but {gap} has "
                f"{len(directions)} layers of width {directions.shape[1]}: they are not of one "
                "backbone"
            )
        vision, text = (file[name][shown, :PAIRS].astype(np.float64) for name in ("vision", "text"))
    plane = project(vision, text, directions[shown])
    with style.paper_style():
        figure, (left, right) = style.panels(2, width=style.TEXT_WIDTH, height=3.3)
        _draw_states(left, plane, shown)
        _draw_random(right, plane)
        # Angles are the point of the figure, so both axes have one scale.
        left.set_aspect("equal", adjustable="datalim")
        right.set_aspect("equal")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        style.save(figure, output)
    style.write_numbers(output, _numbers(plane, shown))


def project(vision: np.ndarray, text: np.ndarray, gap: np.ndarray) -> Plane:
    """Project (N, d) states of both modalities onto the gap's plane.

    The random direction shown is the one whose |<b, u>| is the median of many draws.
    """
    norm = float(np.linalg.norm(gap))
    unit = gap / norm
    origin = vision.mean(axis=0)
    along = {"vision": (vision - origin) @ unit, "text": (text - origin) @ unit}
    both = np.concatenate([vision, text]) - origin
    across = both - np.outer(both @ unit, unit)
    across -= across.mean(axis=0)
    component = np.linalg.svd(across, full_matrices=False)[2][0]
    # An SVD leaves the sign open: the largest entry is made positive.
    component = component * np.sign(component[np.argmax(np.abs(component))])
    directions = random_unit_directions(DIRECTIONS, len(gap), np.random.default_rng(0))
    cosines = np.abs(directions @ unit)
    typical = directions[np.argsort(cosines, kind="stable")[DIRECTIONS // 2]]
    return Plane(
        vision=np.stack([along["vision"], (vision - origin) @ component], axis=1),
        text=np.stack([along["text"], (text - origin) @ component], axis=1),
        gap_norm=norm,
        # The sign of B changes nothing with A = 0, so the arrow points towards text.
        random=norm * np.abs([typical @ unit, typical @ component]),
        typical_cosine=float(np.median(cosines)),
        width=len(gap),
    )


def _draw_states(axes: Axes, plane: Plane, layer: int) -> None:
    """Draw both clouds, the gap and the random direction, all on one scale."""
    for name, points, colour in (
        ("vision", plane.vision, style.VISION),
        ("text", plane.text, style.TEXT),
    ):
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=7,
            color=colour,
            alpha=0.45,
            linewidth=0,
            label=f"{name} states",
        )
    _arrow(axes, (plane.gap_norm, 0), style.BLACK, 10)
    _arrow(axes, (plane.random[0], plane.random[1]), style.RANDOM, 5)
    axes.plot([], [], color=style.BLACK, label="gap, which Gap-Init takes")
    axes.plot([], [], color=style.RANDOM, label="random direction of the same length")
    axes.set_title(f"Layer {layer}, d = {plane.width}: {len(plane.vision)} pairs")
    axes.set_xlabel("along the gap")
    axes.set_ylabel("across: first principal component")


def _draw_random(axes: Axes, plane: Plane) -> None:
    """Enlarge the random direction in this plane, with its share of the gap."""
    along, across = plane.random
    half = 1.3 * max(along, across)
    axes.axhline(0, color=style.BLACK)
    _arrow(axes, (along, across), style.RANDOM, 10)
    axes.plot([along, along], [0, across], color=style.RANDOM, linestyle=":")
    axes.plot([0, along], [0, 0], color=style.RANDOM, linewidth=3, solid_capstyle="butt")
    axes.annotate(
        f"{along / plane.gap_norm:.3f} of the gap",
        (along / 2, 0),
        (0, -6),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=7,
    )
    axes.set_xlim(-0.7 * half, 1.3 * half)
    axes.set_ylim(-half, half)
    axes.set_title(f"Enlarged: a random direction (|cos| {plane.typical_cosine:.3f})")
    axes.set_xlabel("along the gap")


def _arrow(axes: Axes, end: tuple[float, float], colour: str, head: float) -> None:
    properties: dict[str, Any] = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0}
    properties |= {"color": colour, "linewidth": 1.6, "mutation_scale": head}
    axes.annotate("", end, (0, 0), arrowprops=properties)


def _numbers(plane: Plane, layer: int) -> dict[str, list[Any]]:
    points = [("vision", *point) for point in plane.vision]
    points += [("text", *point) for point in plane.text]
    points += [("gap", plane.gap_norm, 0.0), ("random", *plane.random)]
    kinds, along, across = zip(*points, strict=True)
    return {
        "layer": [layer] * len(points),
        "kind": list(kinds),
        "along_gap": list(along),
        "across": list(across),
    }
