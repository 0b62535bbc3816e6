"""`gapinit data check`: find what a folder or a configuration file stands for, and check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gapinit.config.yaml_files import read_yaml
from gapinit.data.captions import karpathy_held_out
from gapinit.data.check_folder import FolderCheck, check_folder
from gapinit.data.dataset import read_dataset_settings
from gapinit.data.defects import Defect, Defects
from gapinit.data.entries import read_any
from gapinit.data.folder import FolderSettings
from gapinit.data.locate import find_annotations, find_pope_files, find_question_files
from gapinit.data.overlap import LoadedFile, note_overlap
from gapinit.data.scenes.settings import ScenesSettings
from gapinit.errors import GapinitError

ANNOTATION_FOLDERS = ("annotations", "vqa", "vqav2", "okvqa", "pope", "llava")
CONFIGURATION_KEYS = {"datasets", "experiments", "backbone"}
TRAINED_ON = ("in-domain", "calibration", "vqa", "instruct")


@dataclass
class Checked:
    """What `gapinit data check` tells: defects, what was checked, and what is not there yet."""

    defects: list[Defect] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, found: FolderCheck) -> None:
        """Add what was found in one folder, each defect once."""
        self.defects = list(dict.fromkeys([*self.defects, *found.defects]))
        self.lines += found.summary()


@dataclass(frozen=True)
class Place:
    """Where a dataset lies: a folder, and its annotation files if others lie there too."""

    folder: Path
    only: tuple[Path, ...] | None = None
    excluded: Path | None = None
    """A Karpathy split whose validation and test images are not trained on."""


def check_target(target: Path, *, progress: bool = False) -> Checked:
    """Check a dataset folder, one annotation file, a dataset file or a whole configuration."""
    checked = Checked()
    suffix = target.suffix.lower()
    if target.is_dir():
        checked.add(_check(_made(target), progress))
    elif not target.exists():
        raise GapinitError(f"{target}: no such file or folder")
    elif suffix in (".json", ".jsonl"):
        file = target.absolute()  # its folder's name tells whether the images are beside or above
        above = file.parent.name in ANNOTATION_FOLDERS
        checked.add(_check(Place(file.parents[above], (file,)), progress))
    elif suffix in (".yaml", ".yml"):
        content = read_yaml(target)
        if content.keys() & CONFIGURATION_KEYS:
            _check_configuration(target, content, checked, progress)
        else:
            place = _place(target, {})
            if place is None:
                checked.notes.append(f"{target}: not made yet")
            else:
                checked.add(_check(place, progress))
    else:
        expected = "a folder, an annotation file (.json, .jsonl) or a configuration (.yaml)"
        raise GapinitError(f"{target}: expected {expected}")
    return checked


def _check(place: Place, progress: bool) -> FolderCheck:
    return check_folder(place.folder, place.only, progress=progress)


def _made(folder: Path) -> Place:
    """Return a folder as it is, or the one elsewhere that the manifest in it was made from."""
    path = folder / "manifest.json"
    if not path.is_file():
        return Place(folder)
    try:
        content = read_any(path)
    except GapinitError:  # the folder itself is what is checked
        return Place(folder)
    root = content.get("root") if isinstance(content, dict) else None
    names = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(root, str) or not isinstance(names, dict) or not Path(root).is_absolute():
        return Place(folder)
    return Place(Path(root), tuple(Path(root, name) for name in names))


def _check_configuration(
    target: Path, content: Mapping[str, Any], checked: Checked, progress: bool
) -> None:
    """Check every dataset of a configuration that is there, then each against the others."""
    folder = target.parent if (target.parent / "datasets").is_dir() else Path("config")
    default = folder / "default.yaml"
    layers = [read_yaml(default) if default.is_file() else {}, content]
    whole: dict[str, Any] = {key: value for layer in layers for key, value in layer.items()}
    named = [layer.get("datasets") for layer in layers]
    parts = {key: name for one in named if isinstance(one, dict) for key, name in one.items()}
    found: dict[str, FolderCheck] = {}
    places: dict[str, Place] = {}
    for name in dict.fromkeys(name for name in parts.values() if isinstance(name, str)):
        place = _place(folder / "datasets" / f"{name}.yaml", whole)
        if place is None:
            checked.notes.append(f"dataset '{name}': not made yet")
            continue
        places[name], found[name] = place, _check(place, progress)
        checked.add(found[name])
    trained = dict.fromkeys(parts.get(part) for part in TRAINED_ON)
    defects = Defects()
    for name in (name for name in trained if name in found):
        for train in found[name].files:
            others = [one for key, it in found.items() if key != name for one in it.files]
            digests = {path: sha for it in found.values() for path, sha in it.digests.items()}
            kept = _without_excluded(train, places[name])
            note_overlap(kept, others, digests, defects, same_origin=False)
    checked.defects = list(dict.fromkeys([*checked.defects, *defects.found]))


def _without_excluded(train: LoadedFile, place: Place) -> LoadedFile:
    if place.excluded is None:
        return train
    excluded = karpathy_held_out(place.excluded)
    kept = [image for image in train.images if image.image_id not in excluded]
    return replace(train, images=kept)


def _place(dataset_yaml: Path, configuration: Mapping[str, Any]) -> Place | None:
    """Return where a dataset lies; None if it is still to be made or retrieved."""
    settings = read_dataset_settings(dataset_yaml)
    made = Path(configuration.get("results") or "results") / "1_data" / settings.name
    if isinstance(settings, ScenesSettings):
        return Place(made) if (made / "manifest.json").is_file() else None
    folders = configuration.get("folders") or {}
    data_root, annotations = configuration.get("data_root"), configuration.get("annotations")
    if settings.name in folders:
        return _folder_place(settings, Path(folders[settings.name]), None)
    if settings.retrieve:
        root = Path(configuration.get("data") or "data") / (settings.root or settings.name)
        try:
            return _folder_place(settings, root, None)
        except GapinitError:  # not all of it is there yet
            return None
    given = data_root or settings.root
    if given is None:
        return _made(made) if (made / "manifest.json").is_file() else None
    return _folder_place(settings, Path(given), Path(annotations) if annotations else None)


def _folder_place(settings: FolderSettings, root: Path, annotations: Path | None) -> Place:
    """Return a dataset's folder, with its annotation files where it says which are its own."""
    if not root.is_dir():
        raise GapinitError(f"{root}: no such folder (expected the dataset '{settings.name}')")
    place = annotations or settings.annotations
    excluded = None
    if settings.exclude is not None:
        (excluded,) = find_annotations(root, settings.exclude).files
    if place is None:
        return Place(root, None, excluded)
    if settings.format == "captions":
        return Place(root, find_annotations(root, place).files, excluded)
    below = place if place.exists() and not (root / place).exists() else root / place
    if settings.format == "conversations":
        files = [below]
    elif settings.format == "pope":
        files = list(find_pope_files(below).values())
    else:
        files = [path for pair in find_question_files(below).values() for path in pair]
    if not files or not all(file.is_file() for file in files):
        raise GapinitError(f"{below}: no files of the dataset '{settings.name}' (see {place})")
    return Place(root, tuple(files), excluded)
