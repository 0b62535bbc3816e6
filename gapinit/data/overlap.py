"""Find images that are in both a training split and a held-out split."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gapinit.data.annotation_files import OFFICIAL_CAPTIONS, AnnotationFile
from gapinit.data.captions import KARPATHY_SPLITS
from gapinit.data.defects import Defects, NamedImage
from gapinit.data.locate import coco_number

HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class LoadedFile:
    """An annotation file, the root of its images, and its images with the entries naming them."""

    file: AnnotationFile
    root: Path
    images: Sequence[NamedImage]
    samples: int


def note_overlaps(
    loaded: Sequence[LoadedFile], digests: Mapping[Path, str], defects: Defects
) -> None:
    """Report each training image that is also a validation or test image below the same root."""
    for train in loaded:
        others = [held for held in loaded if held.root == train.root]
        note_overlap(train, others, digests, defects)
        if train.file.format == "captions":
            _note_repeated(train, digests, defects)


def note_overlap(
    train: LoadedFile,
    others: Sequence[LoadedFile],
    digests: Mapping[Path, str],
    defects: Defects,
    *,
    same_origin: bool = True,
) -> None:
    """Report, once each, the training images of `train` that a file of `others` holds out.

    Two images are the same if their paths or bytes are equal. With `same_origin` equal COCO numbers
    in the file names, or equal ids in one format, suffice.
    """
    own: dict[Hashable, NamedImage] = {}
    foreign: dict[Hashable, NamedImage] = {}
    for held in others:
        if not _compared(train.file, held.file):
            continue
        for image in held.images:
            if KARPATHY_SPLITS.get(image.split) in HELD_OUT:
                known = own if held.file.path == train.file.path else foreign
                for key in _keys(image, held.file, digests, same_origin):
                    known.setdefault(key, image)
    noted = set()
    for image in train.images:
        if KARPATHY_SPLITS.get(image.split) != "train" or image.path in noted:
            continue
        # Karpathy's `restval` are COCO validation images, so other benchmarks hold them out.
        places = [own] if image.split == "restval" else [own, foreign]
        keys = _keys(image, train.file, digests, same_origin)
        match = next((known[key] for known in places for key in keys if key in known), None)
        if match is not None:
            noted.add(image.path)
            _note(image, match, defects)


def _compared(train: AnnotationFile, held: AnnotationFile) -> bool:
    """Tell whether two files must not share images.

    COCO's releases overlap by design: the 2017 training images, which LLaVA also uses, include most
    of the 2014 validation images, and Karpathy's `restval` are 2014 validation images. Such pairs
    are not compared. The exception is 2017 training captions with Karpathy's split: the captions
    then serve as calibration data, which must not contain his validation and test images.
    """
    if train.path == held.path:
        return True
    years = [OFFICIAL_CAPTIONS.fullmatch(file.path.name) for file in (train, held)]
    train_year, held_year = (year["year"] if year else "" for year in years)
    if train.format == "karpathy":
        return held.format in ("karpathy", "questions", "pope")
    if train.format == "captions":
        if held.format == "captions":
            return not (train_year and held_year) or train_year == held_year
        return held.format == "karpathy" or train_year != "2017"
    if train.format == "conversations":
        same = held.format == "conversations"
        return same or (held.format == "captions" and held_year != "2014")
    return True


def _keys(
    image: NamedImage, file: AnnotationFile, digests: Mapping[Path, str], same_origin: bool
) -> list[Hashable]:
    """Return the keys that identify an image, most specific first."""
    keys: list[Hashable] = [("file", os.path.realpath(image.path))]
    if image.path in digests:
        keys.append(("bytes", digests[image.path]))
    number = coco_number(image.path.name)
    if same_origin and number is not None:
        keys.append(("number", number))
    if same_origin and image.image_id is not None and file.format in ("captions", "questions"):
        keys.append(("id", file.format, image.image_id))
    return keys


def _note_repeated(file: LoadedFile, digests: Mapping[Path, str], defects: Defects) -> None:
    """Report duplicate pictures in a captions file without splits, which will be split later."""
    first: dict[Hashable, NamedImage] = {}
    for image in file.images:
        if image.split:
            continue
        keys = _keys(image, file.file, digests, same_origin=False)
        same = next((first[key] for key in keys if key in first), None)
        if same is not None:
            problem = (
                f"the picture ({_names(image, same)}) is also that of {same.entry}: the file will "
                "be split, and both training and test may get it. Remove one of them."
            )
            defects.add(image.file, image.entry, problem)
        for key in keys:
            first.setdefault(key, image)


def _names(image: NamedImage, other: NamedImage) -> str:
    same = image.path == other.path
    return image.path.name if same else f"{image.path.name} and {other.path.name}"


def _note(image: NamedImage, held: NamedImage, defects: Defects) -> None:
    where = f"{held.entry} of {held.file.name}" if held.file != image.file else held.entry
    what = f"image {image.image_id}" if image.image_id == held.image_id else "the picture"
    problem = (
        f"{what} ({_names(image, held)}) is in the split '{image.split}' and, as {where}, in "
        f"'{held.split}'. Remove it from one of them."
    )
    defects.add(image.file, image.entry, problem)
