"""Read reference captions and predicted captions, and match them by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.entries import LONE_SURROGATE, examples

ImageId = int | str


@dataclass(frozen=True)
class References:
    """The reference captions of each image, in the order of their file.

    `splits` names the split of each image; it is empty for a file without splits.
    """

    captions: Mapping[ImageId, Sequence[str]]
    splits: Mapping[ImageId, str]


@dataclass(frozen=True)
class CaptionPair:
    """One image to score: its references and its one predicted caption."""

    image_id: ImageId
    references: Sequence[str]
    prediction: str


def read_references(path: Path) -> References:
    """Read a COCO captions JSON or a Karpathy JSON (COCO, or Flickr30k without `cocoid`)."""
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco_references(path, content)
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and any(
        isinstance(image, dict) and "sentences" in image for image in images
    ):
        return _karpathy_references(path, images)
    raise GapinitError(
        f"{path}: expected a COCO captions file (keys 'images' and 'annotations') or a Karpathy "
        f"file (key 'images', each with 'sentences'), found {_kind(content)}"
    )


def read_predictions(path: Path) -> list[tuple[ImageId, str]]:
    """Read captions in the COCO result format: a list of {image_id, caption}, one an image.

    An empty caption is legal: a model may say nothing.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise GapinitError(
            f"{path}: expected a list of {{'image_id', 'caption'}} (COCO result format), found "
            f"{_kind(content)}"
        )
    if not content:
        raise GapinitError(f"{path}: no predictions in it; there is nothing to score")
    predictions = []
    for number, entry in enumerate(content):
        place = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise GapinitError(f"{place}: expected {{'image_id', 'caption'}}, found {_kind(entry)}")
        image_id = _image_id(entry, "image_id", place)
        predictions.append((image_id, _caption(entry, "caption", f"{place} (image {image_id!r})")))
    return predictions


def match_captions(
    references: References,
    predictions: Sequence[tuple[ImageId, str]],
    references_path: Path,
    predictions_path: Path,
) -> list[CaptionPair]:
    """Return the images that have a prediction, in the order of the references.

    An id that is text in one file and a number in the other matches, if only one image is meant.
    """
    by_text: dict[str, list[ImageId]] = {}
    for image_id in references.captions:
        by_text.setdefault(str(image_id), []).append(image_id)
    predicted: dict[ImageId, str] = {}
    for number, (image_id, caption) in enumerate(predictions):
        found = [image_id] if image_id in references.captions else by_text.get(str(image_id), [])
        place = f"{predictions_path}: entry {number}: image {image_id!r}"
        if not found:
            raise GapinitError(
                f"{place} is not in {references_path}, which has {len(references.captions)} "
                f"images (such as {examples(references.captions)}). Are these the references of "
                f"this dataset?"
            )
        if found[0] in predicted:
            raise GapinitError(f"{place} has a second prediction; expected one for each image")
        if not references.captions[found[0]]:
            raise GapinitError(f"{references_path}: image {found[0]!r} has no reference caption")
        predicted[found[0]] = caption
    return [
        CaptionPair(image_id, captions, predicted[image_id])
        for image_id, captions in references.captions.items()
        if image_id in predicted
    ]


def count_without_prediction(references: References, pairs: Sequence[CaptionPair]) -> int:
    """Count the images that were to be captioned and were not.

    ASSUME: in a file with splits, these are the images of the splits that have predictions.
    """
    splits = {references.splits.get(pair.image_id) for pair in pairs}
    meant = sum(references.splits.get(image_id) in splits for image_id in references.captions)
    return meant - len(pairs)


def _coco_references(path: Path, content: Mapping[str, Any]) -> References:
    """Read `images` for the order and the set, `annotations` for the captions.

    As in pycocotools, an image listed twice counts once, and a caption of an image that is not
    listed is not used: subsets of COCO are often cut that way.
    """
    images = content.get("images")
    if not isinstance(images, list):
        raise GapinitError(f"{path}: key 'images': expected a list, found {_kind(images)}")
    captions: dict[ImageId, list[str]] = {}
    for number, image in enumerate(images):
        captions[_image_id(image, "id", f"{path}: images[{number}]")] = []
    for number, annotation in enumerate(content["annotations"]):
        place = f"{path}: annotations[{number}]"
        image_id = _image_id(annotation, "image_id", place)
        caption = _caption(annotation, "caption", f"{place} (image {image_id!r})")
        if image_id in captions:
            captions[image_id].append(caption)
    return References(captions, {})


def _karpathy_references(path: Path, images: Sequence[Any]) -> References:
    with_cocoid = [isinstance(image, dict) and "cocoid" in image for image in images]
    if any(with_cocoid) and not all(with_cocoid):
        raise GapinitError(
            f"{path}: images[{with_cocoid.index(False)}]: no 'cocoid', which other images have; "
            f"expected it for all of them or for none (then 'imgid' counts)"
        )
    key = "cocoid" if all(with_cocoid) else "imgid"
    captions: dict[ImageId, list[str]] = {}
    splits: dict[ImageId, str] = {}
    for number, image in enumerate(images):
        place = f"{path}: images[{number}]"
        image_id = _image_id(image, key, place)
        if image_id in captions:
            raise GapinitError(f"{place}: '{key}' {image_id!r} is there twice; expected it once")
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise GapinitError(
                f"{place} ('{key}' {image_id!r}): key 'sentences': expected a list, found "
                f"{_kind(sentences)}"
            )
        captions[image_id] = [
            _caption(sentence, "raw", f"{place}: sentences[{position}]")
            for position, sentence in enumerate(sentences)
        ]
        splits[image_id] = str(image.get("split", ""))
    return References(captions, splits)


def _image_id(entry: Any, key: str, place: str) -> ImageId:
    if not isinstance(entry, dict) or key not in entry:
        found = f"only the keys {sorted(entry)}" if isinstance(entry, dict) else _kind(entry)
        raise GapinitError(f"{place}: expected the key '{key}', found {found}")
    value = entry[key]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # what tables make of a column of ids
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise GapinitError(f"{place}: key '{key}': expected a number or text, found {value!r}")
    return value


def _caption(entry: Any, key: str, place: str) -> str:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        found = f"{value!r}" if isinstance(entry, dict) and key in entry else "no such key"
        raise GapinitError(f"{place}: key '{key}': expected the text of a caption, found {found}")
    return LONE_SURROGATE.sub("\ufffd", value)


def _kind(value: Any) -> str:
    """Say what a JSON value is, in a few words."""
    if isinstance(value, dict):
        return f"an object with the keys {sorted(value)[:6]}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"{value!r:.60}"
