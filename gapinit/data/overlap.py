"""Find images that are trained on in one split and scored on in another."""

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
    """An annotation file, the root its images were found below, and which entry names which."""

    file: AnnotationFile
    root: Path
    images: Sequence[NamedImage]
    samples: int


def note_overlaps(
    loaded: Sequence[LoadedFile], digests: Mapping[Path, str], defects: Defects
) -> None:
    """Note each training image that is also a validation or test image below the same root."""
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
    """Note the training images of one file that it or others hold out, each once.

    Two images are the same if their files or their bytes are, and, unless the annotation files are
    of different origin, if their numbers in COCO's names or their ids in one format are.
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
        # Karpathy's `restval` are validation images of COCO, and so of every other benchmark.
        places = [own] if image.split == "restval" else [own, foreign]
        keys = _keys(image, train.file, digests, same_origin)
        match = next((known[key] for known in places for key in keys if key in known), None)
        if match is not None:
            noted.add(image.path)
            _note(image, match, defects)


def _compared(train: AnnotationFile, held: AnnotationFile) -> bool:
    """Tell whether two files should have no image in common.

    Left out is what COCO's releases themselves share: the training images of 2017, which LLaVA
    uses too, hold most of the validation images of 2014, and Karpathy's `restval` are of these.
    Only where training captions of 2017 stand beside Karpathy's split, the reason to have both is
    calibration, from which his validation and test images have to be left out.
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
    """Return the keys that identify an image, the most specific first."""
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
    """Note pictures that are twice in a captions file that has no split and will be cut."""
    first: dict[Hashable, NamedImage] = {}
    for image in file.images:
        if image.split:
            continue
        keys = _keys(image, file.file, digests, same_origin=False)
        same = next((first[key] for key in keys if key in first), None)
        if same is not None:
            problem = (
                f"the picture ({_names(image, same)}) is also that of {same.entry}: when the file "
                "is cut, it may be trained on and tested on. Remove one of them."
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
