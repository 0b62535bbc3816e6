"""States on disk: contiguous HDF5 datasets in the model's precision, read through memory maps.

Neither HDF5 nor numpy has bfloat16, so bfloat16 states are stored as unsigned integers with the
same bits. Other states are float32 or float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    import h5py
    from numpy.typing import NDArray

BITS = np.dtype("u2")
"""The type under which bfloat16 is stored."""
_TYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.bfloat16: BITS,
    torch.float16: np.dtype("f2"),
    torch.float32: np.dtype("f4"),
}

StoredAs = Literal["auto", "float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def stored_type(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the type that a model's states have on disk."""
    return _TYPES.get(dtype, np.dtype("f4"))


def to_stored(values: torch.Tensor, kind: np.dtype[Any]) -> NDArray[Any]:
    """Return states as an array of the type `kind` on disk."""
    values = values.detach().cpu()
    if kind == BITS:
        return values.to(torch.bfloat16).view(torch.uint16).numpy()
    return values.float().numpy().astype(kind, copy=False)


def widened(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return stored rows as float32."""
    if rows.dtype == BITS:
        # The upper half of a float32's bits is a bfloat16.
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32, copy=False)


def memory_map(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    """Map a contiguous HDF5 dataset by its offset in the file; changes stay in memory."""
    if dataset.size == 0:  # an empty dataset has no offset
        return np.zeros(dataset.shape, dataset.dtype)
    return np.memmap(
        path, mode="c", dtype=dataset.dtype, shape=dataset.shape, offset=dataset.id.get_offset()
    )


def as_tensor(rows: NDArray[Any]) -> torch.Tensor:
    """Return stored rows as a tensor; mapped rows are read from disk on first use."""
    tensor = torch.from_numpy(rows)
    return tensor.view(torch.bfloat16) if rows.dtype == BITS else tensor


class JoinedRows:
    """Rows of several files as one array."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self._ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Return a slice of rows, or the rows with given numbers."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            part = int(np.searchsorted(self._ends, start, side="right"))
            before = int(self._ends[part - 1]) if part else 0
            if part < len(self.parts) and stop <= self._ends[part]:
                return self.parts[part][start - before : stop - before]
            rows = np.arange(start, stop)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._ends, rows, side="right")
        for part, values in enumerate(self.parts):
            mine = owner == part
            before = int(self._ends[part - 1]) if part else 0
            if mine.any():
                found[mine] = values[rows[mine] - before]
        return found


Rows = np.ndarray[Any, Any] | JoinedRows


def joined_rows(parts: Sequence[Any]) -> Any:
    """Return the rows of several files as one array."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)
