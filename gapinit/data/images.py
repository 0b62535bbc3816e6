"""Read one image file as RGB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from PIL.Image import Image

# EPS, PDF and the like are left out: Pillow hands them to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def load_image(path: Path, content: BinaryIO | None = None) -> Image:
    """Return the image in RGB; a missing or damaged file is an error that names it.

    `content`: the file's, where it has been read already.
    """
    from PIL import Image as pillow

    try:
        with pillow.open(path if content is None else content, formats=FORMATS) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise GapinitError(f"{path}: damaged or unreadable image ({error})") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height that `load_image` would give, from the file's header alone."""
    from PIL import Image as pillow

    try:
        with pillow.open(path, formats=FORMATS) as image:
            return image.size
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise GapinitError(f"{path}: damaged or unreadable image ({error})") from None
