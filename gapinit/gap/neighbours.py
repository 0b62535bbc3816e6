"""Exact nearest neighbours by blocked matrix products, in one or several spaces at once.

With centred points in double precision |a - b|^2 = |a|^2 + |b|^2 - 2ab is off by some roundings of
|a|^2 + |b|^2. The k nearest, and whatever is as near up to that error, are therefore measured
again from the differences of their coordinates: those decide, ties go to the lower index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gapinit.errors import GapinitError
from gapinit.gap.options import check_count

FloatArray = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

BLOCK_ENTRIES = 1 << 20
"""Distances held at once in one space: a block has this many entries, or one row."""

ROW_BLOCK_ENTRIES = 1 << 17
"""Coordinates held at once where rows are visited in double precision."""


class Neighbours(NamedTuple):
    """The k nearest other points of each of N points, nearest first, ties by lower index."""

    indices: IndexArray
    """(N, k): which points."""
    distances: Float64Array
    """(N, k): how far away, Euclidean."""


def nearest(
    parts: Sequence[FloatArray], spaces: Sequence[Sequence[int]], neighbours: int
) -> list[Neighbours]:
    """Find each point's nearest other points in several spaces that share coordinates.

    A space is a tuple of indices into `parts`; its points are the concatenation of those parts,
    so that |x_i - x_j|^2 is the sum of the parts' own. The matrix product of a part is made once
    for all spaces. Each part is (N, d_p), finite, with squares that double precision holds;
    1 <= `neighbours` <= N - 1. Memory: a copy of the parts in double precision and O(N * block).
    """
    number = len(parts[0])
    centred = [points - points.mean(axis=0, dtype=np.float64) for points in parts]
    squares = [np.vecdot(points, points) for points in centred]
    found = [
        Neighbours(np.empty((number, neighbours), np.intp), np.empty((number, neighbours)))
        for _ in spaces
    ]
    for block in blocks(number, number, BLOCK_ENTRIES):
        squared = [_squared(*part, block) for part in zip(centred, squares, strict=True)]
        for space, result in zip(spaces, found, strict=True):
            approximate = sum((squared[part] for part in space[1:]), squared[space[0]])
            # Twice the rounding error, 2^-53 for each addition, of a product of length d.
            errors = [(parts[part].shape[1] + 4) * squares[part].max() for part in space]
            error = 2.0**-50 * sum(errors)
            limit = np.partition(approximate, neighbours - 1)[:, neighbours - 1, None] + error
            row, column = np.nonzero(approximate <= limit)
            exact = _exact_squared([parts[part] for part in space], row + block.start, column)
            first = np.searchsorted(row, np.arange(len(approximate)))
            chosen = np.lexsort((column, exact, row))[first[:, None] + np.arange(neighbours)]
            result.indices[block] = column[chosen]
            result.distances[block] = np.sqrt(exact[chosen])
    return found


def _squared(points: Float64Array, squares: Float64Array, block: slice) -> Float64Array:
    """Return |x_i - x_j|^2 of a block of rows i and all j; infinite for a point itself."""
    squared: Float64Array = points[block] @ points.T
    squared *= -2
    squared += squares[block, None]
    squared += squares
    np.fill_diagonal(squared[:, block], np.inf)
    return squared


def _exact_squared(
    parts: Sequence[FloatArray], row: IndexArray, column: IndexArray
) -> Float64Array:
    """Return the squared distances of pairs of points from the differences of coordinates."""
    total = np.zeros(len(row))
    for points in parts:
        for block in row_blocks(len(row), points.shape[1]):
            difference = points[row[block]].astype(np.float64)
            difference -= points[column[block]]
            total[block] += np.square(difference, out=difference).sum(axis=1)
    return total


def row_blocks(number: int, width: int) -> Iterator[slice]:
    """Cut `number` rows of `width` entries into slices that are cheap to hold as float64."""
    return blocks(number, width, ROW_BLOCK_ENTRIES)


def blocks(number: int, width: int, entries: int) -> Iterator[slice]:
    """Cut `number` rows of `width` entries into slices of so many entries, or of one row."""
    rows = max(1, entries // max(width, 1))
    for start in range(0, number, rows):
        yield slice(start, min(start + rows, number))


def check_neighbours(neighbours: int, number: int) -> int:
    """Return `neighbours` as an int if every one of `number` points has that many others."""
    value = check_count("neighbours", neighbours)
    if value >= number:
        raise GapinitError(
            f"neighbours: {value} neighbours asked for, but each of {number} pairs has only "
            f"{number - 1} others. Use at most {number - 1} neighbours, or at least {value + 1} "
            "pairs."
        )
    return value
