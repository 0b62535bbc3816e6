"""Read one image file as RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from PIL.Image import Image

# Without EPS, PDF and similar formats: Pillow passes them to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def load_image(path: Path, content: BinaryIO | None = None) -> Image:
    """Return the image in RGB; a missing or damaged file is an error that names it.

    `content`: the file's bytes, if the caller has read them.
    """
    with _opened(path, content) as image:
        return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of `load_image`'s result; read only the file's header."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path, content: BinaryIO | None = None) -> Iterator[Image]:
    from PIL import Image as pillow

    try:
        with pillow.open(path if content is None else content, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise GapinitError(f"{path}: damaged or unreadable image ({error})") from None
