"""The manifest of a prepared dataset: its samples by split, and the folder of its images.

Samples are captioned images, questions or conversations, depending on the manifest's kind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import TypeAdapter

from gapinit.artifacts.artifacts import digest, read_json, write_json
from gapinit.artifacts.digests import require_listed, write_listing
from gapinit.data.captions import CaptionedImage
from gapinit.data.conversations import Conversation
from gapinit.data.locate import leaves_root
from gapinit.data.questions import Question
from gapinit.errors import GapinitError

Sample = CaptionedImage | Question | Conversation
Kind = Literal["captions", "vqa", "pope", "conversations"]
_ASKED = ("text", "question_type", "answer_type", "category", "answers")
SAMPLES: dict[Kind, tuple[type[Any], tuple[str, ...]]] = {
    "captions": (CaptionedImage, ("image_id", "file", "captions")),
    "vqa": (Question, ("question_id", "image_id", "file", *_ASKED)),
    "pope": (Question, ("question_id", "image_id", "file", *_ASKED)),
    "conversations": (Conversation, ("conversation_id", "image_id", "file", "turns")),
}
"""By kind: the class of the samples, and the keys of a sample in the manifest."""
MANIFEST_VERSION = 2
IMAGES = "images.sha256"
"""File next to a manifest: the SHA-256 of each image, in `sha256sum`'s format."""


@dataclass(frozen=True)
class Manifest:
    """A checked dataset: the folder of its images, its annotation files and its splits.

    `annotations` maps each annotation file to its SHA-256. `images_digest` is a checksum of all
    images: the same file name with another picture is another dataset.
    """

    name: str
    root: Path
    annotations: Mapping[str, str]
    splits: Mapping[str, Sequence[Sample]]
    images_digest: str = ""
    kind: Kind = "captions"
    image_digests: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each image by its path below the root; empty in a manifest read from disk."""

    def split(self, name: str) -> Sequence[Sample]:
        """Return the samples of a split; an unknown split is an error that lists the splits."""
        if name not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise GapinitError(f"dataset '{self.name}': no split '{name}' (it has: {known})")
        return self.splits[name]

    def captions(self, split: str) -> list[CaptionedImage]:
        """Return the captioned images of a split; a dataset of another kind is an error."""
        if self.kind != "captions":
            raise GapinitError(
                f"dataset '{self.name}' holds {self.kind}, expected captions: calibration pairs "
                "are images with captions"
            )
        return cast("list[CaptionedImage]", list(self.split(split)))

    def images(self, split: str) -> list[Path]:
        """Return the image files of a split, each once, in the order of their first sample."""
        return list(dict.fromkeys(sample.path for sample in self.split(split)))

    def file(self, path: Path) -> str:
        """Return an image's path below the root, which identifies the image in artifacts."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON; a root inside the manifest's folder is written relative to it."""
    root = Path(os.path.abspath(manifest.root))
    folder = Path(os.path.abspath(path)).parent
    relative = root.relative_to(folder).as_posix() if root.is_relative_to(folder) else None
    content = {
        "kind": manifest.kind,
        "manifest_version": MANIFEST_VERSION,
        "name": manifest.name,
        "root": relative or str(root),
        "annotations": dict(manifest.annotations),
        "images_digest": manifest.images_digest,
        "counts": {split: len(samples) for split, samples in manifest.splits.items()},
        "splits": {
            split: [_to_json(manifest.kind, sample, root) for sample in samples]
            for split, samples in manifest.splits.items()
        },
    }
    if manifest.image_digests:
        write_listing(path.with_name(IMAGES), manifest.image_digests)
    write_json(path, content)


def require_images(path: Path, images: Sequence[Path], root: Path) -> None:
    """Raise GapinitError for an image whose checksum differs from that of the manifest at `path`.

    A decoder cannot detect this: a JPEG with one wrong byte decodes to another picture.
    """
    require_listed(path.with_name(IMAGES), root, images)


def _to_json(kind: Kind, sample: Sample, root: Path) -> dict[str, Any]:
    file = Path(os.path.relpath(os.path.abspath(sample.path), root)).as_posix()
    names = SAMPLES[kind][1]
    return {name: file if name == "file" else getattr(sample, name) for name in names}


def images_digest(digests: Mapping[Path, str], root: Path) -> str:
    """Combine the images' SHA-256 into one, independent of their order and root."""
    return digest({os.path.relpath(path, root): value for path, value in digests.items()})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; any other content is an error that names the file."""
    content = read_json(path)
    found = content.get("kind") if isinstance(content, dict) else None
    if found not in SAMPLES:
        raise GapinitError(
            f"{path}: expected a dataset manifest of kind {', '.join(SAMPLES)}, found kind "
            f"{found!r}. Make one with `gapinit data`."
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
    root, kind = folder / content["root"], content["kind"]
    of_kind = TypeAdapter(SAMPLES[kind][0])

    def sample(entry: dict[str, Any], split: str) -> Sample:
        file = entry["file"]
        if leaves_root(file):
            raise ValueError(f"the file name {file!r} leaves the root")
        return of_kind.validate_python({**entry, "path": root / file, "split": split})

    splits = {
        split: [sample(entry, split) for entry in entries]
        for split, entries in content["splits"].items()
    }
    annotations = dict(content["annotations"])
    return Manifest(content["name"], root, annotations, splits, content["images_digest"], kind)
