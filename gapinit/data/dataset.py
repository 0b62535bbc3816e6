"""The data stage: generate or find a dataset, load it, check it, write its manifest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from gapinit.artifacts import sha256, write_json
from gapinit.data.captions import (
    CaptionedImage,
    is_karpathy,
    load_coco_captions,
    load_karpathy,
)
from gapinit.data.check import check_images, check_splits
from gapinit.data.defects import Defects
from gapinit.data.locate import find_annotations
from gapinit.data.manifest import (
    MANIFEST_VERSION,
    Manifest,
    images_digest,
    write_manifest,
    write_references,
)
from gapinit.data.pretraining import ALT_TEXT, CORPUS, read_alt_text, read_corpus
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.errors import GapinitError
from gapinit.settings import Settings, check_settings, read_yaml

SCORED_SPLITS = ("val", "test")
REQUIRED_SPLITS = ("train", *SCORED_SPLITS)
TRAIN_SHARE = 0.8  # ASSUME: of a single captions file, which carries no split of its own


class FolderSettings(Settings):
    """A dataset that is already on disk (`config/datasets/local.yaml`)."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    root: Path | None = None
    annotations: Path | None = None
    seed: int = Field(default=42, ge=0)


def read_dataset_settings(dataset_yaml: Path) -> ScenesSettings | FolderSettings:
    """Read a dataset file: one with the key `generator` is generated, any other is a folder."""
    content = read_yaml(dataset_yaml)
    if "generator" in content:
        return check_settings(content, ScenesSettings, str(dataset_yaml))
    return check_settings(content, FolderSettings, str(dataset_yaml))


def prepare_dataset(
    dataset_yaml: Path,
    output: Path,
    *,
    data_root: Path | None = None,
    annotations: Path | None = None,
    progress: bool = True,
) -> None:
    """Make `output/manifest.json` and the references of the scored splits.

    A generated dataset is first written into `output`; then every kind goes through the same
    loaders and checks. The manifest is written last: where it is, the dataset is whole.
    """
    settings = read_dataset_settings(Path(dataset_yaml))
    output = Path(output)
    if isinstance(settings, FolderSettings):
        manifest = load_folder(settings, data_root, annotations, progress=progress)
        _make_folder(output)
        _write(manifest, output)
        return
    if data_root is not None or annotations is not None:
        raise GapinitError(
            f"{dataset_yaml}: '{settings.name}' is generated and takes no data_root and no "
            "annotations. For a folder of your own use the dataset 'local'."
        )
    from gapinit.data.scenes.write import make_scenes

    _make_folder(output)
    (output / "manifest.json").unlink(missing_ok=True)
    make_scenes(settings, output, progress=progress)
    if settings.layout == "pretraining":
        _write_pretraining_manifest(settings.name, output, progress)
        return
    made = Path(f"dataset_{settings.layout}.json")
    folder = FolderSettings(name=settings.name, seed=settings.seed)
    _write(load_folder(folder, output, output / made, progress=progress), output)


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
    paths = [image.path for images in manifest.splits.values() for image in images]
    checked = check_images(paths, defects, progress=progress)
    defects.raise_if_any()
    return replace(manifest, images_digest=images_digest(checked, manifest.root))


def read_folder(
    settings: FolderSettings, data_root: Path | None = None, annotations: Path | None = None
) -> Manifest:
    """Read a dataset folder's annotations and find its images, without decoding them."""
    root = data_root or settings.root
    if root is None:
        raise GapinitError(
            f"dataset '{settings.name}': data_root is missing. Give the folder that holds the "
            "images (--data-root, or --config data_root=... in the workflow)."
        )
    files = find_annotations(Path(root), annotations or settings.annotations)
    defects = Defects()
    if files.is_pair:
        splits = _train_and_val(files.files, Path(root), defects)
    else:
        splits = _single_file(files.files[0], Path(root), settings.seed, defects)
    digests = {_name(path, Path(root)): sha256(path) for path in files.files}
    manifest = Manifest(settings.name, Path(root), digests, splits)
    if not len(defects):
        check_splits(manifest, REQUIRED_SPLITS, defects)
    defects.raise_if_any()
    return manifest


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
    file: Path, root: Path, seed: int, defects: Defects
) -> dict[str, list[CaptionedImage]]:
    """Use the splits of a Karpathy file, or cut a COCO captions file into train and test."""
    if is_karpathy(file):
        images = load_karpathy(file, root, defects)
        return {
            split: [image for image in images if image.split == split] for split in REQUIRED_SPLITS
        }
    images = load_coco_captions(file, root, "all", defects)
    shuffled = sorted(images, key=lambda image: image.image_id)
    random.Random(seed).shuffle(shuffled)
    held_out = min(len(shuffled), max(1, round((1 - TRAIN_SHARE) * len(shuffled))))
    test, train = shuffled[:held_out], shuffled[held_out:]
    return {
        "train": _as_split(train, "train"),
        "val": _as_split(test, "val"),
        "test": _as_split(test, "test"),
    }


def _as_split(images: Sequence[CaptionedImage], split: str) -> list[CaptionedImage]:
    return [replace(image, split=split) for image in images]


def _name(path: Path, root: Path) -> str:
    """Return an annotation file's name below the root, or its path if it lies elsewhere."""
    absolute, base = path.absolute(), root.absolute()
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(path)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GapinitError(f"{folder}: cannot make this folder ({error.strerror})") from None


def _write(manifest: Manifest, output: Path) -> None:
    for split in SCORED_SPLITS:
        write_references(manifest.split(split), output / f"references_{split}.json")
    write_manifest(output / "manifest.json", manifest)


def _write_pretraining_manifest(name: str, output: Path, progress: bool) -> None:
    pairs, corpus = read_alt_text(output), read_corpus(output)
    images = dict.fromkeys(image for image, _ in pairs)
    defects = Defects()
    checked = check_images(images, defects, progress=progress)
    defects.raise_if_any()
    content = {
        "kind": "pretraining",
        "manifest_version": MANIFEST_VERSION,
        "name": name,
        "root": ".",
        "annotations": {file: sha256(output / file) for file in (ALT_TEXT, CORPUS)},
        "images_digest": images_digest(checked, output),
        "counts": {"images": len(images), "alt_texts": len(pairs), "corpus_lines": len(corpus)},
    }
    write_json(output / "manifest.json", content)
