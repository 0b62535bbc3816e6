"""Read POPE's questions and a model's answers, and match them by category and question."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts.digests import require_unaltered
from gapinit.data.entries import shown
from gapinit.data.locate import POPE_CATEGORIES as CATEGORIES
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.entries import EntryId, entry_id, entry_text, examples


@dataclass(frozen=True, slots=True)
class PopeQuestion:
    """One question, the image it is about (if the file says so) and the right answer."""

    question_id: EntryId
    image: str | None
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class PopeAnswer:
    """A model's answer, with what its entry says about the question that it answers."""

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
        image = entry_text(entry, "image", place) if entry.get("image") is not None else None
        question_id = entry_id(entry, "question_id", place)
        questions.append(PopeQuestion(question_id, image, entry_text(entry, "text", place), label))
    return questions


def read_pope_answers(path: Path) -> list[PopeAnswer]:
    """Read a model's answers: under `answer` as POPE has them, else under `text` as LLaVA does."""
    answers = []
    for place, entry in read_entries(path):
        if "answer" not in entry and "text" not in entry:
            found = ", ".join(f"'{key}'" for key in list(entry)[:8]) or "no keys"
            raise GapinitError(f"{place}: expected the key 'answer' or 'text', found {found}")
        has_id, has_category = (entry.get(key) is not None for key in ("question_id", "category"))
        answers.append(
            PopeAnswer(
                place,
                entry_id(entry, "question_id", place) if has_id else None,
                entry_text(entry, "category", place).strip().lower() if has_category else None,
                entry_text(entry, "answer" if "answer" in entry else "text", place),
            )
        )
    return answers


def read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects of a JSON-lines file or a JSON list, each with the words for its place.

    A byte-order mark, CRLF line ends and empty lines are legal: copies of POPE have them.
    """
    try:
        content = Path(path).read_bytes()
        require_unaltered(path, content)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise GapinitError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise GapinitError(f"{path}: expected UTF-8 text ({error})") from None
    except OSError as error:
        raise GapinitError(f"{path}: cannot be read ({error.strerror})") from None
    if text.lstrip().startswith("["):
        entries = _parsed(text, f"{path}")
        found = [(f"{path}: entry {number}", entry) for number, entry in enumerate(entries)]
    else:
        # Lines end at "\n" only: JSON text may hold other characters that count as line ends.
        found = [
            (f"{path}: line {number}", _parsed(line, f"{path}: line {number}"))
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    if not found:
        raise GapinitError(f"{path}: nothing in it; expected a JSON object on each line")
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
    """Return a name for each question file: its category, else its file name, else its path.

    Categories serve if every file has another one or none, file names if they differ.
    """
    choices = (
        [category_of(path) or path.name for path in paths],
        [path.name for path in paths],
        [str(path) for path in paths],
    )
    for names in choices:
        if len(set(names)) == len(names):
            return names
    raise GapinitError(f"questions: expected each file once, found {', '.join(choices[-1])}")


def category_of(path: Path) -> str | None:
    """Return the category that ends a file's name, as in coco_pope_random.json, or None."""
    found = re.search(rf"(?:^|[^a-z])({'|'.join(CATEGORIES)})$", path.stem.lower())
    return found[1] if found else None


def read_answers_of_each(
    questions: Sequence[Path], predictions: Sequence[Path]
) -> list[tuple[Path, list[PopeAnswer]]]:
    """Return for each question file the answers meant for it, and the file that they are from."""
    if len(predictions) == 1 and len(questions) > 1:
        by_category = _by_category(questions, predictions[0])
        return [(predictions[0], by_category[str(category_of(path))]) for path in questions]
    if len(predictions) != len(questions):
        raise GapinitError(
            f"predictions: expected one file, or one for each of the {len(questions)} question "
            f"files, found {len(predictions)}"
        )
    found = [(path, read_pope_answers(path)) for path in predictions]
    for asked, (path, answers) in zip(questions, found, strict=True):
        category = category_of(asked)
        places = [(str(path), category_of(path))]
        places += [(answer.place, answer.category) for answer in answers]
        for place, other in places:
            if category and other in CATEGORIES and other != category:
                raise GapinitError(
                    f"{place}: expected answers of category '{category}', to {asked}, found "
                    f"'{other}'. Give the files of questions and of predictions in the same "
                    f"order, or all question files for one file of predictions."
                )
    return found


def _by_category(questions: Sequence[Path], predictions: Path) -> dict[str, list[PopeAnswer]]:
    """Sort one file's answers by the category of the question files, which must all differ."""
    found: dict[str, list[PopeAnswer]] = {}
    for path in questions:
        category = category_of(path)
        if category is None or category in found:
            problem = "no category" if category is None else f"'{category}' a second time"
            raise GapinitError(
                f"{path}: expected a name that ends in another one of {', '.join(CATEGORIES)}, as "
                f"in coco_pope_random.json, found {problem}. Or give one file of predictions for "
                f"each file of questions."
            )
        found[category] = []
    for answer in read_pope_answers(predictions):
        if answer.category not in found:
            given = "none" if answer.category is None else f"'{answer.category}'"
            raise GapinitError(
                f"{answer.place}: expected a 'category' of the question files ({', '.join(found)})"
                f", found {given}"
            )
        found[answer.category].append(answer)
    return found


def match_answers(
    questions: Sequence[PopeQuestion],
    answers: Sequence[PopeAnswer],
    questions_path: Path,
    predictions_path: Path,
) -> list[PopeAnswer]:
    """Return the answer to each question: line by line if the ids agree or there are none.

    Ids in another order are matched, if each is there once. They are compared as text.
    """
    place = f"{predictions_path}: answers to {questions_path}"
    without = [answer for answer in answers if answer.question_id is None]
    if without and len(without) < len(answers):
        raise GapinitError(
            f"{without[0].place}: no 'question_id', which other answers have; expected it for all "
            f"of them or for none (then the order counts)"
        )
    asked = [str(question.question_id) for question in questions]
    found = [str(answer.question_id) for answer in answers]
    if (without and len(asked) == len(found)) or asked == found:
        matched = list(answers)
    elif not without and sorted(asked) == sorted(found) and len(set(asked)) == len(asked):
        by_id = dict(zip(found, answers, strict=True))
        matched = [by_id[question_id] for question_id in asked]
    else:
        difference = "" if without else _difference(asked, found)
        raise GapinitError(
            f"{place}: expected one to each of {len(asked)} questions, found {len(found)} answers"
            f"{difference}. Are these the answers to these questions?"
        )
    if all(one.text == answer.text for one, answer in zip(questions, matched, strict=True)):
        raise GapinitError(f"{place}: found the questions themselves, expected answers to them")
    return matched


def _difference(asked: Sequence[str], found: Sequence[str]) -> str:
    """Say which question ids miss, are unknown or are there twice."""
    questions, answers = Counter(asked), Counter(found)
    groups = {
        "without an answer": [one for one in questions if one not in answers],
        "unknown": [one for one in answers if one not in questions],
        "twice among the questions": [one for one, count in questions.items() if count > 1],
        "twice among the answers": [one for one, count in answers.items() if count > 1],
    }
    return "".join(
        f"; {problem}: {len(ids)} (question_id {examples(ids)})"
        for problem, ids in groups.items()
        if ids
    )
