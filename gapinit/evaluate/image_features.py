"""Image features for decoding, read from feature files or computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gapinit.artifacts.arrays import Rows, as_tensor, joined_rows, memory_map
from gapinit.artifacts.artifacts import hdf5_inputs, open_hdf5
from gapinit.artifacts.shards import shard_set
from gapinit.backbones.inputs import Images
from gapinit.data.images import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gapinit.backbones.base import Backbone


Take = Callable[[Sequence[str]], Images]
"""Map image names below a dataset's root to the images' tokens, in the given order."""


@dataclass(frozen=True)
class Features:
    """Feature files, read through memory maps."""

    path: Path
    inputs: dict[str, Any]
    rows: Rows
    counts: NDArray[np.int64]
    grid: NDArray[np.int64]
    row_of: dict[str, int]

    def counts_of(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of tokens of each given image."""
        return self.counts[[self.row_of[name] for name in names]]

    def take(self, names: Sequence[str]) -> Images:
        """Return the tokens of some images, in the given order."""
        chosen = np.array([self.row_of[name] for name in names], dtype=np.int64)
        ends = np.cumsum(self.counts)
        spans = zip((ends - self.counts)[chosen].tolist(), ends[chosen].tolist(), strict=True)
        tokens = np.concatenate([self.rows[start:end] for start, end in spans])
        return Images(
            as_tensor(tokens),
            torch.from_numpy(self.counts[chosen]),
            torch.from_numpy(self.grid[chosen]),
        )


def read_features(path: Path | Sequence[Path]) -> Features:
    """Open image features, one file or all its shards."""
    paths = shard_set(path, "features")
    rows, counts, grids, names = [], [], [], []
    for part in paths:
        with open_hdf5(part, "features") as file:
            inputs = hdf5_inputs(file)
            rows.append(memory_map(part, file["features"]))
            counts.append(file["counts"][:])
            grids.append(file["grid"][:])
            names += file["image"].asstr()[:].tolist()
    return Features(
        paths[0],
        inputs,
        joined_rows(rows),
        np.concatenate(counts),
        np.concatenate(grids),
        {name: row for row, name in enumerate(names)},
    )


@torch.inference_mode()
def look(backbone: Backbone, root: Path, names: Sequence[str]) -> Images:
    """Compute the tokens of some images with the backbone's vision tower, adapted or not.

    `names` are relative to `root`.
    """
    return backbone.look([load_image(root / name) for name in names])
