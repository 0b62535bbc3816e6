"""Load images with their captions from a Karpathy split or a COCO captions file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.data.defects import Defects
from gapinit.data.entries import Entry, clean_caption, read_object, shown, top_list
from gapinit.data.locate import coco_folders, find_image, karpathy_folders, leaves_root
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

    The image id is the `cocoid`, or the `imgid` where there is none (Flickr30k). Defects are
    raised together, or added to `defects` if that is given.
    Source: Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, 2015 (the published splits).
    """
    noted = Defects() if defects is None else defects
    seen = _Ids(annotations, noted)
    images = []
    for index, value in enumerate(top_list(read_object(annotations), "images", annotations)):
        entry = Entry(value, annotations, f"images[{index}]", noted)
        image = _karpathy_image(entry, image_root, seen)
        if image is not None:
            images.append(image)
    if defects is None:
        noted.raise_if_any()
    return images


def _karpathy_image(entry: Entry, root: Path, seen: _Ids) -> CaptionedImage | None:
    image_id = entry.integer("cocoid" if "cocoid" in entry.fields else "imgid")
    name = entry.text("filename")
    filepath = entry.text("filepath") if "filepath" in entry.fields else ""
    split = entry.text("split")
    if split is not None and split not in KARPATHY_SPLITS:
        expected = ", ".join(KARPATHY_SPLITS)
        entry.problem(f"'split': expected one of {expected}, found {shown(split)}")
    captions = _sentences(entry, seen)
    if image_id is None or not name or filepath is None or split not in KARPATHY_SPLITS:
        if name == "":
            entry.problem("'filename': expected a file name, found ''")
        return None
    fresh = seen.add("image id", image_id, entry)
    path = _locate(entry, root, karpathy_folders(filepath), name, filepath)
    if path is None or not captions or not fresh:
        return None
    return CaptionedImage(image_id, path, captions, KARPATHY_SPLITS[split])


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


def load_coco_captions(
    annotations: Path, image_root: Path, split: str, defects: Defects | None = None
) -> list[CaptionedImage]:
    """Load a COCO captions JSON (`captions_train2017.json`) as the split `split`.

    Images are looked for in `<split>2017/`, `<split>2014/`, `images/` and the root itself.
    Keys that captions do not need (`type`, `categories`) are ignored. Defects are raised
    together, or added to `defects` if that is given.
    Source: the COCO data format, section "Image Captioning" (cocodataset.org).
    """
    noted = Defects() if defects is None else defects
    content = read_object(annotations)
    images = top_list(content, "images", annotations)
    notes = top_list(content, "annotations", annotations)
    seen = _Ids(annotations, noted)
    entries = _image_entries(images, seen)
    captions = _captions_by_image(notes, entries, seen)
    loaded = []
    for image_id, entry in entries.items():
        name = entry.text("file_name")
        if name == "":
            entry.problem("'file_name': expected a file name, found ''")
        path = _locate(entry, image_root, coco_folders(split), name, "") if name else None
        if image_id not in captions:
            entry.problem(f"image {image_id} has no caption. Add one or remove the entry.")
        elif path is not None and captions[image_id]:
            loaded.append(CaptionedImage(image_id, path, tuple(captions[image_id]), split))
    if defects is None:
        noted.raise_if_any()
    return loaded


def _image_entries(images: list[Any], seen: _Ids) -> dict[int, Entry]:
    entries: dict[int, Entry] = {}
    for index, value in enumerate(images):
        entry = Entry(value, seen.file, f"images[{index}]", seen.defects)
        image_id = entry.integer("id")
        if image_id is not None and seen.add("image id", image_id, entry):
            entries[image_id] = entry
    return entries


def _captions_by_image(
    notes: list[Any], images: dict[int, Entry], seen: _Ids
) -> dict[int, list[str]]:
    """Return the captions by image id; an image whose captions are all defective has none."""
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


def _locate(entry: Entry, root: Path, folders: list[str], name: str, filepath: str) -> Path | None:
    for part in (filepath, name):
        if leaves_root(part):
            entry.problem(f"the file name {shown(part)} leaves the image root {root}")
            return None
    path = find_image(root, folders, name)
    if path is None:
        looked = ", ".join(folder or "the root itself" for folder in list(dict.fromkeys(folders)))
        entry.problem(f"names the image {shown(name)}, which is not in {root} (looked in {looked})")
    return path
