"""The manifest of a prepared dataset: its samples by split, and where its images are.

A sample is a captioned image, a question, or a conversation; the manifest's kind says which.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gapinit.artifacts.artifacts import digest, read_json, write_json
from gapinit.artifacts.digests import require_listed, write_listing
from gapinit.data.captions import CaptionedImage
from gapinit.data.locate import leaves_root
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.data.conversations import Conversation
    from gapinit.data.questions import Question

    Sample = CaptionedImage | Question | Conversation

Kind = Literal["captions", "vqa", "pope", "conversations"]
KINDS: tuple[Kind, ...] = ("captions", "vqa", "pope", "conversations")
MANIFEST_VERSION = 2
IMAGES = "images.sha256"
"""Beside a manifest: the SHA-256 of each image, as `sha256sum` writes it."""


@dataclass(frozen=True)
class Manifest:
    """A checked dataset: where its images are, what was read, and its splits.

    `annotations` holds the SHA-256 of each annotation file by name; `images_digest` stands for
    the bytes of all images, so that another picture under the same name is another dataset.
    """

    name: str
    root: Path
    annotations: Mapping[str, str]
    splits: Mapping[str, Sequence[Sample]]
    images_digest: str = ""
    kind: Kind = "captions"
    image_digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each image by its name below the root, where the images were checked just now."""

    def split(self, name: str) -> Sequence[Sample]:
        """Return the samples of a split, or say which splits there are."""
        if name not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise GapinitError(f"dataset '{self.name}': no split '{name}' (it has: {known})")
        return self.splits[name]

    def captions(self, split: str) -> list[CaptionedImage]:
        """Return the captioned images of a split; another kind of dataset is an error."""
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
        """Return an image's name below the root: what tells images apart in artifacts."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest as JSON; a root inside the manifest's folder is kept relative to it."""
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
        write_listing(Path(path).with_name(IMAGES), manifest.image_digests)
    write_json(path, content)


def require_images(path: Path, images: Sequence[Path], root: Path) -> None:
    """Raise GapinitError for an image that is not the one that the manifest at `path` was made of.

    A JPEG with a wrong byte decodes without complaint, into another picture.
    """
    require_listed(Path(path).with_name(IMAGES), root, images)


def _to_json(kind: Kind, sample: Any, root: Path) -> dict[str, Any]:
    path = os.path.relpath(os.path.abspath(sample.path), root)
    head = {"image_id": sample.image_id, "file": Path(path).as_posix()}
    if kind == "captions":
        return {**head, "captions": list(sample.captions)}
    if kind == "conversations":
        turns = [list(turn) for turn in sample.turns]
        return {"conversation_id": sample.conversation_id, **head, "turns": turns}
    texts = ("text", "question_type", "answer_type", "category")
    return {
        "question_id": sample.question_id,
        **head,
        **{name: getattr(sample, name) for name in texts},
        "answers": list(sample.answers),
    }


def images_digest(digests: Mapping[Path, str], root: Path) -> str:
    """Return one SHA-256 for many images, given each one's, whatever their order and root."""
    return digest({os.path.relpath(path, root): value for path, value in digests.items()})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; anything else is an error that names the file."""
    path = Path(path)
    content = read_json(path)
    found = content.get("kind") if isinstance(content, dict) else None
    if found not in KINDS:
        raise GapinitError(
            f"{path}: expected a dataset manifest of kind {', '.join(KINDS)}, found kind "
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
    splits = {
        split: [_sample(kind, entry, root, split) for entry in entries]
        for split, entries in content["splits"].items()
    }
    annotations = dict(content["annotations"])
    return Manifest(content["name"], root, annotations, splits, content["images_digest"], kind)


def _sample(kind: Kind, entry: dict[str, Any], root: Path, split: str) -> Sample:
    file, image_id = entry["file"], int(entry["image_id"])
    if leaves_root(file):
        raise ValueError(f"the file name {file!r} leaves the root")
    if kind == "captions":
        return CaptionedImage(image_id, root / file, _texts(entry, "captions"), split)
    if kind == "conversations":
        from gapinit.data.conversations import Conversation

        turns = tuple((str(asked), str(said)) for asked, said in entry["turns"])
        number = str(entry["conversation_id"])
        return Conversation(number, root / file, image_id, turns, split)
    from gapinit.data.questions import Question

    return Question(
        question_id=int(entry["question_id"]),
        image_id=image_id,
        path=root / file,
        text=str(entry["text"]),
        answers=_texts(entry, "answers"),
        question_type=str(entry["question_type"]),
        answer_type=str(entry["answer_type"]),
        category=str(entry["category"]),
        split=split,
    )


def _texts(entry: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = entry[key]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"'{key}' of image {entry['image_id']!r} is not a list of texts")
    return tuple(texts)
