"""Load questions about images: VQAv2 and OK-VQA (ten answers each) and POPE (yes or no)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gapinit.data.defects import Defects
from gapinit.data.entries import (
    Entry,
    clean_text,
    file_name,
    locate_image,
    read_lines,
    read_object,
    shown,
    top_list,
)
from gapinit.data.locate import coco_folders, find_images_by_id, image_number

ANSWERS = 10  # people who were asked each question of VQAv2 and OK-VQA
LABELS = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """A question about an image, and what people answered.

    `category` is POPE's random, popular or adversarial; elsewhere it is empty.
    """

    question_id: int
    image_id: int
    path: Path
    text: str
    answers: tuple[str, ...]
    question_type: str
    answer_type: str
    category: str
    split: str


def load_vqa(
    questions: Path,
    annotations: Path,
    image_root: Path,
    split: str,
    defects: Defects | None = None,
    *,
    answer_key: Literal["answer", "raw_answer"] = "answer",
) -> list[Question]:
    """Load the questions and annotations of VQAv2 or OK-VQA as the split `split`.

    Images are found by their COCO id, under the names of the 2014 or of the 2017 release.
    `answer_key` is for OK-VQA, which has stemmed answers beside those that people gave. Defects
    are raised together, or added to `defects` if that is given.
    Source: the VQA annotation format (visualqa.org), and OK-VQA's (okvqa.allenai.org).
    """
    noted = Defects() if defects is None else defects
    asked = _Entries(questions, "questions", noted)
    read = _read_questions(asked, image_root, split)
    answered = _Entries(annotations, "annotations", noted)
    _note_unpaired(asked, answered)
    loaded = []
    for question_id, entry in answered.every():
        answers = _answers(entry, answer_key)
        question_type, answer_type = entry.text("question_type"), entry.text("answer_type")
        image_id = entry.integer("image_id")
        if "multiple_choice_answer" in entry.fields:
            entry.text("multiple_choice_answer")
        image, path, text = read.get(question_id, (None, None, None))
        if question_id is None or image is None or image_id is None:
            continue
        if image_id != image:
            place = f"{asked.by_id[question_id].place} of {questions.name}"
            entry.problem(f"'image_id': {image_id}, but its question, {place}, has {image}")
        elif answers and path and text and question_type is not None and answer_type is not None:
            kinds = question_type, answer_type, ""
            loaded.append(Question(question_id, image, path, text, answers, *kinds, split))
    if defects is None:
        noted.raise_if_any()
    return loaded


def check_questions(questions: Path, image_root: Path, split: str, defects: Defects) -> None:
    """Note what is wrong with questions whose annotations are not there."""
    _read_questions(_Entries(questions, "questions", defects), image_root, split)


class _Entries:
    """The entries of one file by question id, and those whose own id cannot be used."""

    def __init__(self, file: Path, key: str, defects: Defects) -> None:
        self.file = file
        self.by_id: dict[int, Entry] = {}
        self.others: list[Entry] = []
        for index, value in enumerate(top_list(read_object(file), key, file)):
            entry = Entry(value, file, f"{key}[{index}]", defects)
            question_id = entry.integer("question_id")
            if question_id is None:
                self.others.append(entry)
            elif question_id in self.by_id:
                _note_duplicate(entry, question_id, self.by_id[question_id].place)
                self.others.append(entry)
            else:
                self.by_id[question_id] = entry

    def every(self) -> list[tuple[int | None, Entry]]:
        """Return all entries, with None for an id that cannot be used."""
        return [*self.by_id.items(), *((None, entry) for entry in self.others)]


def _note_duplicate(entry: Entry, question_id: int, first: str) -> None:
    entry.problem(f"duplicate question id {question_id}, already used by {first}")


def _note_unpaired(asked: _Entries, answered: _Entries) -> None:
    """Note questions without annotation and the reverse.

    An entry with an unusable id has been told already; it stands for one entry of the other file
    about the same image, which would else be told as unpaired.
    """
    for these, those, noun in ((asked, answered, "annotation"), (answered, asked, "question")):
        told = Counter(repr(entry.fields.get("image_id")) for entry in those.others)
        for question_id, entry in these.by_id.items():
            if question_id in those.by_id:
                continue
            images = repr(entry.fields.get("image_id")), repr(None)
            partner = next((image for image in images if told[image] > 0), None)
            if partner is not None:
                told[partner] -= 1
                continue
            where = those.file.name
            entry.problem(f"question {question_id} has no {noun} in {where}. Add or remove it.")


def _read_questions(
    asked: _Entries, root: Path, split: str
) -> dict[int | None, tuple[int | None, Path | None, str | None]]:
    """Return image id, image file and text by question id; each missing image is noted once."""
    images = find_images_by_id(root, split)
    looked = ", ".join(folder or "the root itself" for folder in coco_folders(split))
    read: dict[int | None, tuple[int | None, Path | None, str | None]] = {}
    named: set[int] = set()
    for question_id, entry in asked.every():
        text = clean_text(entry, "question", "question")
        image_id, path = entry.integer("image_id"), None
        if image_id is not None:
            path = images.get(image_id)
            if image_id in named:
                pass
            elif path is None:
                names = f"COCO_{{train,val}}2014_{image_id:012d}.jpg or {image_id:012d}.jpg"
                where = f"{root} (looked in {looked})"
                entry.problem(f"names the image {names}, which is not in {where}")
            else:
                entry.names_image(path, image_id, split)
            named.add(image_id)
        if question_id is not None:
            read[question_id] = (image_id, path, text)
    return read


def _answers(entry: Entry, key: str) -> tuple[str, ...] | None:
    """Return the ten answers, or note what is wrong with them and return None."""
    given = entry.items("answers")
    if given is None:
        return None
    if len(given) != ANSWERS:
        entry.problem(f"'answers': expected {ANSWERS} answers, found {len(given)}")
    answers = []
    for number, value in enumerate(given):
        text = value.get(key) if isinstance(value, dict) else None
        if isinstance(text, str) and text.isascii() and (text := " ".join(text.split())):
            answers.append(text)  # all but a few of VQAv2's four million
            continue
        person = Entry(value, entry.file, f"{entry.place}.answers[{number}]", entry.defects)
        other = clean_text(person, key, "answer")
        if other is not None:
            answers.append(other)
    return tuple(answers) if len(answers) == len(given) == ANSWERS else None


def load_pope(
    questions: Path,
    image_root: Path,
    category: str,
    defects: Defects | None = None,
    split: str = "test",
) -> list[Question]:
    """Load a question file of POPE: JSON lines that name an image and a label, yes or no.

    Defects are raised together, or added to `defects` if that is given.
    Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023.
    """
    noted = Defects() if defects is None else defects
    folders = coco_folders(split)
    first: dict[int, str] = {}
    images: dict[str, Path | None] = {}
    loaded = []
    for entry in read_lines(questions, noted):
        question_id = entry.integer("question_id")
        text, label = clean_text(entry, "text", "question"), entry.text("label")
        if label is not None and label not in LABELS:
            entry.problem(f"'label': expected yes or no, found {shown(label)}")
            label = None
        name = file_name(entry, "image")
        if name is not None and name not in images:
            images[name] = path = locate_image(entry, image_root, folders, name)
            if path is not None:
                entry.names_image(path, image_number(name), split)
        if question_id is not None and question_id in first:
            _note_duplicate(entry, question_id, first[question_id])
            continue
        found = images[name] if name is not None else None
        if question_id is None:
            continue
        first[question_id] = entry.place
        if name and found and text and label:
            kinds = "", "yes/no", category
            number = image_number(name)
            loaded.append(Question(question_id, number, found, text, (label,), *kinds, split))
    if defects is None:
        noted.raise_if_any()
    return loaded
