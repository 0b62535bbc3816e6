"""Read reference captions and predicted captions, and match them by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.data.entries import read_object, top_list
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.entries import (
    EntryId,
    KnownIds,
    entry_id,
    entry_list,
    entry_text,
    read_results,
)


@dataclass(frozen=True)
class References:
    """The reference captions of each image, in the order of their file.

    `splits` maps each image to its split; it is empty for a file without splits.
    """

    path: Path
    captions: Mapping[EntryId, Sequence[str]]
    splits: Mapping[EntryId, str]


@dataclass(frozen=True)
class CaptionPair:
    """One image to score: its references and its predicted caption."""

    image_id: EntryId
    references: Sequence[str]
    prediction: str


def read_references(path: Path) -> References:
    """Read a COCO captions JSON or a Karpathy JSON (COCO, or Flickr30k without `cocoid`)."""
    content = read_object(path)
    images = top_list(content, "images", path)
    if "annotations" in content:
        return _coco_references(path, images, top_list(content, "annotations", path))
    return _karpathy_references(path, images)


def read_pairs(references: References, predictions: Path) -> list[CaptionPair]:
    """Return the images with a caption in a COCO result file, in the order of the references."""
    known = KnownIds(references.captions, references.path)
    predicted = read_results(predictions, "image_id", "caption", known)
    pairs = [
        CaptionPair(image_id, captions, predicted[image_id])
        for image_id, captions in references.captions.items()
        if image_id in predicted
    ]
    for pair in pairs:
        if not pair.references:
            raise GapinitError(
                f"{references.path}: image {pair.image_id!r}: expected reference captions, found "
                "none"
            )
    return pairs


def count_without_prediction(references: References, pairs: Sequence[CaptionPair]) -> int:
    """Count the images of the evaluated set that have no prediction.

    ASSUME: in a file with splits, the evaluated set is the splits that have predictions.
    """
    splits = {references.splits.get(pair.image_id) for pair in pairs}
    meant = sum(references.splits.get(image_id) in splits for image_id in references.captions)
    return meant - len(pairs)


def _coco_references(path: Path, images: Sequence[Any], annotations: Sequence[Any]) -> References:
    """Return the captions in `annotations` of the images in `images`, in the order of `images`.

    As in pycocotools, an image listed twice counts once, and captions of unlisted images are
    ignored: many subsets of COCO are made by shortening `images` only.
    """
    captions: dict[EntryId, list[str]] = {
        entry_id(image, "id", f"{path}: images[{number}]"): []
        for number, image in enumerate(images)
    }
    for number, annotation in enumerate(annotations):
        place = f"{path}: annotations[{number}]"
        image_id = entry_id(annotation, "image_id", place)
        caption = entry_text(annotation, "caption", f"{place} (image {image_id!r})")
        if image_id in captions:
            captions[image_id].append(caption)
    return References(path, captions, {})


def _karpathy_references(path: Path, images: Sequence[Any]) -> References:
    with_cocoid = any(isinstance(image, dict) and "cocoid" in image for image in images)
    key = "cocoid" if with_cocoid else "imgid"
    captions: dict[EntryId, list[str]] = {}
    splits: dict[EntryId, str] = {}
    for number, image in enumerate(images):
        place = f"{path}: images[{number}]"
        image_id = entry_id(image, key, place)
        if image_id in captions:
            raise GapinitError(f"{place}: '{key}' {image_id!r} is repeated; expected it once")
        captions[image_id] = [
            entry_text(sentence, "raw", f"{place}: sentences[{position}]")
            for position, sentence in enumerate(entry_list(image, "sentences", place))
        ]
        splits[image_id] = str(image.get("split", ""))
    return References(path, captions, splits)
