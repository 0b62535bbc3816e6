"""Load images with their captions from a Karpathy split or a COCO captions file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.data.defects import Defects
from gapinit.data.entries import (
    Entry,
    clean_caption,
    file_name,
    locate_image,
    read_object,
    shown,
    top_list,
)
from gapinit.data.locate import coco_folders, image_number, karpathy_folders
from gapinit.errors import GapinitError

# Karpathy and Fei-Fei's split trains on `restval` too: the validation images it does not use.
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class CaptionedImage:
    """One image file, its id in the annotation file, its captions and its split."""

    image_id: int
    path: Path
    captions: tuple[str, ...]
    split: str


def load_karpathy(
    annotations: Path, image_root: Path, defects: Defects | None = None
) -> list[CaptionedImage]:
    """Load every split of a Karpathy-format JSON (`dataset_coco.json`, `dataset_flickr30k.json`).

    The image id is the `cocoid`, or the `imgid` in a file that has none (Flickr30k). Defects are
    raised together, or added to `defects` if that is given.
    Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, 2015 (the published splits).
    """
    noted = Defects() if defects is None else defects
    seen = _Ids(annotations, noted)
    values = top_list(read_object(annotations), "images", annotations)
    keys = [key for key in ("cocoid", "imgid", "filepath") if _most_have(values, key)]
    images = []
    for index, value in enumerate(values):
        entry = Entry(value, annotations, f"images[{index}]", noted)
        image = _karpathy_image(entry, keys, image_root, seen)
        if image is not None:
            images.append(image)
    if defects is None:
        noted.raise_if_any()
    return images


def _most_have(values: list[Any], key: str) -> bool:
    return sum(isinstance(value, dict) and key in value for value in values) * 2 > len(values)


def _karpathy_image(entry: Entry, keys: list[str], root: Path, seen: _Ids) -> CaptionedImage | None:
    """Read one entry; `keys` are those that not every file has, but most entries of this one."""
    expected = {*keys, *entry.fields}
    image_id = entry.integer("cocoid" if "cocoid" in expected else "imgid")
    name = file_name(entry, "filename")
    filepath = entry.text("filepath") if "filepath" in expected else ""
    split = entry.text("split")
    if split is not None and split not in KARPATHY_SPLITS:
        known = ", ".join(KARPATHY_SPLITS)
        entry.problem(f"'split': expected one of {known}, found {shown(split)}")
    captions = _sentences(entry, seen)
    fresh = image_id is not None and seen.add("image id", image_id, entry)
    number = entry.integer("imgid") if expected >= {"cocoid", "imgid"} else None
    if fresh and number is not None:
        seen.add("imgid", number, entry)
    path = None
    if name is not None and filepath is not None:
        path = locate_image(entry, root, karpathy_folders(filepath), name, filepath)
    if path is not None:
        entry.names_image(path, image_id, split or "")
    used = KARPATHY_SPLITS.get(split or "")
    if image_id is None or path is None or used is None or not captions or not fresh:
        return None
    return CaptionedImage(image_id, path, captions, used)


def _sentences(entry: Entry, seen: _Ids) -> tuple[str, ...]:
    captions = []
    sentences = entry.items("sentences")
    if sentences is not None and not sentences:
        entry.problem("'sentences': the image has no caption. Add one or remove the entry.")
    for number, value in enumerate(sentences or ()):
        place = f"{entry.place}.sentences[{number}]"
        sentence = Entry(value, entry.file, place, entry.defects)
        if "sentid" in sentence.fields:
            sentid = sentence.integer("sentid")
            if sentid is not None:
                seen.add("annotation id (sentid)", sentid, sentence)
        text = clean_caption(sentence, "raw")
        if text is not None:
            captions.append(text)
    return tuple(captions)


def karpathy_held_out(annotations: Path) -> set[int]:
    """Return the image ids of a Karpathy split's validation and test images, without files."""
    defects = Defects()
    held_out = set()
    for index, value in enumerate(top_list(read_object(annotations), "images", annotations)):
        entry = Entry(value, annotations, f"images[{index}]", defects)
        if entry.text("split") in ("val", "test"):
            image_id = entry.integer("cocoid" if "cocoid" in entry.fields else "imgid")
            if image_id is not None:
                held_out.add(image_id)
    defects.raise_if_any()
    return held_out


