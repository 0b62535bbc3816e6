"""The next block of images is read and decoded while the model works on this one."""

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
    """Some items and the pixels of their images."""

    rows: slice
    sizes: list[tuple[int, int]]
    """Width and height of each image."""
    pixels: dict[str, Tensor]
    """As the image processor gives them."""


def read_ahead(
    backbone: Backbone, images: Sequence[Path], blocks: Sequence[slice]
) -> Iterator[Block]:
    """Yield blocks of images, one being read while another is used; an error comes in its turn."""

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
