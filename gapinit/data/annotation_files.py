"""Find the annotation files of a folder, and tell their formats by what is in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gapinit.data.defects import Defects
from gapinit.data.entries import read_any, shown
from gapinit.data.locate import leading_out
from gapinit.data.pretraining import ALT_TEXT
from gapinit.errors import GapinitError

Format = Literal[
    "karpathy", "captions", "questions", "answers", "pope", "conversations", "alt_text"
]
DEPTH = 4  # folders below the root that are searched
SUFFIXES = (".json", ".jsonl")
OWN_FILES = ("manifest.json", "scenes.json")
# Other files of the same releases, of which nothing is read here.
_UNUSED = re.compile(
    r"^(instances|person_keypoints|stuff|panoptic|image_info)_|complementary_pairs|test2015|test-dev"
)
OFFICIAL_CAPTIONS = re.compile(r"captions_(?P<split>train|val)(?P<year>2014|2017)\.json")
_BY_NAME: dict[Format, re.Pattern[str]] = {
    "karpathy": re.compile(r"^dataset_(coco|flickr)"),
    "captions": re.compile(r"caption"),
    "pope": re.compile(r"pope"),
    "questions": re.compile(r"question"),
    "conversations": re.compile(r"llava|conversation|instruct"),
    "answers": re.compile(r"annotation|answer"),
}


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file and its format.

    `answers` belongs to a file of questions: the file that holds their annotations. A `broken`
    file is one that cannot be read as JSON, which has been told.
    """

    path: Path
    format: Format
    question_ids: frozenset[int] = frozenset()
    has_raw_answers: bool = False
    broken: bool = False
    answers: AnnotationFile | None = None


def find_annotation_files(folder: Path, defects: Defects) -> list[AnnotationFile]:
    """Return the annotation files of a folder, questions with their answers.

    Noted as defects: a file that is no JSON, questions without answers and the reverse, half of
    COCO's pair of captions files, and links that lead out of the folder.
    """
    found = (classify(path, defects) for path in _walk(folder, defects))
    files = pair_questions([file for file in found if file is not None], defects)
    _note_half_pairs(files, defects)
    return files


def given_files(paths: Sequence[Path], defects: Defects) -> list[AnnotationFile]:
    """Return the given annotation files; to a single one of questions or answers, its other half.

    The other half is looked for in the same folder.
    """
    files = [file for path in paths if (file := classify(path, defects)) is not None]
    if len(files) == 1 and files[0].format in ("questions", "answers"):
        beside = (path for path in sorted(files[0].path.parent.iterdir()) if path.is_file())
        others = (classify(path, Defects()) for path in beside if path.suffix in SUFFIXES)
        kin = [other for other in others if other is not None and _belong(files[0], other)]
        files += sorted(kin, key=lambda other: _kinship(files[0], other))[-1:]
    return pair_questions(files, defects)


def _walk(folder: Path, defects: Defects) -> Iterator[Path]:
    for place, names, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        names[:] = sorted(name for name in names if not name.startswith("."))
        links = [name for name in names if os.path.islink(os.path.join(place, name))]
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() not in SUFFIXES or name.startswith(".") or _is_own(path):
                continue
            if path.is_symlink():
                links.append(name)
            elif path.is_file():
                yield path
        for name in links:
            note_link(Path(place, name), folder, "", defects)
        if depth >= DEPTH:
            names.clear()


def note_link(path: Path, folder: Path, named_by: str, defects: Defects) -> bool:
    """Note a path that leads out of the folder through a link; tell whether it does."""
    link = leading_out(path, folder)
    if link is not None:
        target = os.path.realpath(link)
        problem = f"is a link that leads out of {folder}, to {target}. Put the files there instead."
        defects.add(link, named_by, problem)
    return link is not None


def _is_own(path: Path) -> bool:
    """Tell whether gapinit wrote this file beside a dataset, rather than the dataset's maker."""
    beside = path.with_name("manifest.json").is_file()
    if path.parent.name == "references":
        return (path.parent.parent / "manifest.json").is_file()
    return path.name in OWN_FILES or (beside and path.name.startswith("references_"))


def classify(path: Path, defects: Defects) -> AnnotationFile | None:
    """Tell a file's format by its content, or by its name if that tells nothing.

    None: a file of another kind, or, noted as a defect, one that cannot be read.
    """
    name = path.name.lower()
    if _UNUSED.search(name):
        return None
    if name == ALT_TEXT:
        return AnnotationFile(path, "alt_text")
    try:
        content = read_any(path)
    except GapinitError as error:
        if _are_question_lines(path):
            return AnnotationFile(path, "pope")
        known = _by_name(name)
        if known == "pope":
            return AnnotationFile(path, "pope")
        note_error(error, path, defects)
        return None if known is None else AnnotationFile(path, known, broken=True)
    kind = _format(content, name)
    if kind is None and not (isinstance(content, dict | list) and content):
        defects.add(path, "", f"expected annotations or questions, found {shown(content)}")
    if kind is None:
        return None
    if kind in ("questions", "answers"):
        entries = _dicts(content, "questions" if kind == "questions" else "annotations")
        ids = (entry.get("question_id") for entry in entries)
        numbers = frozenset(number for number in ids if isinstance(number, int))
        raw = any(_any_has(_dicts(entry, "answers"), "raw_answer") for entry in entries)
        return AnnotationFile(path, kind, numbers, raw)
    return AnnotationFile(path, kind)


