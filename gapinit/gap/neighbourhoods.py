"""What SPOT-Gap asks of neighbourhoods: how wide they are in each modality, and who is in them.

It needs less than the list of all neighbours in order: of the modalities only the mean distance,
of the smoothing space only the members. Large sets of states are therefore measured by matrix
products alone, and pair by pair only where rounding could change the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gapinit.gap.neighbours import (
    Centred,
    FloatArray,
    block_rows,
    candidates,
    centre_all,
    check_neighbours,
    exact_squared,
    near_squared,
    nearest_of,
    search,
    squared_distances,
    upper_limit,
)

if TYPE_CHECKING:
    import torch

Float64Array = npt.NDArray[np.float64]

SMALL = 1 << 28
"""Multiplications N * N * d below which distances are measured one by one, to the last digit."""

CANCELLATION = 1 / 16
"""Share of |a|^2 + |b|^2 that |a - b|^2 must reach to be taken from a product."""


class Neighbourhoods(NamedTuple):
    """The k nearest other points of each of N points, in several spaces."""

    dispersion: list[Float64Array]
    """(N,) for each part: mean Euclidean distance to the k nearest points within it."""
    members: npt.NDArray[np.intp]
    """(N, k): the k nearest points in the space of all chosen parts."""


def neighbourhoods(
    parts: Sequence[FloatArray],
    space: Sequence[int],
    neighbours: int,
    device: torch.device | None = None,
) -> Neighbourhoods:
    """Measure each part's local dispersion, and find the neighbours in one space of parts.

    Each part is (N, d_p) and finite; `space` names the parts whose concatenation is searched.
    The members are those of the exact distances, ties to the lower index. The dispersion of
    float32 points is taken from products in float32 where N * N * d is large, and averaged in
    float64: its relative error is then some 1e-7. Points so close together that a product would
    lose digits are measured from their differences. Memory beyond one copy of the parts is
    O(N * block).

    `device`: a torch device for the products; None: NumPy's.
    """
    count = check_neighbours(neighbours, len(parts[0]))
    small = len(parts[0]) ** 2 * max(part.shape[1] for part in parts) < SMALL
    if small or any(part.dtype.itemsize > 4 for part in parts):
        *single, joint = search(parts, [*((part,) for part in range(len(parts))), space], count)
        return Neighbourhoods([found.distances.mean(axis=1) for found in single], joint.indices)
    return _by_products(parts, space, count, device)


def _by_products(
    parts: Sequence[FloatArray], space: Sequence[int], count: int, device: torch.device | None
) -> Neighbourhoods:
    number = len(parts[0])
    centred, scale = centre_all(parts, device)
    dispersion = [np.empty(number) for _ in parts]
    members = np.empty((number, count), np.intp)
    for block in block_rows(number):
        squared = [squared_distances(data, block) for data in centred]
        for points, data, values, found in zip(parts, centred, squared, dispersion, strict=True):
            found[block] = _mean_distances(points, data, values, block.start, count, scale)
        whole = squared[space[0]]
        slack = sum((centred[part].slack for part in space[1:]), centred[space[0]].slack)
        for part in space[1:]:
            whole += squared[part]
        chosen = [parts[part] for part in space]
        members[block] = _members(chosen, whole, slack, block.start, count, scale)
    return Neighbourhoods(dispersion, members)


def _mean_distances(
    points: FloatArray, data: Centred, squared: FloatArray, start: int, count: int, scale: float
) -> Float64Array:
    """Return the mean distance of a block's points to their `count` nearest others."""
    rows = np.arange(len(squared))
    squared[rows, rows + start] = np.inf
    row, column = np.divmod(
        np.flatnonzero(squared <= upper_limit(squared, count)[:, None]), squared.shape[1]
    )
    values = squared[row, column]
    lost = values < CANCELLATION * (data.squares[row + start] + data.squares[column])
    nearest = _smallest(row, values, count).astype(np.float64)
    means: Float64Array = np.sqrt(np.maximum(nearest, 0)).mean(axis=1) * scale
    again = np.unique(row[lost])
    if len(again):
        for line in again:
            near = slice(line, line + 1)
            _, other = candidates(squared[near], data.slack, start + line, count)
            exact = exact_squared([points], np.full(len(other), start + line), other, scale)
            means[line] = np.sqrt(np.sort(exact)[:count]).mean() * scale
    return means


def _members(
    parts: Sequence[FloatArray],
    squared: FloatArray,
    slack: FloatArray,
    start: int,
    count: int,
    scale: float,
) -> npt.NDArray[np.intp]:
    """Return which `count` others are nearest to each point of a block."""
    row, column = candidates(squared, slack, start, count)
    open_rows = np.bincount(row, minlength=len(squared)) > count
    unclear = open_rows[row]
    members = np.empty((len(squared), count), np.intp)
    # Where only `count` points come into question, nothing is left to measure.
    members[~open_rows] = column[~unclear].reshape(-1, count)
    if open_rows.any():
        row, column = row[unclear], column[unclear]
        value = squared[row, column].astype(np.float64)
        error = slack[row + start].astype(np.float64) + slack[column]
        if scale == 1:  # single precision holds squares of such coordinates
            near, _, again = _sides(row, value, error, count)
            value[again], error[again] = near_squared(parts, row[again] + start, column[again])
        near, far, again = _sides(row, value, error, count)
        value[near], value[far] = -1.0, np.inf
        value[again] = exact_squared(parts, row[again] + start, column[again], scale)
        members[open_rows] = column[nearest_of(row, column, value, count)]
    return members


def _sides(
    row: npt.NDArray[np.intp], value: Float64Array, error: Float64Array, count: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which points are among the `count` nearest, which are not, and which may be either.

    The list is sorted by row, with more than `count` points of each; each value is right to
    within its error.
    """
    line = np.cumsum(np.diff(row, prepend=row[0]) > 0)
    # Fewer than `count` others can be nearer than such a point, or at least `count` must be.
    near = value + error < _smallest(row, value - error, count + 1)[line, -1]
    far = value - error > _smallest(row, value + error, count)[line, -1]
    return near, far, ~(near | far)


def _smallest(row: npt.NDArray[np.intp], values: FloatArray, count: int) -> FloatArray:
    """Return the `count` smallest values of each row of a list sorted by row, the largest last.

    (rows, count); every row that is in the list has at least `count` values.
    """
    first = np.flatnonzero(np.diff(row, prepend=-1))
    sizes = np.diff(first, append=len(row))
    table: FloatArray = np.full((len(first), sizes.max()), np.inf, values.dtype)
    place = np.arange(len(row)) - np.repeat(first, sizes)
    table[np.repeat(np.arange(len(first)), sizes), place] = values
    table.partition(count - 1, axis=1)
    return table[:, :count]
