"""`gapinit data check`: check the datasets of a folder, file or configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import read_json
from gapinit.config.yaml_files import read_yaml
from gapinit.data.annotation_files import SUFFIXES
from gapinit.data.captions import karpathy_held_out
from gapinit.data.check_folder import Checked, check_folder
from gapinit.data.dataset import read_dataset_settings
from gapinit.data.defects import Defects
from gapinit.data.folder import FolderSettings, dataset_files
from gapinit.data.locate import find_annotations
from gapinit.data.overlap import note_overlap
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.errors import GapinitError

ANNOTATION_FOLDERS = ("annotations", "vqa", "vqav2", "okvqa", "pope", "llava")
CONFIGURATION_KEYS = {"datasets", "experiments", "backbone"}
TRAINED_ON = ("in-domain", "calibration", "vqa", "instruct")


@dataclass(frozen=True)
class Place:
    """The folder of a dataset, and its annotation files (None: all in the folder)."""

    folder: Path
    only: tuple[Path, ...] | None = None
    excluded: Path | None = None
    """A Karpathy split whose validation and test images are not used for training."""


def check_target(target: Path) -> Checked:
    """Check a dataset folder, one annotation file, a dataset file or a whole configuration."""
    suffix = target.suffix.lower()
    if target.is_dir():
        place = _made(target)
        return check_folder(place.folder, place.only)
    if not target.exists():
        raise GapinitError(f"{target}: no such file or folder")
    if suffix in SUFFIXES:
        file = target.absolute()  # its folder may be a subfolder of the images' root
        above = file.parent.name in ANNOTATION_FOLDERS
        return check_folder(file.parents[above], (file,))
    if suffix not in (".yaml", ".yml"):
        expected = "a folder, an annotation file (.json, .jsonl) or a configuration (.yaml)"
        raise GapinitError(f"{target}: expected {expected}")
    content = read_yaml(target)
    if not content.keys() & CONFIGURATION_KEYS:
        return _check_datasets([target], {}, [])
    folder = target.parent if (target.parent / "datasets").is_dir() else Path("config")
    default = folder / "default.yaml"
    layers = [read_yaml(default) if default.is_file() else {}, content]
    parts: dict[str, Any] = {}
    for named in (layer.get("datasets") for layer in layers):
        parts |= named if isinstance(named, dict) else {}
    names = dict.fromkeys(name for name in parts.values() if isinstance(name, str))
    trained = [parts.get(part) for part in TRAINED_ON]
    files = [folder / "datasets" / f"{name}.yaml" for name in names]
    return _check_datasets(files, {**layers[0], **layers[1]}, trained)


def _made(folder: Path) -> Place:
    """Return the folder, or, if it has a manifest, the folder that the manifest describes."""
    path = folder / "manifest.json"
    try:
        content = read_json(path)
    except GapinitError:  # no manifest, or a damaged one
        return Place(folder)
    root = content.get("root") if isinstance(content, dict) else None
    names = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(root, str) or not isinstance(names, dict) or not Path(root).is_absolute():
        return Place(folder)
    return Place(Path(root), tuple(Path(root, name) for name in names))


def _check_datasets(
    files: Iterable[Path], configuration: Mapping[str, Any], trained: Sequence[Any]
) -> Checked:
    """Check every dataset that exists, then compare training images with the other datasets."""
    notes = []
    found: dict[str, Checked] = {}
    places: dict[str, Place] = {}
    for file in files:
        place = _place(file, configuration)
        if place is None:
            notes.append(f"dataset '{file.stem}': not made yet")
            continue
        places[file.stem], found[file.stem] = place, check_folder(place.folder, place.only)
    digests = {path: one for it in found.values() for path, one in it.digests.items()}
    defects = Defects()
    defects.found = [defect for it in found.values() for defect in it.defects]
    for name in (name for name in found if name in trained):
        others = [one for key, it in found.items() if key != name for one in it.files]
        for train in found[name].files:
            excluded = places[name].excluded
            if excluded is not None:
                held_out = karpathy_held_out(excluded)
                kept = [image for image in train.images if image.image_id not in held_out]
                train = replace(train, images=kept)
            note_overlap(train, others, digests, defects, same_origin=False)
    loaded = [one for it in found.values() for one in it.files]
    return Checked(loaded, digests, list(dict.fromkeys(defects.found)), notes)


def _place(dataset_yaml: Path, configuration: Mapping[str, Any]) -> Place | None:
    """Return a dataset's place; None if the workflow has not made or retrieved it yet."""
    settings = read_dataset_settings(dataset_yaml)
    made = Path(configuration.get("results") or "results") / "1_data" / settings.name
    is_made = (made / "manifest.json").is_file()
    if isinstance(settings, ScenesSettings):
        return Place(made) if is_made else None
    folders = configuration.get("folders") or {}
    data_root, annotations = configuration.get("data_root"), configuration.get("annotations")
    if settings.name in folders:
        return _folder_place(settings, Path(folders[settings.name]), None)
    if settings.retrieve:
        root = Path(configuration.get("data") or "data") / (settings.root or settings.name)
        try:
            return _folder_place(settings, root, None)
        except GapinitError:  # some downloads are still missing
            return None
    given = data_root or settings.root
    if given is None:
        return _made(made) if is_made else None
    return _folder_place(settings, Path(given), Path(annotations) if annotations else None)


def _folder_place(settings: FolderSettings, root: Path, annotations: Path | None) -> Place:
    """Return a dataset's folder, with its annotation files if its settings name them."""
    if not root.is_dir():
        raise GapinitError(f"{root}: no such folder (expected the dataset '{settings.name}')")
    place, excluded = annotations or settings.annotations, None
    if settings.exclude is not None:
        (excluded,) = find_annotations(root, settings.exclude)
    if place is None:
        return Place(root, None, excluded)
    files = dataset_files(settings, root, place)
    paths = [path for file in files for path in (file.path, file.answers) if path]
    return Place(root, tuple(paths), excluded)
