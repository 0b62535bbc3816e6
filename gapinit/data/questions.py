"""Load questions about images: VQAv2 and OK-VQA (ten answers each) and POPE (yes or no)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gapinit.data.defects import Defects
from gapinit.data.entries import Entry, Images, Seen, by_id, read_entries, read_lines
from gapinit.data.locate import coco_folders, find_images_by_id, image_number

ANSWERS = 10  # people per question in VQAv2 and OK-VQA
LABELS = ("yes", "no")
AnswerKey = Literal["answer", "raw_answer"]


@dataclass(frozen=True)
class Question:
    """A question about an image, and people's answers.

    `category` is POPE's: random, popular or adversarial. In other datasets it is empty.
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


@dataclass(frozen=True)
class _File:
    """The entries of a file by question id, and the entries without a valid id."""

    path: Path
    by_id: dict[int, Entry]
    others: list[Entry]

    @classmethod
    def read(cls, path: Path, key: str, defects: Defects) -> _File:
        return cls(path, *by_id(read_entries(path, key, defects), "question_id", "question id"))

    def every(self) -> list[tuple[int | None, Entry]]:
        """Return all entries, with None for an invalid id."""
        return [*self.by_id.items(), *((None, entry) for entry in self.others)]


def load_vqa(
    questions: Path,
    annotations: Path | None,
    image_root: Path,
    split: str,
    defects: Defects,
    *,
    answer_key: AnswerKey = "answer",
) -> list[Question]:
    """Load the questions and annotations of VQAv2 or OK-VQA as the split `split`.

    Images are found by their COCO id, under the file names of the 2014 or the 2017 release.
    `answer_key` chooses between OK-VQA's stemmed and raw answers.
    Without annotations the questions are only checked.
    Source: the VQA annotation format (visualqa.org), and OK-VQA's (okvqa.allenai.org).
    """
    asked = _File.read(questions, "questions", defects)
    read = _read_questions(asked, image_root, split)
    if annotations is None:
        return []
    answered = _File.read(annotations, "annotations", defects)
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
    return loaded


def _note_unpaired(asked: _File, answered: _File) -> None:
    """Report questions without annotations, and annotations without a question.

    An entry with an invalid id, already a defect, may be the missing one.
    """
    for these, those, noun in ((asked, answered, "annotation"), (answered, asked, "question")):
        for question_id, entry in these.by_id.items():
            if question_id not in those.by_id and not those.others:
                where = those.path.name
                entry.problem(f"question {question_id} has no {noun} in {where}. Add or remove it.")


def _read_questions(
    asked: _File, root: Path, split: str
) -> dict[int | None, tuple[int | None, Path | None, str | None]]:
    """Return image id, image file and text by question id; report each missing image once."""
    images = find_images_by_id(root, split)
    looked = ", ".join(folder or "the root itself" for folder in coco_folders(split))
    read: dict[int | None, tuple[int | None, Path | None, str | None]] = {}
    named: set[int] = set()
    for question_id, entry in asked.every():
        text, image_id = entry.words("question", "question"), entry.integer("image_id")
        path = None if image_id is None else images.get(image_id)
        if image_id is not None and image_id not in named:
            named.add(image_id)
            if path is None:
                names = f"COCO_{{train,val}}2014_{image_id:012d}.jpg or {image_id:012d}.jpg"
                where = f"{root} (looked in {looked})"
                entry.problem(f"names the image {names}, which is not in {where}")
            else:
                entry.names_image(path, image_id, split)
        if question_id is not None:
            read[question_id] = (image_id, path, text)
    return read


def _answers(entry: Entry, key: AnswerKey) -> tuple[str, ...] | None:
    """Return the ten answers, or report the defect and return None."""
    given = entry.items("answers")
    if given is None:
        return None
    if len(given) != ANSWERS:
        entry.problem(f"'answers': expected {ANSWERS} answers, found {len(given)}")
    # OK-VQA: both the stemmed and the raw answers are checked.
    raw = any(isinstance(value, dict) and "raw_answer" in value for value in given)
    answers = []
    for number, value in enumerate(given):
        text = value.get(key) if isinstance(value, dict) and not raw else None
        if isinstance(text, str) and text.isascii() and (text := " ".join(text.split())):
            answers.append(text)  # fast path: nearly all of VQAv2's four million
            continue
        person = Entry(value, entry.file, f"{entry.place}.answers[{number}]", entry.defects)
        names = ("answer", "raw_answer") if raw else (key,)
        answer = {name: person.words(name, "answer") for name in names}[key]
        if answer is not None:
            answers.append(answer)
    return tuple(answers) if len(answers) == len(given) == ANSWERS else None


def load_pope(questions: Path, image_root: Path, category: str, defects: Defects) -> list[Question]:
    """Load a POPE question file (split `test`): JSON lines with an image and the label yes or no.

    Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023.
    """
    images = Images(image_root, coco_folders("test"), "test")
    seen: Seen = {}
    loaded = []
    for entry in read_lines(questions, defects):
        question_id = entry.integer("question_id")
        text, label = entry.words("text", "question"), entry.choice("label", LABELS)
        name = entry.file_name("image")
        path = images.find(entry, name)
        if question_id is None or not entry.is_first(seen, "question id", question_id):
            continue
        if name and path and text and label:
            kinds = "", "yes/no", category
            number = image_number(name)
            loaded.append(Question(question_id, number, path, text, (label,), *kinds, "test"))
    return loaded
