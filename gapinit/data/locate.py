"""Find the image files and annotation files of a dataset below its root."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from gapinit.errors import GapinitError

YEARS = ("2017", "2014")
KARPATHY_NAMES = ("dataset_coco.json", "dataset_flickr30k.json")
_YEAR_PREFIX = re.compile(r"^COCO_(?:train|val)2014_(?=\d{12}\.jpg$)")


@dataclass(frozen=True)
class AnnotationFiles:
    """Either one file, or a pair of COCO captions files for training and validation."""

    files: tuple[Path, ...]

    @property
    def is_pair(self) -> bool:
        """Tell whether there is a training file and a validation file."""
        return len(self.files) == 2


def leaves_root(name: str) -> bool:
    """Tell whether a file name from an annotation file could point outside its root."""
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

    COCO's 2017 release holds the images of 2014 under shorter names; a Karpathy split, which
    names those of 2014, finds either.
    """
    for candidate in dict.fromkeys((name, _YEAR_PREFIX.sub("", name))):
        for folder in dict.fromkeys(folders):
            path = os.path.join(root, folder, candidate)
            if os.path.isfile(path):
                return Path(path)
    return None


def karpathy_folders(filepath: str) -> list[str]:
    """Return the folders below the root where an image of a Karpathy split may be."""
    releases = [f"{split}{year}" for year in reversed(YEARS) for split in ("train", "val")]
    nested = [f"images/{release}" for release in releases]
    own = [filepath, "", f"images/{filepath}", "images", "flickr30k-images", "flickr30k_images"]
    return [*own, *releases, *nested]


def coco_folders(split: str) -> list[str]:
    """Return the folders below the root where an image of a COCO captions file may be.

    `split` is "train" or "val"; any other word means that either may hold it.
    """
    splits = (split,) if split in ("train", "val") else ("train", "val")
    releases = [f"{name}{year}" for year in YEARS for name in splits]
    return [*releases, "images", *[f"images/{release}" for release in releases], ""]


def find_annotations(data_root: Path, annotations: Path | None) -> AnnotationFiles:
    """Find the annotation files of a dataset.

    `annotations` is a file or a folder, as given or below `data_root`; None means the folder
    `annotations` below `data_root`, then `data_root` itself.
    """
    if not data_root.is_dir():
        raise GapinitError(f"{data_root}: no such folder (expected the dataset's root, data_root)")
    if annotations is None:
        return _in_folders([data_root / "annotations", data_root])
    tried = list(dict.fromkeys((annotations, data_root / annotations)))
    for path in tried:
        if path.is_file():
            return AnnotationFiles((path,))
        if path.is_dir():
            return _in_folders([path])
    names = " or ".join(str(path) for path in tried)
    raise GapinitError(f"annotations: no such file or folder (looked for {names})")


def _in_folders(folders: Sequence[Path]) -> AnnotationFiles:
    for folder in folders:
        found = _in_folder(folder)
        if found is not None:
            return found
    pairs = [f"captions_train{year}.json with captions_val{year}.json" for year in YEARS]
    names = ", or ".join([*KARPATHY_NAMES, *pairs])
    places = " and in ".join(str(folder) for folder in folders)
    raise GapinitError(
        f"no annotation file: looked in {places} for {names}. "
        "A file of another name can be given as `annotations`."
    )


def _in_folder(folder: Path) -> AnnotationFiles | None:
    karpathy = [folder / name for name in KARPATHY_NAMES if (folder / name).is_file()]
    if len(karpathy) == 2:
        names = " and ".join(path.name for path in karpathy)
        raise GapinitError(f"{folder}: holds {names}; give one of them as `annotations`")
    if karpathy:
        return AnnotationFiles((karpathy[0],))
    for year in YEARS:
        pair = [folder / f"captions_{split}{year}.json" for split in ("train", "val")]
        present = [path for path in pair if path.is_file()]
        if len(present) == 2:
            return AnnotationFiles(tuple(pair))
        if len(present) == 1:
            (missing,) = set(pair) - set(present)
            raise GapinitError(
                f"{missing}: no such file, but {present[0].name} is there. Add it, or give "
                f"{present[0]} as `annotations` to have it split into train and test."
            )
    return None
