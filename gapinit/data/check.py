"""Check every image of a dataset before the expensive stages start."""

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

MIN_SIDE = 8  # ASSUME: a vision tower sees nothing in a smaller image: the file is a mistake
MAX_ASPECT = 200  # the limit of Qwen2-VL's processor
MAX_THREADS = 8


def check_images(paths: Iterable[Path], defects: Defects) -> dict[Path, str]:
    """Decode every image once, in threads; return the SHA-256 of each valid file.

    An image is a defect if it cannot be opened, is damaged or truncated, is in none of `FORMATS`,
    exceeds Pillow's decompression-bomb limit, or has an implausible size.
    """
    unique = list(dict.fromkeys(paths))
    digests = {}
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # _check_image checks for Pillow's serious warnings
        results = track(pool.map(_check_image, unique), "checking images", total=len(unique))
        for path, (problem, sha256) in zip(unique, results, strict=True):
            if problem is None:
                digests[path] = sha256
            else:
                defects.add(path, "", problem)
    return digests


def _check_image(path: Path) -> tuple[str | None, str]:
    """Decode a whole image file; return (problem, "") or (None, SHA-256)."""
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
    except Exception as error:  # Pillow's decoders raise many classes on damaged bytes
        return f"damaged image ({type(error).__name__}: {error})", ""


def size_problem(size: tuple[int, int], max_pixels: int | None) -> str | None:
    """Return the problem with an image's width and height, or None."""
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        return f"too many pixels: {width} x {height}, expected at most {max_pixels}"
    if min(size) < MIN_SIDE:
        return f"too small: {width} x {height} pixels, expected at least {MIN_SIDE} each way"
    if max(size) > MAX_ASPECT * min(size):
        return f"too narrow: {width} x {height} pixels, expected an aspect of at most {MAX_ASPECT}"
    return None


def check_splits(manifest: Manifest, required: Sequence[str], defects: Defects) -> None:
    """Report splits without images, and images in both the training and a held-out split."""
    origin = ", ".join(manifest.annotations)
    for split in required:
        if not manifest.splits.get(split):
            defects.add(origin, f"split '{split}'", "has no images, expected at least 1")
    trained = {image.image_id: image.path for image in manifest.splits.get("train", ())}
    # Validation and test may share images: each is reported once.
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
    """Raise unless a split has `count` calibration pairs (one pair per image)."""
    found = len(manifest.split(split))
    if found < count:
        raise GapinitError(
            f"dataset '{manifest.name}': calibration needs {count} image-caption pairs, found "
            f"{found} images in the split '{split}'. Lower the calibration size or add images."
        )
