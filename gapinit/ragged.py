"""Whether arrays that point into other arrays do so: a file of others may say anything."""

from __future__ import annotations

from typing import Any

import numpy as np


def require_offsets(name: str, offset: Any, rows: int) -> None:
    """Raise ValueError unless `offset` (items + 1,) cuts `rows` rows into items, in order."""
    good = (
        offset.ndim == 1
        and offset.dtype.kind in "iu"
        and len(offset) > 0
        and offset[0] == 0
        and offset[-1] == rows
        and bool(np.all(offset[1:] >= offset[:-1]))
    )
    if not good:
        raise ValueError(f"'{name}' does not cut {rows} rows into items")


def require_places(name: str, places: Any, count: int) -> None:
    """Raise ValueError unless every number in `places` is one of 0 to count - 1."""
    whole = places.ndim == 1 and places.dtype.kind in "iu"
    if not whole or (len(places) > 0 and not 0 <= places.min() <= places.max() < count):
        raise ValueError(f"'{name}' holds numbers that are not 0 to {count - 1}")


def require_rows(name: str, rows: Any, width: int | None = None) -> None:
    """Raise ValueError unless `rows` is an array of numbers (rows, d), of this width if given."""
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or width not in (None, rows.shape[1]):
        raise ValueError(f"'{name}' has shape {rows.shape} of {rows.dtype}, expected (rows, d)")
