"""Check a whole dataset folder, whatever its formats: every defect, with its file and entry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gapinit.data.annotation_files import (
    AnnotationFile,
    Format,
    find_annotation_files,
    given_files,
    note_error,
    note_link,
)
from gapinit.data.captions import KARPATHY_SPLITS, load_coco_captions, load_karpathy
from gapinit.data.check import check_images
from gapinit.data.conversations import load_llava
from gapinit.data.defects import Defect, Defects, NamedImage
from gapinit.data.locate import KARPATHY_NAMES, POPE_CATEGORIES, YEARS
from gapinit.data.overlap import LoadedFile, note_overlaps
from gapinit.data.pretraining import CORPUS, read_alt_text, read_corpus
from gapinit.data.questions import check_questions, load_pope, load_vqa
from gapinit.errors import GapinitError

SAMPLES: dict[Format, str] = {
    "karpathy": "captioned images",
    "captions": "captioned images",
    "questions": "questions",
    "pope": "questions",
    "conversations": "conversations",
    "alt_text": "alt-texts",
}


@dataclass(frozen=True)
class FolderCheck:
    """What was checked, and what is wrong with it."""

    files: list[LoadedFile]
    digests: dict[Path, str]
    defects: list[Defect]

    def summary(self) -> list[str]:
        """Return a line for each file that was checked, and one for the images."""
        lines = [
            f"{loaded.file.path}: {loaded.samples} {SAMPLES[loaded.file.format]}, "
            f"{len({image.path for image in loaded.images})} images"
            for loaded in self.files
        ]
        return [*lines, f"{len(self.digests)} images decoded"]


def check_folder(
    folder: Path, only: Sequence[Path] | None = None, *, progress: bool = False
) -> FolderCheck:
    """Check the annotation files in a folder, or `only` some of them, and all that they name.

    The folder is searched a few levels deep and never left through a link. A folder without any
    annotation file is an error.
    """
    defects = Defects()
    files = given_files(only, defects) if only else find_annotation_files(folder, defects)
    if not files and not len(defects):
        names = ", ".join((*KARPATHY_NAMES, f"captions_train{YEARS[0]}.json"))
        raise GapinitError(
            f"{folder}: no annotation file (looked for captions such as {names}, for questions of "
            "VQAv2, OK-VQA and POPE, and for conversations of LLaVA)"
        )
    loaded = [load_file(file, folder, defects) for file in files if not file.broken]
    digests = _decode(loaded, defects, progress)
    note_overlaps(loaded, digests, defects)
    return FolderCheck(loaded, digests, _once(defects))


def _once(defects: Defects) -> list[Defect]:
    """Return each defect once: with the entry that it was found by, if there is one."""
    told = {(defect.file, defect.problem) for defect in defects.found if defect.entry}
    return [
        defect
        for defect in dict.fromkeys(defects.found)
        if defect.entry or (defect.file, defect.problem) not in told
    ]


def load_file(file: AnnotationFile, folder: Path, defects: Defects) -> LoadedFile:
    """Load one annotation file; its images may lie below `folder` or any folder on the way to it.

    The first of these folders below which an image is found is the root.
    """
    tries = []
    for root in _roots(file, folder):
        noted = Defects()
        tries.append((root, noted, _load(file, root, noted)))
        if noted.images:
            break
    root, noted, samples = tries[-1] if tries[-1][1].images else tries[0]
    if not len(noted):
        _note_empty(file, noted)
    defects.found += noted.found
    images = _inside(noted.images, root, defects)
    return LoadedFile(file, root, images, samples)


def _roots(file: AnnotationFile, folder: Path) -> list[Path]:
    place = file.path.parent
    if file.format == "alt_text":
        return [place]
    if not place.is_relative_to(folder):  # annotations that are kept beside the images' folder
        return [folder]
    roots = [folder]
    for part in place.relative_to(folder).parts:
        roots.append(roots[-1] / part)
    return roots


def _load(file: AnnotationFile, root: Path, defects: Defects) -> int:
    """Load a file and return the number of its good samples; one of no use is a defect."""
    others = [file.answers.path] if file.answers else [file.path.with_name(CORPUS)]
    try:
        return _samples(file, root, defects)
    except GapinitError as error:
        found = next((path for path in others if str(error).startswith(f"{path}: ")), file.path)
        note_error(error, found, defects)
        return 0


def _samples(file: AnnotationFile, root: Path, defects: Defects) -> int:
    path = file.path
    if file.format == "karpathy":
        return len(load_karpathy(path, root, defects))
    if file.format == "captions":
        return len(load_coco_captions(path, root, split_in_name(path), defects))
    if file.format == "pope":
        category = next((word for word in POPE_CATEGORIES if word in path.name), "")
        return len(load_pope(path, root, category, defects))
    if file.format == "conversations":
        return len(load_llava(path, root, defects, split_in_name(path) or "train"))
    if file.format == "alt_text":
        read_corpus(path.parent)
        return len(read_alt_text(path.parent, defects))
    split = split_in_name(path) or "test"
    if file.answers is None:
        check_questions(path, root, split, defects)
        return 0
    answers = file.answers
    if answers.has_raw_answers:
        load_vqa(path, answers.path, root, split, defects, answer_key="raw_answer")
    return len(load_vqa(path, answers.path, root, split, defects))


def split_in_name(path: Path) -> str:
    """Return the split that an annotation file's name tells, or nothing."""
    found = re.search("train|val|test", path.name.lower())
    return found[0] if found else ""


def _note_empty(file: AnnotationFile, defects: Defects) -> None:
    """Note splits without images; where an entry is wrong, that has been told instead."""
    if file.format == "karpathy":
        found = {KARPATHY_SPLITS.get(image.split) for image in defects.images}
        for split in dict.fromkeys(KARPATHY_SPLITS.values()):
            if split not in found:
                defects.add(file.path, f"split '{split}'", "has no images, expected at least 1")
    elif not defects.images:
        defects.add(file.path, "", f"has no {SAMPLES[file.format]}, expected at least 1")


def _inside(images: Sequence[NamedImage], root: Path, defects: Defects) -> list[NamedImage]:
    """Return the images that do not lie outside the root by way of a link; note the links."""
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


def _decode(loaded: Sequence[LoadedFile], defects: Defects, progress: bool) -> dict[Path, str]:
    """Decode every image once; a damaged one is told with the first entry that names it."""
    first: dict[Path, NamedImage] = {}
    for file in loaded:
        for image in file.images:
            first.setdefault(image.path, image)
    noted = Defects()
    digests = check_images(first, noted, progress=progress)
    for defect in noted.found:
        image = first[Path(defect.file)]
        defects.add(defect.file, _named_by(image), defect.problem)
    return digests
