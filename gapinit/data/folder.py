"""A dataset in a folder: its settings, its annotation files and its splits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gapinit.artifacts.artifacts import read_json, sha256
from gapinit.config.yaml_files import Settings
from gapinit.data.annotation_files import AnnotationFile, file_format, read_samples
from gapinit.data.captions import karpathy_held_out
from gapinit.data.check import check_images, check_splits
from gapinit.data.defects import Defects
from gapinit.data.entries import shown
from gapinit.data.locate import (
    POPE_CATEGORIES,
    find_annotations,
    find_pope_file,
    find_question_files,
)
from gapinit.data.manifest import Kind, Manifest, images_digest
from gapinit.errors import GapinitError

TRAIN_SHARE = 0.8  # ASSUME: the training share of a single captions file without splits
NEEDED_SPLITS: dict[Kind, tuple[str, ...]] = {
    "captions": ("train", "val", "test"),
    "vqa": ("train", "val", "test"),
    "pope": ("test",),
    "conversations": ("train",),
}


class FolderSettings(Settings):
    """A dataset on disk, or one that the workflow retrieves (`config/datasets/*.yaml`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    format: Kind = "captions"
    root: Path | None = None
    """Its folder; for a retrieved dataset, relative to the data folder."""
    annotations: Path | None = None
    """Its annotation file or folder below `root`, if there are several."""
    splits: list[Literal["train", "val", "test"]] | None = None
    """Required splits, if not those of `NEEDED_SPLITS`."""
    exclude: Path | None = None
    """A Karpathy split whose validation and test images are removed from `train`."""
    answers: Literal["answer", "raw_answer"] = "answer"
    """OK-VQA: the stemmed or the raw answers."""
    sample: dict[str, int] = {}
    """The maximum number of samples by split; `seed` seeds the random subset."""
    retrieve: list[str] = []
    """Its downloads: names in `config/downloads.yaml`."""
    seed: int = Field(default=42, ge=0)

    def needed(self) -> tuple[str, ...]:
        """Return the splits that must have samples."""
        return tuple(self.splits or NEEDED_SPLITS[self.format])


def load_folder(
    settings: FolderSettings, data_root: Path | None = None, annotations: Path | None = None
) -> Manifest:
    """Read a dataset folder and decode every image; the arguments override the settings.

    The cheap checks (annotations, file names, splits) run before any image is decoded.
    """
    manifest = read_folder(settings, data_root, annotations)
    paths = [sample.path for samples in manifest.splits.values() for sample in samples]
    with Defects() as defects:
        checked = check_images(paths, defects)
    return replace(
        manifest,
        images_digest=images_digest(checked, manifest.root),
        image_digests={manifest.file(path): value for path, value in checked.items()},
    )


def read_folder(
    settings: FolderSettings, data_root: Path | None = None, annotations: Path | None = None
) -> Manifest:
    """Read a dataset folder's annotations and find its images; decode none."""
    given = data_root or settings.root
    if given is None:
        raise GapinitError(
            f"dataset '{settings.name}': data_root is missing. Give the folder that holds the "
            "images (--data-root, or --config data_root=... in the workflow)."
        )
    root = Path(given)
    files = dataset_files(settings, root, annotations or settings.annotations)
    if files[0].format == "captions" and not files[0].split:
        files = [replace(files[0], format=_captions_format(files[0].path))]
    named = [path for file in files for path in (file.path, file.answers) if path]
    with Defects() as defects:
        samples = [read_samples(file, root, defects, settings.answers) for file in files]
        splits = _splits(settings, files, [item for found in samples for item in found])
        if settings.exclude is not None:
            (excluded,) = find_annotations(root, settings.exclude)
            named.append(excluded)
            held_out = karpathy_held_out(excluded)
            splits["train"] = [item for item in splits["train"] if item.image_id not in held_out]
        digests = {_name(path, root): sha256(path) for path in named}
        splits = _sampled(settings, splits)
        manifest = Manifest(settings.name, root, digests, splits, kind=settings.format)
        if not defects.found:
            check_splits(manifest, settings.needed(), defects)
    return manifest


def dataset_files(settings: FolderSettings, root: Path, place: Path | None) -> list[AnnotationFile]:
    """Return a dataset's annotation files, which have their official names, or raise.

    `place`: a file or folder, relative to the root or as given. The split of a single captions file
    is '': it may contain its own splits.
    """
    if settings.format == "captions":
        paths = find_annotations(root, place)
        splits = ("train", "val") if len(paths) == 2 else ("",)
        return [
            AnnotationFile(path, "captions", split)
            for path, split in zip(paths, splits, strict=True)
        ]
    below = root / (place or "")
    if place is not None and place.exists() and not below.exists():
        below = place
    start = f"dataset '{settings.name}': no"
    files = []
    if settings.format == "conversations":
        file = below / "llava_instruct_150k.json" if place is None else below
        if not file.is_file():
            raise GapinitError(
                f"{start} such file {file} (expected conversations in LLaVA's format; name any "
                "other file with `annotations`)"
            )
        files.append(AnnotationFile(file, "conversations", "train"))
    elif settings.format == "pope":
        for category in POPE_CATEGORIES:
            found = find_pope_file(below, category)
            if found is None:
                raise GapinitError(f"{start} file *_pope_{category}.json in {below}")
            files.append(AnnotationFile(found, "pope", "test"))
    else:
        needed = {"val" if split == "test" else split for split in settings.needed()}
        for split in sorted(needed):
            pair = find_question_files(below, split)
            if pair is None:
                raise GapinitError(
                    f"{start} questions of the split '{split}' in {below}: expected "
                    f"(v2_)OpenEnded_mscoco_{split}2014_questions.json with "
                    f"(v2_)mscoco_{split}2014_annotations.json"
                )
            files.append(AnnotationFile(pair[0], "questions", split, pair[1]))
    return files


def _captions_format(path: Path) -> Literal["karpathy", "captions"]:
    """Tell whether a file is a Karpathy split or a COCO captions file."""
    content = read_json(path)
    found = file_format(content, path.name.lower())
    if found == "karpathy" or found == "captions":
        return found
    raise GapinitError(
        f"{path}: expected COCO captions (keys 'images' and 'annotations') or a Karpathy split "
        f"(key 'images', each with 'sentences'), found {shown(content)}"
    )


def _splits(
    settings: FolderSettings, files: Sequence[AnnotationFile], samples: Sequence[Any]
) -> dict[str, list[Any]]:
    """Return the needed splits.

    ASSUME: if COCO's captions or VQAv2's questions have only train and val, the validation samples
    also serve as the test samples: the annotations of the test images are not public, and the paper
    does not name the split that it scores.
    """
    found: dict[str, list[Any]] = {}
    for sample in samples:
        found.setdefault(sample.split, []).append(sample)
    if "" in found:
        found = _cut(settings, found[""])
    if files[0].format in ("captions", "questions"):
        found["test"] = [replace(sample, split="test") for sample in found.get("val", ())]
    return {split: found.get(split, []) for split in settings.needed()}


def _cut(settings: FolderSettings, samples: Sequence[Any]) -> dict[str, list[Any]]:
    """Split samples at random (seeded) into train and val; if only train is needed, it gets all."""
    shuffled = list(samples)
    held_out = 0
    if settings.needed() != ("train",):
        shuffled.sort(key=lambda sample: sample.image_id)
        random.Random(settings.seed).shuffle(shuffled)
        held_out = min(len(shuffled), max(1, round((1 - TRAIN_SHARE) * len(shuffled))))
    cut = {"val": shuffled[:held_out], "train": shuffled[held_out:]}
    return {split: [replace(item, split=split) for item in part] for split, part in cut.items()}


def _sampled(settings: FolderSettings, splits: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Limit the splits in `sample` to a random subset, in their original order."""
    kept = {}
    for split, samples in splits.items():
        count = settings.sample.get(split, len(samples))
        if count < len(samples):
            rng = random.Random(f"{settings.name}/{split}/{settings.seed}")
            samples = [samples[index] for index in sorted(rng.sample(range(len(samples)), count))]
        kept[split] = samples
    return kept


def _name(path: Path, root: Path) -> str:
    """Return an annotation file's path relative to the root, or as given if outside the root."""
    absolute, base = path.absolute(), root.absolute()
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(path)
