"""Read POPE's questions and a model's answers, and match them by category and question."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.data.entries import read_text, shown
from gapinit.data.locate import POPE_CATEGORIES as CATEGORIES
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.entries import EntryId, entry_id, entry_text, examples


@dataclass(frozen=True, slots=True)
class PopeQuestion:
    """One question, its image (if the file names it) and the correct answer."""

    question_id: EntryId
    image: str | None
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class PopeAnswer:
    """A model's answer, with the question's id and category if its entry has them."""

    place: str
    question_id: EntryId | None
    category: str | None
    text: str


def read_pope_questions(path: Path) -> list[PopeQuestion]:
    """Read a POPE question file."""
    questions = []
    for place, entry in read_entries(path):
        label = entry_text(entry, "label", place).strip().lower()
        if label not in ("yes", "no"):
            raise GapinitError(f"{place}: 'label': expected yes or no, found {shown(label)}")
        image = None if entry.get("image") is None else entry_text(entry, "image", place)
        question_id = entry_id(entry, "question_id", place)
        questions.append(PopeQuestion(question_id, image, entry_text(entry, "text", place), label))
    return questions


def read_pope_answers(path: Path) -> list[PopeAnswer]:
    """Read a model's answers from the key `answer` (POPE), else `text` (LLaVA)."""
    answers = []
    for place, entry in read_entries(path):
        given_id, category = entry.get("question_id"), entry.get("category")
        key = "text" if "text" in entry and "answer" not in entry else "answer"
        answers.append(
            PopeAnswer(
                place,
                None if given_id is None else entry_id(entry, "question_id", place),
                None if category is None else entry_text(entry, "category", place).strip().lower(),
                entry_text(entry, key, place),
            )
        )
    return answers


def read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a JSON-lines file or a JSON list, each with its place for errors.

    A byte-order mark, CRLF line ends and empty lines, which occur in copies of POPE, are allowed.
    """
    text = read_text(path, encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        values = _parsed(text, f"{path}")
        found = [(f"{path}: entry {number}", value) for number, value in enumerate(values)]
    else:
        places = ((f"{path}: line {n}", line) for n, line in enumerate(text.split("\n"), start=1))
        found = [(place, _parsed(line, place)) for place, line in places if line.strip()]
    if not found:
        raise GapinitError(f"{path}: empty; expected a JSON object on each line")
    for place, entry in found:
        if not isinstance(entry, dict):
            raise GapinitError(f"{place}: expected an object, found {shown(entry)}")
    return found


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GapinitError(
            f"{place}: not valid JSON ({error}); expected a JSON object on each line, or one list"
        ) from None


def file_names(paths: Sequence[Path]) -> list[str]:
    """Return a unique name for each question file: its category, else file name, else path."""
    short = [category_of(path) or path.name for path in paths]
    for names in (short, [path.name for path in paths], [str(path) for path in paths]):
        if len(set(names)) == len(names):
            return names
    raise GapinitError(f"questions: expected each file once, found {', '.join(map(str, paths))}")


def category_of(path: Path) -> str | None:
    """Return the category at the end of a file's name, as in coco_pope_random.json, or None."""
    found = re.search(rf"(?:^|[^a-z])({'|'.join(CATEGORIES)})$", path.stem.lower())
    return found[1] if found else None


def read_answers_of_each(
    questions: Sequence[Path], predictions: Sequence[Path]
) -> list[tuple[Path, list[PopeAnswer]]]:
    """Return for each question file the file of its answers, and the answers."""
    if len(predictions) == 1 and len(questions) > 1:
        by_category = _by_category(questions, predictions[0])
        return [(predictions[0], by_category[category_of(path)]) for path in questions]
    if len(predictions) != len(questions):
        raise GapinitError(
            f"predictions: expected 1 file, or {len(questions)}, one per question file; found "
            f"{len(predictions)}"
        )
    found = [(path, read_pope_answers(path)) for path in predictions]
    for asked, (path, answers) in zip(questions, found, strict=True):
        category = category_of(asked)
        categories = {category_of(path), *(answer.category for answer in answers)}
        others = categories & set(CATEGORIES) - {category}
        if category and others:
            raise GapinitError(
                f"{path}: expected answers of category '{category}' to {asked}, found "
                f"'{', '.join(map(str, others))}'. Give question and prediction files in the same "
                "order, or one prediction file for all question files."
            )
    return found


def _by_category(
    questions: Sequence[Path], predictions: Path
) -> dict[str | None, list[PopeAnswer]]:
    """Group one file's answers by the categories of the question files, which must differ."""
    found: dict[str | None, list[PopeAnswer]] = {category_of(path): [] for path in questions}
    if None in found or len(found) < len(questions):
        raise GapinitError(
            f"{', '.join(map(str, questions))}: expected names that end in different categories "
            f"({', '.join(CATEGORIES)}), as in coco_pope_random.json, found "
            f"{', '.join(str(category_of(path)) for path in questions)}. Or give one prediction "
            "file per question file."
        )
    for answer in read_pope_answers(predictions):
        if answer.category is None or answer.category not in found:
            raise GapinitError(
                f"{answer.place}: 'category': expected one of the question files "
                f"({', '.join(map(str, found))}), found {shown(answer.category)}"
            )
        found[answer.category].append(answer)
    return found


def match_answers(
    questions: Sequence[PopeQuestion],
    answers: Sequence[PopeAnswer],
    questions_path: Path,
    predictions_path: Path,
) -> list[PopeAnswer]:
    """Return the answer to each question, line by line if the ids agree or there are none.

    Unique ids may have another order. Ids are compared as text.
    """
    place = f"{predictions_path}: answers to {questions_path}"
    without = [answer for answer in answers if answer.question_id is None]
    if without and len(without) < len(answers):
        raise GapinitError(
            f"{without[0].place}: no 'question_id', but other answers have one; expected it for "
            "all answers, or for none if they are in the questions' order"
        )
    asked = [str(question.question_id) for question in questions]
    by_line = without and len(answers) == len(questions)
    found = asked if by_line else [str(answer.question_id) for answer in answers]
    by_id = dict(zip(found, answers, strict=True))
    if found == asked:
        matched = list(answers)
    elif sorted(found) == sorted(asked) and len(by_id) == len(asked):
        matched = [by_id[question_id] for question_id in asked]
    else:
        missing, surplus = Counter(asked) - Counter(found), Counter(found) - Counter(asked)
        raise GapinitError(
            f"{place}: expected an answer to each of {len(asked)} questions, in their order or "
            f"with unique ids, found {len(answers)} answers (without an answer: "
            f"{examples(missing) or 'none'}; without a question: {examples(surplus) or 'none'}). "
            "Do the two files belong together?"
        )
    if all(one.text == answer.text for one, answer in zip(questions, matched, strict=True)):
        raise GapinitError(f"{place}: expected answers, found the questions")
    return matched
