"""The manifest of a prepared dataset: which image has which captions in which split."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts import digest, read_json, write_json
from gapinit.data.captions import CaptionedImage
from gapinit.data.locate import leaves_root
from gapinit.errors import GapinitError

KIND = "captions"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """A checked dataset: where its images are, what was read, and its splits.

    `annotations` holds the SHA-256 of each annotation file by name; `images_digest` stands for
    the bytes of all images, so that another picture under the same name is another dataset.
    """

    name: str
    root: Path
    annotations: Mapping[str, str]
    splits: Mapping[str, list[CaptionedImage]]
    images_digest: str = ""

    def split(self, name: str) -> list[CaptionedImage]:
        """Return the images of a split, or say which splits there are."""
        if name not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise GapinitError(f"dataset '{self.name}': no split '{name}' (it has: {known})")
        return self.splits[name]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON; a root inside the manifest's folder is kept relative to it."""
    root = Path(os.path.abspath(manifest.root))
    folder = Path(os.path.abspath(path)).parent
    relative = root.relative_to(folder).as_posix() if root.is_relative_to(folder) else None
    content = {
        "kind": KIND,
        "manifest_version": MANIFEST_VERSION,
        "name": manifest.name,
        "root": relative or str(root),
        "annotations": dict(manifest.annotations),
        "images_digest": manifest.images_digest,
        "counts": {split: len(images) for split, images in manifest.splits.items()},
        "splits": {
            split: [_to_json(image, root) for image in images]
            for split, images in manifest.splits.items()
        },
    }
    write_json(path, content)


def _to_json(image: CaptionedImage, root: Path) -> dict[str, Any]:
    file = os.path.relpath(os.path.abspath(image.path), root)
    return {
        "image_id": image.image_id,
        "file": Path(file).as_posix(),
        "captions": list(image.captions),
    }


def images_digest(digests: Mapping[Path, str], root: Path) -> str:
    """Return one SHA-256 for many images, given each one's, whatever their order and root."""
    return digest({os.path.relpath(path, root): value for path, value in digests.items()})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest of captioned images; anything else is an error that names the file."""
    path = Path(path)
    content = read_json(path)
    found = content.get("kind") if isinstance(content, dict) else None
    if found != KIND:
        raise GapinitError(
            f"{path}: expected a dataset manifest of kind '{KIND}', found kind {found!r}. "
            "Make one with `gapinit data`."
        )
    if content.get("manifest_version") != MANIFEST_VERSION:
        raise GapinitError(
            f"{path}: manifest version {content.get('manifest_version')!r}, expected "
            f"{MANIFEST_VERSION}. Delete it and run `gapinit data` again."
        )
    try:
        return _from_json(content, path.parent)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GapinitError(
            f"{path}: damaged dataset manifest ({type(error).__name__}: {error}). "
            "Delete it and run `gapinit data` again."
        ) from None


def _from_json(content: dict[str, Any], folder: Path) -> Manifest:
    root = folder / content["root"]
    splits = {
        split: [_image_from_json(entry, root, split) for entry in entries]
        for split, entries in content["splits"].items()
    }
    annotations = dict(content["annotations"])
    return Manifest(content["name"], root, annotations, splits, content["images_digest"])


def _image_from_json(entry: dict[str, Any], root: Path, split: str) -> CaptionedImage:
    file, captions = entry["file"], entry["captions"]
    if leaves_root(file):
        raise ValueError(f"the file name {file!r} leaves the root")
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise TypeError(f"'captions' of image {entry['image_id']!r} is not a list of texts")
    return CaptionedImage(int(entry["image_id"]), root / file, tuple(captions), split)


def write_references(images: Sequence[CaptionedImage], path: Path) -> None:
    """Write images and their captions as a COCO captions JSON: the references for scoring."""
    annotations = [(image.image_id, text) for image in images for text in image.captions]
    write_json(
        path,
        {
            "info": {"description": "reference captions of one split"},
            "licenses": [],
            "type": "captions",
            "images": [{"id": image.image_id, "file_name": image.path.name} for image in images],
            "annotations": [
                {"id": number, "image_id": image_id, "caption": text}
                for number, (image_id, text) in enumerate(annotations, start=1)
            ],
        },
    )
