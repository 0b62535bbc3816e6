"""Find a dataset's image files and annotation files below its root."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from gapinit.errors import GapinitError

YEARS = ("2017", "2014")
KARPATHY_NAMES = ("dataset_coco.json", "dataset_flickr30k.json")
POPE_CATEGORIES = ("random", "popular", "adversarial")
_YEAR_PREFIX = re.compile(r"^COCO_(?:train|val)2014_(?=\d{12}\.jpg$)")
_SHORT_NAME = re.compile(r"\d{12}\.jpg")
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})\.jpg")


def leaves_root(name: str) -> bool:
    """Tell whether a file name from an annotation file could be outside its root."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return bool(
        posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
        or "\0" in name
    )


def find_image(root: Path, folders: Sequence[str], name: str) -> Path | None:
    """Return the first existing `root/folder/name`, or None.

    COCO's 2017 release has the images of 2014 under shorter names; either name finds either file.
    """
    if _SHORT_NAME.fullmatch(name):
        names = [name, *(f"COCO_{split}2014_{name}" for split in ("train", "val"))]
    else:
        names = list(dict.fromkeys((name, _YEAR_PREFIX.sub("", name))))
    for candidate in names:
        for folder in dict.fromkeys(folders):
            path = os.path.join(root, folder, candidate)
            if os.path.isfile(path):
                return Path(path)
    return None


def find_images_by_id(root: Path, split: str) -> dict[int, Path]:
    """Return COCO's images by id, which is the same in both releases.

    If an id occurs twice, the image in a folder of `split` is used.
    """
    found: dict[int, Path] = {}
    for folder in coco_folders(split):
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except OSError:  # a missing or unreadable folder has no images
            continue
        for name in names:
            image_id = coco_number(name)
            if image_id is not None:
                found.setdefault(image_id, Path(root, folder, name))
    return found


def coco_number(name: str) -> int | None:
    """Return the image id in a COCO file name; None for any other name."""
    found = _COCO_NAME.fullmatch(name)
    return int(found[1]) if found else None


def image_number(name: str) -> int:
    """Return an id for an image that has only a file name.

    ASSUME: the digits at the end of the name are the id, as in COCO's names. A name without such
    digits gets a number derived from its SHA-256, far above COCO's ids.
    """
    digits = re.search(r"[0-9]+$", PurePosixPath(name).stem)
    if digits and len(digits[0]) <= 18:
        return int(digits[0])
    return 2**62 + int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:7])


def leading_out(path: Path, root: Path) -> Path | None:
    """Return the first part of a path that is a link out of the root, or None."""
    base = os.path.realpath(root)
    step = root
    for part in path.relative_to(root).parts:
        step = step / part
        if not Path(os.path.realpath(step)).is_relative_to(base):
            return step
    return None


def karpathy_folders(filepath: str) -> list[str]:
    """Return the folders below the root in which an image of a Karpathy split may be."""
    releases = [f"{split}{year}" for year in reversed(YEARS) for split in ("train", "val")]
    nested = [f"images/{release}" for release in releases]
    own = [filepath, "", f"images/{filepath}", "images", "flickr30k-images", "flickr30k_images"]
    return [*own, *releases, *nested]


def coco_folders(split: str, name: str = "") -> list[str]:
    """Return the folders below the root in which a COCO image may be, those of the split first.

    The other split's folders are included, since the 2017 release regroups the images of 2014 and
    COCO's file names are unique. They are excluded for a `name` that is not COCO's.
    """
    splits = ["val", "train"] if split in ("val", "test") else ["train", "val"]
    if name and split in splits and coco_number(name) is None:
        splits = [split]
    releases = [f"{word}{year}" for word in splits for year in YEARS]
    return [*releases, "images", *[f"images/{release}" for release in releases], ""]


def find_annotations(data_root: Path, annotations: Path | None) -> tuple[Path, ...]:
    """Find a dataset's captions file, or COCO's two files (training and validation).

    `annotations` is a file or a folder, as given or relative to `data_root`; None means the folder
    `annotations` in `data_root`, then `data_root` itself.
    """
    if not data_root.is_dir():
        raise GapinitError(f"{data_root}: no such folder (expected the dataset's root, data_root)")
    if annotations is None:
        return _in_folders([data_root / "annotations", data_root])
    # The setting may name a folder outside the root; a user's own folder often holds all files.
    beside = (data_root / annotations.name, data_root / "annotations" / annotations.name)
    tried = list(dict.fromkeys((annotations, data_root / annotations, *beside)))
    for path in tried:
        if path.is_file():
            return (path,)
        if path.is_dir():
            return _in_folders([path])
    names = " or ".join(str(path) for path in tried[:2])
    raise GapinitError(f"annotations: no such file or folder (looked for {names})")


def _in_folders(folders: Sequence[Path]) -> tuple[Path, ...]:
    for folder in folders:
        karpathy = [folder / name for name in KARPATHY_NAMES if (folder / name).is_file()]
        if len(karpathy) > 1:
            names = " and ".join(path.name for path in karpathy)
            raise GapinitError(f"{folder}: holds {names}; select one with `annotations`")
        if karpathy:
            return tuple(karpathy)
        for year in YEARS:
            pair = (folder / f"captions_train{year}.json", folder / f"captions_val{year}.json")
            if _are_there(pair, ", or name the other in `annotations` to split it at random"):
                return pair
    pairs = [f"captions_train{year}.json with captions_val{year}.json" for year in YEARS]
    names = ", or ".join([*KARPATHY_NAMES, *pairs])
    places = " and in ".join(str(folder) for folder in folders)
    raise GapinitError(
        f"no annotation file: looked in {places} for {names}. "
        "Name any other file with `annotations`."
    )


def _are_there(pair: tuple[Path, Path], advice: str = "") -> bool:
    """Tell whether both files of a pair exist; a single one is an error."""
    one, other = (path.is_file() for path in pair)
    if one != other:
        missing, present = pair[one], pair[other]
        raise GapinitError(f"{missing}: no such file, but {present.name} is there. Add it{advice}.")
    return one


def find_question_files(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Return the questions and annotations files of a split (train, val) of VQAv2 or OK-VQA."""
    for place in (folder, folder / "annotations", folder / "vqa"):
        pairs = []
        for version in ("v2_", ""):
            questions = place / f"{version}OpenEnded_mscoco_{split}2014_questions.json"
            pair = questions, place / f"{version}mscoco_{split}2014_annotations.json"
            pairs += [pair] if _are_there(pair) else []
        if pairs:
            _require_one(place, [questions for questions, _ in pairs])
            return pairs[0]
    return None


def find_pope_file(folder: Path, category: str) -> Path | None:
    """Return POPE's question file of a category (random, popular, adversarial)."""
    for place in (folder, folder / "annotations", folder / "pope", folder / "vqa"):
        names = [f"*_pope_{category}.{suffix}" for suffix in ("json", "jsonl")]
        files = sorted(path for name in names for path in place.glob(name) if path.is_file())
        if files:
            _require_one(place, files)
            return files[0]
    return None


def _require_one(place: Path, files: Sequence[Path]) -> None:
    if len(files) > 1:
        listed = " and ".join(path.name for path in files)
        raise GapinitError(f"{place}: holds {listed}; put each dataset into its own folder")
