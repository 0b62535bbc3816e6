"""Find a folder's annotation files, detect their formats from their content, and read them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gapinit.artifacts.artifacts import read_json
from gapinit.data.captions import load_coco_captions, load_karpathy
from gapinit.data.conversations import load_llava
from gapinit.data.defects import Defects
from gapinit.data.entries import read_lines, shown
from gapinit.data.locate import POPE_CATEGORIES, leading_out
from gapinit.data.pretraining import ALT_TEXT, read_pretraining
from gapinit.data.questions import AnswerKey, load_pope, load_vqa
from gapinit.errors import GapinitError

Format = Literal[
    "karpathy", "captions", "questions", "answers", "pope", "conversations", "alt_text"
]
DEPTH = 4  # levels of subfolders to search
SUFFIXES = (".json", ".jsonl")
OWN_FILES = ("manifest.json", "scenes.json")
# Files of COCO's and VQAv2's releases that gapinit does not read.
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
_WORDS = re.compile("openended|multiplechoice|questions?|annotations?|answers?|[-_. ]")
_POPE_KEYS = {"image", "text", "label"}
_OBJECT_KEYS = {"bbox", "segmentation", "segments_info", "category_id", "keypoints"}


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file, its format, and the split of its samples ('': unknown).

    `answers`: the annotations file of a questions file. `broken`: the file is not valid JSON, which
    is already reported as a defect.
    """

    path: Path
    format: Format
    split: str = ""
    answers: Path | None = None
    broken: bool = False


def read_samples(
    file: AnnotationFile, root: Path, defects: Defects, answer_key: AnswerKey = "answer"
) -> Sequence[Any]:
    """Read an annotation file, whose images are below `root`, with its format's reader."""
    path = file.path
    if file.format == "karpathy":
        return load_karpathy(path, root, defects)
    if file.format == "captions":
        return load_coco_captions(path, root, file.split, defects)
    if file.format == "pope":
        category = next((word for word in POPE_CATEGORIES if word in path.name), "")
        return load_pope(path, root, category, defects)
    if file.format == "conversations":
        return load_llava(path, root, defects, file.split or "train")
    if file.format == "alt_text":
        return read_pretraining(path.parent, defects)[0]
    split = file.split or "test"
    return load_vqa(path, file.answers, root, split, defects, answer_key=answer_key)


def find_annotation_files(folder: Path, defects: Defects) -> list[AnnotationFile]:
    """Return the annotation files of a folder, questions paired with their annotations.

    Defects are: a file that is not JSON, questions or annotations without their partner, one of
    COCO's two captions files without the other, and links that lead out of the folder.
    """
    found = (classify(path, defects) for path in _walk(folder, defects))
    files = _pair_questions([file for file in found if file is not None], defects)
    _note_half_pairs(files, defects)
    return files


def given_files(paths: Sequence[Path], defects: Defects) -> list[AnnotationFile]:
    """Return the given annotation files; a single questions or annotations file with its partner.

    The partner is in the same folder, and its name differs only in words such as "questions".
    """
    files = [file for path in paths if (file := classify(path, defects)) is not None]
    if len(files) == 1 and files[0].format in ("questions", "answers"):
        (path,) = paths
        beside = [other for other in sorted(path.parent.iterdir()) if other.suffix in SUFFIXES]
        kin = [other for other in beside if other != path and _stem(other) == _stem(path)]
        files += [file for other in kin if (file := classify(other, Defects())) is not None]
    return _pair_questions(files, defects)


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
    """Tell whether a link leads the path out of the folder, and report it."""
    link = leading_out(path, folder)
    if link is not None:
        target = os.path.realpath(link)
        problem = f"is a link that leads out of {folder}, to {target}. Put the files there instead."
        defects.add(link, named_by, problem)
    return link is not None


def _is_own(path: Path) -> bool:
    """Tell whether gapinit wrote this file."""
    beside = path.with_name("manifest.json").is_file()
    if path.parent.name == "references":
        return (path.parent.parent / "manifest.json").is_file()
    return path.name in OWN_FILES or (beside and path.name.startswith("references_"))


