"""Load images with their captions from a Karpathy split or a COCO captions file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gapinit.data.defects import Defects
from gapinit.data.entries import (
    Entry,
    Seen,
    as_entries,
    by_id,
    locate_image,
    read_entries,
    read_object,
    top_list,
)
from gapinit.data.locate import coco_folders, karpathy_folders

# `restval`: COCO's other validation images, which Karpathy and Fei-Fei use for training.
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class CaptionedImage:
    """An image file with its id in the annotation file, its captions and its split."""

    image_id: int
    path: Path
    captions: tuple[str, ...]
    split: str


def load_karpathy(annotations: Path, image_root: Path, defects: Defects) -> list[CaptionedImage]:
    """Load every split of a Karpathy-format JSON (`dataset_coco.json`, `dataset_flickr30k.json`).

    The image id is the `cocoid`, or the `imgid` in a file without `cocoid` (Flickr30k).
    Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, 2015 (the published splits).
    """
    seen: Seen = {}
    entries = list(read_entries(annotations, "images", defects))
    # Optional keys; a file with one of them in most entries must have it in all.
    optional = ("cocoid", "imgid", "filepath")
    keys = {key for key in optional if 2 * sum(key in e.fields for e in entries) > len(entries)}
    images = [_karpathy_image(entry, keys, image_root, seen) for entry in entries]
    return [image for image in images if image is not None]


def _karpathy_image(entry: Entry, keys: set[str], root: Path, seen: Seen) -> CaptionedImage | None:
    expected = {*keys, *entry.fields}
    image_id = entry.integer("cocoid" if "cocoid" in expected else "imgid")
    name = entry.file_name("filename")
    filepath = entry.text("filepath") if "filepath" in expected else ""
    split = entry.choice("split", KARPATHY_SPLITS)
    captions = _sentences(entry, seen)
    fresh = image_id is not None and entry.is_first(seen, "image id", image_id)
    number = entry.integer("imgid") if expected >= {"cocoid", "imgid"} else None
    if fresh and number is not None:
        entry.is_first(seen, "imgid", number)
    path = None
    if name is not None and filepath is not None:
        path = locate_image(entry, root, karpathy_folders(filepath), name, filepath)
    if path is not None:
        entry.names_image(path, image_id, split or "")
    if image_id is None or path is None or split is None or not captions or not fresh:
        return None
    return CaptionedImage(image_id, path, captions, KARPATHY_SPLITS[split])


def _sentences(entry: Entry, seen: Seen) -> tuple[str, ...]:
    captions = []
    sentences = entry.inner("sentences")
    if sentences is not None and not sentences:
        entry.problem("'sentences': the image has no caption. Add one or remove the entry.")
    for sentence in sentences or ():
        if "sentid" in sentence.fields:
            sentid = sentence.integer("sentid")
            if sentid is not None:
                sentence.is_first(seen, "annotation id (sentid)", sentid)
        text = sentence.words("raw", "caption")
        if text is not None:
            captions.append(text)
    return tuple(captions)


def karpathy_held_out(annotations: Path) -> set[int]:
    """Return the ids of a Karpathy split's validation and test images."""
    held_out = set()
    with Defects() as defects:
        for entry in read_entries(annotations, "images", defects):
            if entry.text("split") in ("val", "test"):
                held_out.add(entry.integer("cocoid" if "cocoid" in entry.fields else "imgid"))
    return {image_id for image_id in held_out if image_id is not None}


def load_coco_captions(
    annotations: Path, image_root: Path, split: str, defects: Defects
) -> list[CaptionedImage]:
    """Load a COCO captions JSON (`captions_train2017.json`) as the split `split`.

    Images are looked up in `<split>2017/`, `<split>2014/`, `images/` and the root; images with a
    COCO file name also in the folders of the other split. Other keys (`type`, `categories`) are
    ignored.
    Source: the COCO data format, section "Image Captioning" (cocodataset.org).
    """
    content = read_object(annotations)
    listed = top_list(content, "images", annotations)
    notes = top_list(content, "annotations", annotations)
    images, others = by_id(as_entries(listed, "images", annotations, defects), "id", "image id")
    noted = as_entries(notes, "annotations", annotations, defects)
    captions = _captions_by_image(noted, images, others)
    loaded = []
    for image_id, entry in [*images.items(), *((None, entry) for entry in others)]:
        name = entry.file_name("file_name")
        path = locate_image(entry, image_root, coco_folders(split, name), name) if name else None
        if path is not None:
            entry.names_image(path, image_id, split)
        if image_id is None:
            continue
        if image_id not in captions:
            entry.problem(f"image {image_id} has no caption. Add one or remove the entry.")
        elif path is not None and captions[image_id]:
            loaded.append(CaptionedImage(image_id, path, tuple(captions[image_id]), split))
    return loaded


def _captions_by_image(
    notes: Iterable[Entry], images: dict[int, Entry], others: list[Entry]
) -> dict[int, list[str]]:
    """Return the captions by image id; an image with only defective captions has an empty list.

    A caption without an image may belong to one of `others`, whose id is already a defect.
    """
    captions: dict[int, list[str]] = {}
    seen: Seen = {}
    for entry in notes:
        note_id, image_id = entry.integer("id"), entry.integer("image_id")
        if note_id is not None:
            entry.is_first(seen, "annotation id", note_id)
        text = entry.words("caption", "caption")
        if image_id is None:
            continue
        if image_id in images:
            found = captions.setdefault(image_id, [])
            if text is not None:
                found.append(text)
        elif not others:
            entry.problem(f"'image_id': {image_id} is not an id in 'images'")
    return captions
