"""Exact nearest neighbours by blocked matrix products, in one or several spaces at once.

The squared distance |a|^2 + |b|^2 - 2ab loses digits when the points lie close together or far
from the origin, so here it only proposes: the data are centred, every product carries a bound of
its rounding error, and all points that the bound cannot rule out are measured again from the
differences of their coordinates. The neighbours are therefore those of the exact distances.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gapinit.errors import GapinitError

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.floating[Any]]

BLOCK_ENTRIES = 1 << 20
"""Distances held at once in one space: a block has this many entries, or one row."""

GROUP = 8
"""Columns that are searched by their minimum alone, where rows are long."""

ROW_BLOCK_ENTRIES = 1 << 17
"""Coordinates held at once where rows are visited in double precision."""


class Neighbours(NamedTuple):
    """The k nearest other points of each of N points, nearest first, ties by lower index."""

    indices: npt.NDArray[np.intp]
    """(N, k): which points."""
    distances: npt.NDArray[np.float64]
    """(N, k): how far away, Euclidean."""


class Centred(NamedTuple):
    """One part of the coordinates, ready for matrix products."""

    points: Any
    """(N, d): an array, or a torch tensor on the device that multiplies."""
    squares: FloatArray
    """(N,): squared lengths."""
    slack: FloatArray
    """(N,): each point's share of the rounding error of a squared distance."""


def check_neighbours(neighbours: int, number: int, origin: str = "neighbours") -> int:
    """Return `neighbours` as an int if every one of `number` points has that many others."""
    try:
        value = operator.index(neighbours)
    except TypeError:
        value = 0
    if isinstance(neighbours, bool) or value < 1:
        raise GapinitError(f"{origin}: expected a whole number of at least 1, found {neighbours!r}")
    if value >= number:
        raise GapinitError(
            f"{origin}: {value} neighbours asked for, but each of {number} pairs has only "
            f"{number - 1} others. Use at most {number - 1} neighbours, or at least {value + 1} "
            "pairs."
        )
    return value


def nearest_neighbours(points: FloatArray, neighbours: int) -> Neighbours:
    """Find each point's nearest other points.

    `points` is (N, d), finite; 1 <= neighbours <= N - 1, else `GapinitError`.
    """
    return search([points], [(0,)], neighbours)[0]


def search(
    parts: Sequence[FloatArray], spaces: Sequence[Sequence[int]], neighbours: int
) -> list[Neighbours]:
    """Find nearest neighbours in several spaces that are put together from the same parts.

    A space is a tuple of indices into `parts`, and its points are the concatenation of those
    parts: |x_i - x_j|^2 = sum over its parts p of |p_i - p_j|^2. The matrix product of a part is
    made once for all spaces that hold it.

    Each part is (N, d_p) and finite; the result has one `Neighbours` a space. Memory beyond one
    copy of the parts is O(N * block); no array has N x N entries.
    """
    number = parts[0].shape[0]
    count = check_neighbours(neighbours, number)
    used = sorted({part for space in spaces for part in space})
    found_centred, scale = centre_all([parts[part] for part in used])
    centred = dict(zip(used, found_centred, strict=True))
    found = [
        Neighbours(np.empty((number, count), np.intp), np.empty((number, count))) for _ in spaces
    ]
    for block in block_rows(number):
        squared = {part: squared_distances(data, block) for part, data in centred.items()}
        for space, result in zip(spaces, found, strict=True):
            approximate = squared[space[0]]
            slack = centred[space[0]].slack
            for part in space[1:]:
                approximate = approximate + squared[part]
                slack = slack + centred[part].slack
            row, column = candidates(approximate, slack, block.start, count)
            chosen_parts = [parts[part] for part in space]
            exact = exact_squared(chosen_parts, row + block.start, column, scale)
            chosen = nearest_of(row, column, exact, count)
            result.indices[block] = column[chosen]
            result.distances[block] = np.sqrt(exact[chosen]) * scale
    return found


