"""Choose the test images on which methods disagree, and shrink them to data URIs.

The prediction browser shows what a point of CIDEr looks like: the image, the references, and each
method's caption. The selection shows differences; it is not a random sample, and the page says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.config.runs import Run
from gapinit.data.images import load_image
from gapinit.data.manifest import read_manifest, require_images
from gapinit.errors import GapinitError
from gapinit.tables.records import Measurement
from gapinit.tables.scores import ScoreFolder

LONGEST_SIDE = 320
"""Longest side of a thumbnail, in pixels."""
LOSSLESS_SIDE = 64
"""Images up to this size are embedded as PNG: JPEG blocks would dominate them."""


@dataclass(frozen=True)
class Caption:
    """One method's caption of one image."""

    label: str
    text: str
    cider: float


@dataclass(frozen=True)
class Prediction:
    """One test image with its references and each method's caption, best first."""

    image_id: int
    uri: str
    width: int
    height: int
    references: tuple[str, ...]
    captions: tuple[Caption, ...]
    scores: tuple[str, ...]
    """The CIDEr of the captions in the order of `Browser.labels`, as text."""
    spread: float


@dataclass(frozen=True)
class Browser:
    """The chosen images, and how they were chosen."""

    predictions: tuple[Prediction, ...]
    by_disagreement: bool
    """False with a single trained method: then the images are evenly spaced over its scores."""
    labels: tuple[str, ...]
    images: int
    """The number of images from which they were chosen."""


def browse_predictions(
    rows: Sequence[Measurement],
    *,
    scores: ScoreFolder,
    dataset: str,
    manifest: Path,
    count: int = 40,
) -> Browser:
    """Choose `count` test images, each with the caption of the first run of every row.

    With two or more trained methods, the images with the largest range of per-image CIDEr over
    the trained methods are taken; with one, images evenly spaced in the order of its scores.
    Raises GapinitError that names a missing or wrong score file, an image that is not in the
    manifest, or an unreadable image.
    """
    # ASSUME: one run a row is shown, its first seed; the untrained backbone is shown but does not
    # count in the choice, since it differs from everything on nearly every image.
    shown = {Run.parse(row.runs[0]): row.label for row in rows}
    if not shown:
        return Browser((), False, (), 0)
    said: dict[Run, dict[Any, tuple[str, float]]] = {}
    for run in shown:
        found = scores.scores(run, dataset, "the report")
        captions = zip(found.captions, found.per_sample["CIDEr"].tolist(), strict=True)
        said[run] = dict(zip(found.sample_ids, captions, strict=True))
    trained = [run for run in shown if run.trained] or list(shown)
    ciders = {image: [said[run][image][1] for run in trained] for image in sorted(said[trained[0]])}
    spread = {image: max(values) - min(values) for image, values in ciders.items()}
    by_disagreement = len(trained) > 1
    if by_disagreement:
        # Ties go to the smaller image id, so that the page is the same on every machine.
        chosen = sorted(ciders, key=lambda image: (-spread[image], image))[:count]
    else:
        chosen = _spaced(sorted(ciders, key=lambda image: (-ciders[image][0], image)), count)
    data = read_manifest(manifest)
    images = {image.image_id: image for image in data.captions("test")}
    for image in chosen:
        if image not in images:
            raise GapinitError(
                f"{manifest}: split 'test' has no image {image}, which a score file names. "
                "Decode and score again with this dataset."
            )
    require_images(manifest, [images[image].path for image in chosen], data.root)
    predictions = []
    for image in chosen:
        spoken = [Caption(label, *said[run][image]) for run, label in shown.items()]
        predictions.append(
            Prediction(
                image,
                *thumbnail(images[image].path),
                references=tuple(images[image].captions),
                captions=tuple(sorted(spoken, key=lambda caption: -caption.cider)),
                scores=tuple(f"{caption.cider:.2f}" for caption in spoken),
                spread=spread[image],
            )
        )
    return Browser(tuple(predictions), by_disagreement, tuple(shown.values()), len(ciders))


def thumbnail(path: Path) -> tuple[str, int, int]:
    """Return an image as a data URI of at most 320 px, with its width and height.

    The pixels are encoded anew, so no metadata of a photograph (place, camera) is published.
    """
    from PIL import ImageOps

    image = ImageOps.exif_transpose(load_image(path))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    lossless = max(image.size) <= LOSSLESS_SIDE
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=80, optimize=True)
    return data_uri(buffer.getvalue(), "image/png" if lossless else "image/jpeg"), *image.size


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _spaced(ordered: Sequence[int], count: int) -> list[int]:
    """Return at most `count` evenly spaced entries, including the first and the last."""
    if len(ordered) <= count:
        return list(ordered)
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]
