"""Check a whole dataset folder of any formats; report every defect with its file and entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gapinit.data.annotation_files import (
    AnnotationFile,
    Format,
    find_annotation_files,
    given_files,
    note_error,
    note_link,
    read_samples,
)
from gapinit.data.captions import KARPATHY_SPLITS
from gapinit.data.check import check_images
from gapinit.data.defects import Defect, Defects, NamedImage
from gapinit.data.locate import KARPATHY_NAMES, YEARS
from gapinit.data.overlap import LoadedFile, note_overlaps
from gapinit.data.pretraining import CORPUS
from gapinit.errors import GapinitError

SAMPLES: dict[Format, str] = {
    "karpathy": "captioned images",
    "captions": "captioned images",
    "questions": "questions",
    "pope": "questions",
    "conversations": "conversations",
    "alt_text": "alt-texts",
}


@dataclass
class Checked:
    """The result of `gapinit data check`: files, image checksums, defects and notes."""

    files: list[LoadedFile]
    digests: dict[Path, str]
    defects: list[Defect]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Return one line per checked file and one for the images."""
        lines = [
            f"{loaded.file.path}: {loaded.samples} {SAMPLES[loaded.file.format]}, "
            f"{len({image.path for image in loaded.images})} images"
            for loaded in self.files
        ]
        return [*lines, f"{len(self.digests)} images decoded"] if lines else []


def check_folder(folder: Path, only: Sequence[Path] | None = None) -> Checked:
    """Check all annotation files in a folder, or those in `only`, and the images that they name.

    The search goes `DEPTH` levels deep and does not follow links that lead out of the folder. A
    folder without annotation files is an error.
    """
    defects = Defects()
    files = given_files(only, defects) if only else find_annotation_files(folder, defects)
    if not files and not defects.found:
        names = ", ".join((*KARPATHY_NAMES, f"captions_train{YEARS[0]}.json"))
        raise GapinitError(
            f"{folder}: no annotation file (expected captions such as {names}, questions of VQAv2, "
            "OK-VQA or POPE, or conversations of LLaVA)"
        )
    loaded = [_load_file(file, folder, defects) for file in files if not file.broken]
    digests = _decode(loaded, defects)
    note_overlaps(loaded, digests, defects)
    return Checked(loaded, digests, _once(defects))


def _once(defects: Defects) -> list[Defect]:
    """Return each defect once; prefer the copy that has an entry."""
    named = {(defect.file, defect.problem) for defect in defects.found if defect.entry}
    return [
        defect
        for defect in dict.fromkeys(defects.found)
        if defect.entry or (defect.file, defect.problem) not in named
    ]


def _load_file(file: AnnotationFile, folder: Path, defects: Defects) -> LoadedFile:
    """Load one annotation file, whose image root is `folder` or a folder between it and the file.

    The root is the first of these folders in which an image is found.
    """
    tries = []
    for root in _roots(file, folder):
        noted = Defects()
        tries.append((root, noted, _load(file, root, noted)))
        if noted.images:
            break
    root, noted, samples = tries[-1] if tries[-1][1].images else tries[0]
    if not noted.found:
        _note_empty(file, noted)
    defects.found += noted.found
    images = _inside(noted.images, root, defects)
    return LoadedFile(file, root, images, samples)


def _roots(file: AnnotationFile, folder: Path) -> list[Path]:
    place = file.path.parent
    if file.format == "alt_text":
        return [place]
    if not place.is_relative_to(folder):  # the annotations are outside the images' folder
        return [folder]
    between = place.relative_to(folder)
    return [folder / part for part in reversed([between, *between.parents])]


def _load(file: AnnotationFile, root: Path, defects: Defects) -> int:
    """Load a file and return the number of its valid samples; an unreadable file is a defect."""
    other = file.answers or file.path.with_name(CORPUS)
    try:
        return len(read_samples(file, root, defects))
    except GapinitError as error:
        note_error(error, other if str(error).startswith(f"{other}: ") else file.path, defects)
        return 0


def _note_empty(file: AnnotationFile, defects: Defects) -> None:
    """Report splits without images, for a file without other defects."""
    if file.format == "karpathy":
        found = {KARPATHY_SPLITS.get(image.split) for image in defects.images}
        for split in dict.fromkeys(KARPATHY_SPLITS.values()):
            if split not in found:
                defects.add(file.path, f"split '{split}'", "has no images, expected at least 1")
    elif not defects.images:
        defects.add(file.path, "", f"has no {SAMPLES[file.format]}, expected at least 1")


def _inside(images: Sequence[NamedImage], root: Path, defects: Defects) -> list[NamedImage]:
    """Return the images inside the root; report links that lead out of it."""
    outside: dict[Path, bool] = {}
    inside = []
    for image in images:
        folder, named_by = image.path.parent, _named_by(image)
        if folder not in outside:
            outside[folder] = note_link(folder, root, named_by, defects)
        link = image.path.is_symlink() and not outside[folder]
        if not outside[folder] and not (link and note_link(image.path, root, named_by, defects)):
            inside.append(image)
    return inside


def _named_by(image: NamedImage) -> str:
    return f"named by {image.file.name} {image.entry}"


def _decode(loaded: Sequence[LoadedFile], defects: Defects) -> dict[Path, str]:
    """Decode every image once; report a damaged image with the first entry that names it."""
    first: dict[Path, NamedImage] = {}
    for file in loaded:
        for image in file.images:
            first.setdefault(image.path, image)
    noted = Defects()
    digests = check_images(first, noted)
    for defect in noted.found:
        image = first[Path(defect.file)]
        defects.add(defect.file, _named_by(image), defect.problem)
    return digests