def nearest_of(
    row: npt.NDArray[np.intp],
    column: npt.NDArray[np.intp],
    squared: npt.NDArray[np.float64],
    count: int,
) -> npt.NDArray[np.intp]:
    """Return where in a list of pairs each row's `count` nearest stand, (rows, count).

    The list is sorted by row, with at least `count` pairs of each row that is in it.
    """
    order = np.lexsort((column, squared, row))
    first = np.flatnonzero(np.diff(row, prepend=-1))
    return np.asarray(order[first[:, None] + np.arange(count)])


def block_rows(number: int) -> Iterator[slice]:
    """Cut `number` rows of distances to `number` points into blocks that are held at once."""
    rows = max(1, BLOCK_ENTRIES // number)
    for start in range(0, number, rows):
        yield slice(start, min(start + rows, number))


def row_blocks(number: int, width: int) -> Iterator[slice]:
    """Cut `number` rows of `width` entries into slices that are cheap to hold as float64."""
    rows = max(1, ROW_BLOCK_ENTRIES // max(width, 1))
    for start in range(0, number, rows):
        yield slice(start, min(start + rows, number))


def centre_all(
    parts: Sequence[FloatArray], device: torch.device | None = None
) -> tuple[list[Centred], float]:
    """Return each part with a middle taken off and divided by one scale, and that scale."""
    scale = _common_scale(parts)
    return [_centre(points, scale, device) for points in parts], scale


def _common_scale(parts: Sequence[FloatArray]) -> float:
    """Return a power of two above every centred coordinate, so that squares cannot overflow."""
    largest = max(abs(float(extreme)) for part in parts for extreme in (part.min(), part.max()))
    if largest == 0 or 1e-6 < largest < 1e6:
        return 1.0  # squares of such coordinates are far from both ends of single precision
    # frexp: largest < 2**exponent. A coordinate and its mean are at most twice that apart, and
    # dividing by a power of two is exact.
    return math.ldexp(1.0, min(math.frexp(largest)[1] + 1, 1023))


def _centre(points: FloatArray, scale: float, device: torch.device | None) -> Centred:
    """Take off the mean and divide by `scale`; the products are then made on `device`, if any."""
    number, width = points.shape
    # Input of at most single precision needs no better products: the bound stays valid, and the
    # products take half the time. Very wide parts would make that bound useless.
    single = points.dtype.itemsize <= 4 and width <= 1 << 16
    dtype: type[np.floating[Any]] = np.float32 if single else np.float64
    # Any middle that is the same for all points will do, and one rounding is one rounding.
    working: type[np.floating[Any]] = dtype if 1e-30 < scale < 1e30 else np.float64
    # Short sums in the working precision, their sum in double: fast, and no digit of use is lost.
    sums = [
        points[start : start + 128].sum(axis=0, dtype=working) for start in range(0, number, 128)
    ]
    middle = (np.sum(sums, axis=0, dtype=np.float64) / number).astype(working)
    centred: FloatArray = np.empty((number, width), dtype)
    squares: FloatArray = np.empty(number, dtype)
    for block in row_blocks(number, width):
        place = centred[block] if working is dtype else None
        differences = np.subtract(points[block], middle, out=place, dtype=working)
        if scale != 1:
            differences *= 1 / scale  # a power of two: exact
        if place is None:
            centred[block] = differences
        wide = centred[block].astype(np.float64)
        squares[block] = np.vecdot(wide, wide)
    # With unit roundoff u: rounding the points moves |a-b|^2 by at most about 4u(|a|^2+|b|^2), a
    # product of length d is off by at most about d*u*|a||b| <= d*u*(|a|^2+|b|^2)/2 and counts
    # twice, and the few additions here and in `candidates` cost some u each. Half of it belongs
    # to each point; the last term covers underflow.
    unit = float(np.finfo(dtype).eps) / 2
    slack = (width + 48) * unit * 1.02 * squares + 4 * width * float(np.finfo(dtype).tiny)
    return Centred(_placed(centred, device), squares, slack.astype(dtype))


def _placed(points: FloatArray, device: torch.device | None) -> Any:
    if device is None:
        return points
    import torch

    return torch.from_numpy(points).to(device)


def squared_distances(data: Centred, block: slice) -> FloatArray:
    """Return |x_i - x_j|^2 = |x_i|^2 + |x_j|^2 - 2 x_i x_j of a block of rows i, all j."""
    squared = _product(data.points[block], data.points)
    squared *= -2
    squared += data.squares[block, None]
    squared += data.squares
    return squared


def _product(rows: Any, points: Any) -> FloatArray:
    if isinstance(points, np.ndarray):
        product: FloatArray = rows @ points.T
        return product
    import torch

    # TensorFloat-32, which a user may have switched on, would break the bound of the error.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return np.asarray((rows @ points.T).cpu().numpy())
    finally:
        torch.set_float32_matmul_precision(precision)


def candidates(
    approximate: FloatArray, slack: FloatArray, start: int, count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return (row, column) of all points that may be among the `count` nearest of their row.

    The true squared distance lies within slack_i + slack_j of the approximate one. At least
    `count` points lie within the count-th smallest upper bound, so a point whose lower bound is
    above that is out.
    """
    rows = np.arange(approximate.shape[0])
    own = slack[start : start + len(rows)]
    bound: FloatArray = approximate + slack
    bound[rows, rows + start] = np.inf
    limit = upper_limit(bound, count) + 2 * own
    np.subtract(approximate, slack, out=bound)
    bound[rows, rows + start] = np.inf
    row, column = np.divmod(np.flatnonzero(bound <= limit[:, None]), bound.shape[1])
    return row, column


def upper_limit(bound: FloatArray, count: int) -> FloatArray:
    """Return, for each row, a value that at least `count` entries do not exceed.

    The count-th smallest entry is the tightest. In long rows the count-th smallest minimum of
    groups of columns does nearly as well (two of the nearest seldom share a group) and is found
    several times faster; what it lets through besides is measured exactly and falls out there.
    """
    groups = bound.shape[1] // GROUP
    if groups >= 8 * count:
        columns = bound[:, : groups * GROUP].reshape(len(bound), GROUP, groups)
        bound = columns.min(axis=1)
    limit: FloatArray = np.partition(bound, count - 1, axis=1)[:, count - 1]
    return limit


def exact_squared(
    parts: Sequence[FloatArray],
    row: npt.NDArray[np.intp],
    column: npt.NDArray[np.intp],
    scale: float,
) -> npt.NDArray[np.float64]:
    """Return the squared distances of pairs of points from the differences of coordinates."""
    total = np.zeros(len(row))
    for points in parts:
        for block in row_blocks(len(row), points.shape[1]):
            difference = points[row[block]].astype(np.float64)
            difference -= points[column[block]]
            if scale != 1:
                difference /= scale
            total[block] += np.square(difference, out=difference).sum(axis=1)
    return total


def near_squared(
    parts: Sequence[FloatArray], row: npt.NDArray[np.intp], column: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the squared distances of pairs of float32 points, and how far off each may be.

    In single precision, but from differences and in short sums: the error is a few dozen
    roundings of the distance itself, where that of a product is thousands of |a|^2 + |b|^2.
    """
    total, unsure = np.zeros(len(row)), np.zeros(len(row))
    unit, tiny = float(np.finfo(np.float32).eps) / 2, float(np.finfo(np.float32).tiny)
    for points in parts:
        width = points.shape[1]
        pieces = math.gcd(width, 64)
        for block in row_blocks(len(row), width):
            difference = points[row[block]]
            difference -= points[column[block]]
            difference = difference.reshape(-1, pieces, width // pieces)
            squared = np.vecdot(difference, difference).sum(axis=1, dtype=np.float64)
            total[block] += squared
            # A difference is rounded once, which counts twice in its square; the sum as often as
            # it is long.
            unsure[block] += (width // pieces + 4) * unit * 1.02 * squared + 4 * width * tiny
    return total, unsure
