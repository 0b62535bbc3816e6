"""Check every image of a dataset before anything expensive starts."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.images import FORMATS
from gapinit.data.manifest import Manifest
from gapinit.errors import GapinitError
from gapinit.progress import track

MIN_SIDE = 8  # ASSUME: below this no vision tower sees anything; such a file is a mistake
MAX_ASPECT = 200  # Qwen2-VL's processor refuses more
MAX_THREADS = 8


def check_images(paths: Iterable[Path], defects: Defects) -> dict[Path, str]:
    """Decode every image once, in threads; note those that cannot be used, hash the others.

    An image is refused if it cannot be opened, is damaged or truncated, is not in a plain image
    format, has more pixels than Pillow's decompression-bomb limit, or has a senseless size.
    Returns the SHA-256 of each good file.
    """
    unique = list(dict.fromkeys(paths))
    digests = {}
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # a warning of Pillow is an error here, or harmless
        results = track(pool.map(_check_image, unique), "checking images", total=len(unique))
        for path, (problem, sha256) in zip(unique, results, strict=True):
            if problem is None:
                digests[path] = sha256
            else:
                defects.add(path, "", problem)
    return digests


def _check_image(path: Path) -> tuple[str | None, str]:
    """Decode one image file to the end; return its problem, or None and its SHA-256."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as handle:
            checksum = hashlib.file_digest(handle, "sha256").hexdigest()
            handle.seek(0)
            with Image.open(handle, formats=FORMATS) as image:
                problem = size_problem(image.size, Image.MAX_IMAGE_PIXELS)
                if problem is None:
                    image.convert("RGB")
            return problem, checksum
    except UnidentifiedImageError:
        return f"damaged image, or none of {', '.join(FORMATS)}", ""
    except Image.DecompressionBombError as error:
        return f"too many pixels ({error})", ""
    except PermissionError as error:
        return f"cannot be read ({error.strerror})", ""
    except Exception as error:  # Pillow's decoders raise many kinds on damaged bytes
        return f"damaged image ({type(error).__name__}: {error})", ""


def size_problem(size: tuple[int, int], max_pixels: int | None) -> str | None:
    """Return what is wrong with an image's width and height, or None."""
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        return f"too many pixels: {width} x {height}, expected at most {max_pixels}"
    if min(size) < MIN_SIDE:
        return f"too small: {width} x {height} pixels, expected at least {MIN_SIDE} each way"
    if max(size) > MAX_ASPECT * min(size):
        return f"too narrow: {width} x {height} pixels, expected an aspect of at most {MAX_ASPECT}"
    return None


def check_splits(manifest: Manifest, required: Sequence[str], defects: Defects) -> None:
    """Note splits without images, and images that are both trained on and tested on."""
    origin = ", ".join(manifest.annotations)
    for split in required:
        if not manifest.splits.get(split):
            defects.add(origin, f"split '{split}'", "has no images, expected at least 1")
    trained = {image.image_id: image.path for image in manifest.splits.get("train", ())}
    # Validation and test may be the same images: each is reported once.
    held_out = {
        image.image_id: (split, image.path)
        for split in ("val", "test")
        for image in manifest.splits.get(split, ())
    }
    for image_id, (split, path) in held_out.items():
        if image_id in trained:
            problem = f"is in the split 'train' and in '{split}'; remove it from one of them"
            defects.add(path, f"image {image_id}", problem)


def require_pairs(manifest: Manifest, split: str, count: int) -> None:
    """Raise unless a split has `count` calibration pairs (one pair an image)."""
    found = len(manifest.split(split))
    if count < 1:
        raise GapinitError(f"calibration: expected at least 1 pair, found {count}")
    if found < count:
        raise GapinitError(
            f"dataset '{manifest.name}': calibration needs {count} image-caption pairs, found "
            f"{found} images in the split '{split}'. Lower the calibration size or add images."
        )
