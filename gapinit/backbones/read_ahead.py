"""Read and decode the next block of images while the model runs on the current one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gapinit.data.images import load_image

if TYPE_CHECKING:
    from torch import Tensor

    from gapinit.backbones.base import Backbone


@dataclass(frozen=True)
class Block:
    """The images of some items."""

    rows: slice
    sizes: list[tuple[int, int]]
    """Width and height of each image."""
    pixels: dict[str, Tensor]
    """The output of `Backbone.pixels`."""


def read_ahead(
    backbone: Backbone, images: Sequence[Path], blocks: Sequence[slice]
) -> Iterator[Block]:
    """Yield blocks of images, each read while the previous one is used.

    An error in reading a block is raised when that block is due.
    """

    def read(rows: slice) -> Block:
        loaded = [load_image(path) for path in images[rows]]
        return Block(rows, [image.size for image in loaded], backbone.pixels(loaded))

    with ThreadPoolExecutor(1, "images") as reader:
        coming = reader.submit(read, blocks[0]) if blocks else None
        for rows in [*blocks[1:], None]:
            if coming is None:
                return
            block = coming.result()
            coming = None if rows is None else reader.submit(read, rows)
            yield block