def load_coco_captions(
    annotations: Path, image_root: Path, split: str, defects: Defects | None = None
) -> list[CaptionedImage]:
    """Load a COCO captions JSON (`captions_train2017.json`) as the split `split`.

    Images are looked for in `<split>2017/`, `<split>2014/`, `images/` and the root itself, and
    under a name of COCO's in the folders of the other split too.
    Keys that captions do not need (`type`, `categories`) are ignored. Defects are raised
    together, or added to `defects` if that is given.
    Source: the COCO data format, section "Image Captioning" (cocodataset.org).
    """
    noted = Defects() if defects is None else defects
    content = read_object(annotations)
    images = top_list(content, "images", annotations)
    notes = top_list(content, "annotations", annotations)
    seen = _Ids(annotations, noted)
    entries, others = _image_entries(images, seen)
    captions = _captions_by_image(notes, entries, others, seen)
    loaded = []
    for image_id, entry in [*entries.items(), *((None, entry) for entry in others)]:
        name = file_name(entry, "file_name")
        path = locate_image(entry, image_root, coco_folders(split, name), name) if name else None
        if path is not None:
            entry.names_image(path, image_id, split)
        if image_id is None:
            continue
        if image_id not in captions:
            entry.problem(f"image {image_id} has no caption. Add one or remove the entry.")
        elif path is not None and captions[image_id]:
            loaded.append(CaptionedImage(image_id, path, tuple(captions[image_id]), split))
    if defects is None:
        noted.raise_if_any()
    return loaded


def _image_entries(images: list[Any], seen: _Ids) -> tuple[dict[int, Entry], list[Entry]]:
    """Return the entries by image id, and those whose id cannot be used."""
    entries: dict[int, Entry] = {}
    others = []
    for index, value in enumerate(images):
        entry = Entry(value, seen.file, f"images[{index}]", seen.defects)
        image_id = entry.integer("id")
        if image_id is not None and seen.add("image id", image_id, entry):
            entries[image_id] = entry
        else:
            others.append(entry)
    return entries, others


def _captions_by_image(
    notes: list[Any], images: dict[int, Entry], others: list[Entry], seen: _Ids
) -> dict[int, list[str]]:
    """Return the captions by image id; an image whose captions are all defective has none.

    The captions of an image entry whose id is wrong, and told as such, are not told again.
    """
    names = (entry.fields.get("file_name") for entry in others)
    told = {image_number(name) for name in names if isinstance(name, str)}
    captions: dict[int, list[str]] = {}
    for index, value in enumerate(notes):
        entry = Entry(value, seen.file, f"annotations[{index}]", seen.defects)
        note_id, image_id = entry.integer("id"), entry.integer("image_id")
        if note_id is not None:
            seen.add("annotation id", note_id, entry)
        text = clean_caption(entry, "caption")
        if image_id is None:
            continue
        if image_id not in images:
            if image_id not in told:
                entry.problem(f"'image_id': {image_id} is no entry of 'images'")
            continue
        captions.setdefault(image_id, [])
        if text is not None:
            captions[image_id].append(text)
    return captions


def is_karpathy(annotations: Path) -> bool:
    """Tell a Karpathy split, which has its own splits, from a COCO captions file, by its keys."""
    content = read_object(annotations)
    if "annotations" in content:
        return False
    images = top_list(content, "images", annotations)
    if any(isinstance(entry, dict) and "sentences" in entry for entry in images):
        return True
    raise GapinitError(
        f"{annotations}: expected COCO captions (keys 'images' and 'annotations') or a Karpathy "
        "split (key 'images', each with 'sentences'), found neither"
    )


class _Ids:
    """The ids seen so far in one file, to find those that occur twice."""

    def __init__(self, file: Path, defects: Defects) -> None:
        self.file, self.defects = file, defects
        self._first: dict[tuple[str, Hashable], str] = {}

    def add(self, kind: str, value: int, entry: Entry) -> bool:
        """Remember an id; a second one is noted as a defect and False is returned."""
        first = self._first.setdefault((kind, value), entry.place)
        if first == entry.place:
            return True
        entry.problem(f"duplicate {kind} {value}, already used by {first}")
        return False