def classify(path: Path, defects: Defects) -> AnnotationFile | None:
    """Return a file with its format and split; None if it has another kind or is unreadable."""
    name = path.name.lower()
    if _UNUSED.search(name):
        return None
    word = re.search("train|val|test", name)
    split = word[0] if word else ""
    if name == ALT_TEXT:
        return AnnotationFile(path, "alt_text", split)
    try:
        content = read_json(path)
    except GapinitError as error:
        known = "pope" if _has_pope_lines(path) else _by_name(name)
        if known == "pope":
            return AnnotationFile(path, "pope", split)
        note_error(error, path, defects)
        return None if known is None else AnnotationFile(path, known, split, broken=True)
    kind = file_format(content, name)
    if kind is None and not (isinstance(content, dict | list) and content):
        defects.add(path, "", f"expected annotations or questions, found {shown(content)}")
    return None if kind is None else AnnotationFile(path, kind, split)


def _has_pope_lines(path: Path) -> bool:
    """Tell whether a file is JSON lines with POPE's keys."""
    try:
        return any(_is_pope(entry.fields) for entry in read_lines(path, Defects()))
    except GapinitError:
        return False


def _is_pope(fields: dict[str, Any]) -> bool:
    return len(_POPE_KEYS & fields.keys()) > 1


def note_error(error: GapinitError, path: Path, defects: Defects) -> None:
    """Report an error as a defect of the whole file."""
    defects.add(path, "", str(error).removeprefix(f"{path}: "))


def file_format(content: Any, name: str) -> Format | None:
    """Return a file's format, detected from its content or else from its name."""
    known = _by_name(name)
    if isinstance(content, list):
        keys = _keys(content)
        if "conversations" in keys:
            return "conversations"
        if "caption" in keys:  # predictions in COCO's results format
            return None
        return "pope" if "label" in keys else known
    if not isinstance(content, dict):
        return known
    if "questions" in content:
        return "questions"
    if "annotations" in content:
        keys = _keys(content["annotations"])
        if "caption" not in keys and keys & {"answers", "question_id"}:
            return "answers"
        if "caption" not in keys and keys & _OBJECT_KEYS:
            return None
        named = known == "answers" and not keys and "images" not in content
        return "answers" if named else "captions"
    if "images" in content:
        shows = _keys(content["images"]) & {"sentences", "split"}
        return "karpathy" if shows else known or "karpathy"
    return "pope" if _is_pope(content) else known


def _keys(values: Any) -> set[str]:
    """Return the keys of all objects in a list; none if `values` is no list."""
    listed = values if isinstance(values, list) else []
    return {key for entry in listed if isinstance(entry, dict) for key in entry}


def _by_name(name: str) -> Format | None:
    return next((kind for kind, pattern in _BY_NAME.items() if pattern.search(name)), None)


def _pair_questions(files: Sequence[AnnotationFile], defects: Defects) -> list[AnnotationFile]:
    """Pair each questions file with its annotations file by name; prefer the same folder."""
    answers = [file for file in files if file.format == "answers"]
    paired, used = [], set()
    for file in (file for file in files if file.format != "answers"):
        same = [other.path for other in answers if _stem(other.path) == _stem(file.path)]
        if file.format == "questions" and same:
            partner = max(same, key=lambda path: path.parent == file.path.parent)
            used.add(partner)
            file = replace(file, answers=partner)
        elif file.format == "questions" and not file.broken:
            expected = re.sub("questions?", "annotations", file.path.name, flags=re.IGNORECASE)
            expected = expected.replace("OpenEnded_", "")
            problem = f"no file has the annotations of these questions (expected {expected})"
            defects.add(file.path, "", problem)
        paired.append(file)
    for file in answers:
        if file.path not in used and not file.broken:
            defects.add(file.path, "", "no file has the questions of these annotations")
    return paired


def _stem(path: Path) -> str:
    """Return the part of the name that a questions file and its annotations file share."""
    return _WORDS.sub("", path.stem.lower())


def _note_half_pairs(files: Sequence[AnnotationFile], defects: Defects) -> None:
    """Report COCO training captions without validation captions, and the reverse.

    Nothing is reported if the folder has files of other formats: one of the two may then suffice.
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
