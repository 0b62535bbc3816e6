"""A dataset that lies in a folder: what its file may say, and how each format is read."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gapinit.artifacts.artifacts import sha256
from gapinit.config.yaml_files import Settings
from gapinit.data.captions import (
    CaptionedImage,
    is_karpathy,
    karpathy_held_out,
    load_coco_captions,
    load_karpathy,
)
from gapinit.data.check import check_images, check_splits
from gapinit.data.defects import Defects
from gapinit.data.locate import POPE_CATEGORIES, find_annotations
from gapinit.data.manifest import Kind, Manifest, images_digest
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.data.manifest import Sample

TRAIN_SHARE = 0.8  # ASSUME: of a single captions file, which carries no split of its own
NEEDED_SPLITS: dict[Kind, tuple[str, ...]] = {
    "captions": ("train", "val", "test"),
    "vqa": ("train", "val", "test"),
    "pope": ("test",),
    "conversations": ("train",),
}


class FolderSettings(Settings):
    """A dataset that is on disk, or that the workflow retrieves (`config/datasets/*.yaml`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    format: Kind = "captions"
    root: Path | None = None
    """Its folder: of a retrieved dataset below the folder of all data."""
    annotations: Path | None = None
    """Its annotation file or folder, below `root`, where there are several."""
    splits: list[Literal["train", "val", "test"]] | None = None
    """The splits it must have, if not the usual ones of its format."""
    exclude: Path | None = None
    """A Karpathy split whose validation and test images are left out of `train`."""
    answers: Literal["answer", "raw_answer"] = "answer"
    """OK-VQA: the stemmed answers, or those that people gave."""
    sample: dict[str, int] = {}
    """At most so many samples of a split, drawn by `seed`."""
    retrieve: list[str] = []
    """What it is made of: names in `config/downloads.yaml`."""
    seed: int = Field(default=42, ge=0)

    def needed(self) -> tuple[str, ...]:
        """Return the splits that must have samples."""
        return tuple(self.splits or NEEDED_SPLITS[self.format])


def load_folder(
    settings: FolderSettings,
    data_root: Path | None = None,
    annotations: Path | None = None,
    *,
    progress: bool = False,
) -> Manifest:
    """Read a dataset folder and decode every image; arguments go before what the settings say.

    What is cheap to find (annotations, names of files, splits) is told before any image is
    decoded.
    """
    manifest = read_folder(settings, data_root, annotations)
    defects = Defects()
    paths = [sample.path for samples in manifest.splits.values() for sample in samples]
    checked = check_images(paths, defects, progress=progress)
    defects.raise_if_any()
    return replace(
        manifest,
        images_digest=images_digest(checked, manifest.root),
        image_digests={manifest.file(path): value for path, value in checked.items()},
    )


def read_folder(
    settings: FolderSettings, data_root: Path | None = None, annotations: Path | None = None
) -> Manifest:
    """Read a dataset folder's annotations and find its images, without decoding them."""
    given = data_root or settings.root
    if given is None:
        raise GapinitError(
            f"dataset '{settings.name}': data_root is missing. Give the folder that holds the "
            "images (--data-root, or --config data_root=... in the workflow)."
        )
    root, place = Path(given), annotations or settings.annotations
    defects = Defects()
    files, splits = _READERS[settings.format](settings, root, place, defects)
    splits = _sampled(settings, splits)
    digests = {_name(path, root): sha256(path) for path in files}
    manifest = Manifest(settings.name, root, digests, splits, kind=settings.format)
    if not len(defects):
        check_splits(manifest, settings.needed(), defects)
    defects.raise_if_any()
    return manifest


Found = tuple[list[Path], dict[str, list[Any]]]


def _read_captions(
    settings: FolderSettings, root: Path, place: Path | None, defects: Defects
) -> Found:
    found = find_annotations(root, place)
    files = list(found.files)
    if found.is_pair:
        splits = _train_and_val(files, root, defects)
    else:
        splits = _single_file(files[0], root, settings, defects)
    if settings.exclude is not None:
        (excluded,) = find_annotations(root, settings.exclude).files
        files.append(excluded)
        held_out = karpathy_held_out(excluded)
        splits["train"] = [item for item in splits["train"] if item.image_id not in held_out]
    return files, splits


def _train_and_val(
    files: Sequence[Path], root: Path, defects: Defects
) -> dict[str, list[CaptionedImage]]:
    """Use COCO's own two files: train is trained on, val is scored.

    ASSUME: the validation images are both "val" and "test", since COCO's test captions are
    not public.
    """
    train = load_coco_captions(files[0], root, "train", defects)
    val = load_coco_captions(files[1], root, "val", defects)
    return {"train": train, "val": val, "test": _as_split(val, "test")}


def _single_file(
    file: Path, root: Path, settings: FolderSettings, defects: Defects
) -> dict[str, list[CaptionedImage]]:
    """Use the splits of a Karpathy file, or cut a COCO captions file into train and test.

    A dataset of which only the training split is wanted is not cut.
    """
    if is_karpathy(file):
        images = load_karpathy(file, root, defects)
        return {
            split: [image for image in images if image.split == split]
            for split in settings.needed()
        }
    images = load_coco_captions(file, root, "all", defects)
    if settings.needed() == ("train",):
        return {"train": _as_split(images, "train")}
    shuffled = sorted(images, key=lambda image: image.image_id)
    random.Random(settings.seed).shuffle(shuffled)
    held_out = min(len(shuffled), max(1, round((1 - TRAIN_SHARE) * len(shuffled))))
    test, train = shuffled[:held_out], shuffled[held_out:]
    return {
        "train": _as_split(train, "train"),
        "val": _as_split(test, "val"),
        "test": _as_split(test, "test"),
    }


def _read_questions(
    settings: FolderSettings, root: Path, place: Path | None, defects: Defects
) -> Found:
    """Read VQAv2 or OK-VQA: their validation questions are validation and test.

    ASSUME: the answers to VQAv2's test questions are not public, and the paper does not say on
    which split it scores.
    """
    from gapinit.data.locate import find_question_files
    from gapinit.data.questions import load_vqa

    found = find_question_files(_below(root, place))
    needed = [split for split in ("train", "val") if split in settings.needed()]
    if "test" in settings.needed() and "val" not in needed:
        needed.append("val")
    files: list[Path] = []
    splits: dict[str, list[Any]] = {}
    for split in needed:
        if split not in found:
            raise GapinitError(
                f"dataset '{settings.name}': no questions of the split '{split}' in "
                f"{_below(root, place)}: expected (v2_)OpenEnded_mscoco_{split}2014_questions.json "
                f"with (v2_)mscoco_{split}2014_annotations.json"
            )
        questions, annotations = found[split]
        files += [questions, annotations]
        splits[split] = load_vqa(
            questions, annotations, root, split, defects, answer_key=settings.answers
        )
    if "test" in settings.needed():
        splits["test"] = [replace(item, split="test") for item in splits["val"]]
    return files, {split: splits[split] for split in settings.needed()}


def _read_pope(settings: FolderSettings, root: Path, place: Path | None, defects: Defects) -> Found:
    from gapinit.data.locate import find_pope_files
    from gapinit.data.questions import load_pope

    found = find_pope_files(_below(root, place))
    missing = [category for category in POPE_CATEGORIES if category not in found]
    if missing:
        raise GapinitError(
            f"dataset '{settings.name}': no file *_pope_{missing[0]}.json in "
            f"{_below(root, place)}: expected one for each of {', '.join(POPE_CATEGORIES)}"
        )
    files = [found[category] for category in POPE_CATEGORIES]
    questions = [
        item
        for category in POPE_CATEGORIES
        for item in load_pope(found[category], root, category, defects)
    ]
    return files, {"test": questions}


def _read_conversations(
    settings: FolderSettings, root: Path, place: Path | None, defects: Defects
) -> Found:
    from gapinit.data.conversations import load_llava

    file = _below(root, place or Path("llava_instruct_150k.json"))
    if not file.is_file():
        raise GapinitError(
            f"dataset '{settings.name}': no such file {file} (expected conversations in LLaVA's "
            "format; another name can be given as `annotations`)"
        )
    return [file], {"train": load_llava(file, root, defects)}


_READERS: dict[Kind, Callable[[FolderSettings, Path, Path | None, Defects], Found]] = {
    "captions": _read_captions,
    "vqa": _read_questions,
    "pope": _read_pope,
    "conversations": _read_conversations,
}


def _below(root: Path, place: Path | None) -> Path:
    """Return a path as given if it is there, or below the root; None is the root itself."""
    if place is None:
        return root
    return place if place.exists() and not (root / place).exists() else root / place


def _sampled(settings: FolderSettings, splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """Keep a random subset of the splits that `sample` limits, in their order."""
    kept = {}
    for split, samples in splits.items():
        count = settings.sample.get(split, len(samples))
        if count < len(samples):
            rng = random.Random(f"{settings.name}/{split}/{settings.seed}")
            samples = [samples[index] for index in sorted(rng.sample(range(len(samples)), count))]
        kept[split] = samples
    return kept


def _as_split(images: Sequence[CaptionedImage], split: str) -> list[CaptionedImage]:
    return [replace(image, split=split) for image in images]


def _name(path: Path, root: Path) -> str:
    """Return an annotation file's name below the root, or its path if it lies elsewhere."""
    absolute, base = path.absolute(), root.absolute()
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(path)