def note_error(error: GapinitError, path: Path, defects: Defects) -> None:
    """Note an error about a whole file as its defect."""
    defects.add(path, "", str(error).removeprefix(f"{path}: "))


def _format(content: Any, name: str) -> Format | None:
    if isinstance(content, dict):
        if "questions" in content:
            return "questions"
        if "annotations" in content:
            return _annotations_format(content, name)
        if "images" in content:
            split = _any_has(_dicts(content, "images"), "sentences", "split")
            return "karpathy" if split else _by_name(name) or "karpathy"
        if len({"image", "text", "label"} & content.keys()) > 1:
            return "pope"
    if isinstance(content, list):
        entries = [entry for entry in content if isinstance(entry, dict)]
        if _any_has(entries, "conversations"):
            return "conversations"
        if _any_has(entries, "caption"):  # predictions, in COCO's format of results
            return None
        if _any_has(entries, "label"):
            return "pope"
    return _by_name(name)


def _annotations_format(content: dict[str, Any], name: str) -> Format | None:
    notes = _dicts(content, "annotations")
    if _any_has(notes, "caption"):
        return "captions"
    if _any_has(notes, "answers", "question_id"):
        return "answers"
    if _any_has(notes, "bbox", "segmentation", "segments_info", "category_id", "keypoints"):
        return None
    known = _by_name(name)
    return known if known in ("captions", "answers") and "images" not in content else "captions"


def _dicts(content: Any, key: str) -> list[dict[str, Any]]:
    """Return the objects in the list under a key; none if there is no such list."""
    entries = content.get(key) if isinstance(content, dict) else None
    listed = entries if isinstance(entries, list) else []
    return [entry for entry in listed if isinstance(entry, dict)]


def _any_has(entries: Sequence[dict[str, Any]], *keys: str) -> bool:
    return any(key in entry for entry in entries for key in keys)


def _by_name(name: str) -> Format | None:
    return next((kind for kind, pattern in _BY_NAME.items() if pattern.search(name)), None)


def _are_question_lines(path: Path) -> bool:
    """Tell whether a file that is no JSON as a whole has lines like those of POPE."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and len({"image", "text", "label"} & value.keys()) > 1:
            return True
    return False


def pair_questions(files: Sequence[AnnotationFile], defects: Defects) -> list[AnnotationFile]:
    """Give each file of questions the file of its annotations: same question ids, or same name."""
    answers = [file for file in files if file.format == "answers"]
    paired, used = [], set()
    for file in files:
        if file.format == "questions":
            partner = max(answers, key=lambda other: _kinship(file, other), default=None)
            if partner is not None and _belong(file, partner):
                used.add(partner.path)
                file = replace(file, answers=partner)
            elif not file.broken:
                expected = re.sub("questions?", "annotations", file.path.name, flags=re.IGNORECASE)
                expected = expected.replace("OpenEnded_", "")
                problem = f"no file has the annotations of these questions (expected {expected})"
                defects.add(file.path, "", problem)
        if file.format != "answers":
            paired.append(file)
    for file in answers:
        if file.path not in used and not file.broken:
            defects.add(file.path, "", "no file has the questions of these annotations")
    return paired


def _belong(one: AnnotationFile, other: AnnotationFile) -> bool:
    formats = {one.format, other.format}
    return formats == {"questions", "answers"} and any(_kinship(one, other)[:2])


def _kinship(one: AnnotationFile, other: AnnotationFile) -> tuple[int, int, int]:
    """Tell how much speaks for questions and answers belonging together: ids, names, folder."""
    names = [
        re.sub("openended|multiplechoice|questions?|annotations?|answers?|[-_. ]", "", stem)
        for stem in (one.path.stem.lower(), other.path.stem.lower())
    ]
    shared = len(one.question_ids & other.question_ids)
    return shared, int(names[0] == names[1]), int(one.path.parent == other.path.parent)


def _note_half_pairs(files: Sequence[AnnotationFile], defects: Defects) -> None:
    """Note COCO captions of training without those of validation, or the reverse.

    Beside files of other formats one of the two may well be all that is wanted.
    """
    if any(file.format != "captions" for file in files):
        return
    names = {file.path for file in files}
    for path in sorted(names):
        found = OFFICIAL_CAPTIONS.fullmatch(path.name)
        if found:
            other = {"train": "val", "val": "train"}[found["split"]]
            missing = path.with_name(f"captions_{other}{found['year']}.json")
            if missing not in names:
                defects.add(missing, "", f"no such file, but {path.name} is there. Add it.")
