"""VQA accuracy of VQAv2 and OK-VQA, equal to the official evaluation's."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import package_versions, read_json, sha256, write_json
from gapinit.config.versions import VERSIONS
from gapinit.data.entries import read_object, shown, top_list
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.entries import EntryId, IdIndex, entry_id, entry_text, examples
from gapinit.evaluate.metrics.vqa_answers import normalise_answer, strip_answer

ANSWER_FIELDS = ("answer", "raw_answer")
ANNOTATORS = 10


@dataclass(frozen=True, slots=True)
class VqaQuestion:
    """One annotated question: its kind, and what each annotator answered."""

    question_id: EntryId
    image_id: EntryId
    question_type: str
    answer_type: str
    answers: tuple[str, ...]


def score_vqa(
    questions: Path,
    annotations: Path,
    predictions: Path,
    output: Path,
    answers: str = "answer",
) -> dict[str, Any]:
    """Score predicted answers by the official VQA accuracy and write the scores as JSON.

    Every annotated question is scored. Values are percent, unrounded (the official program rounds
    to two decimals).

    `questions`: VQA questions JSON; it may hold more questions than are annotated. `annotations`:
    VQAv2 or OK-VQA annotations JSON. `predictions`: a list of {question_id, answer}, the VQA
    result format. `answers`: the field of the annotators' answers. OK-VQA's `answer` is stemmed
    ("racing" became "race") while its program does not stem predictions: its models do, or answer
    in stems learned in training. `raw_answer` is for models that answer in plain words.
    Returns what it wrote. Raises GapinitError for every mistake in a file.

    Source: GT-Vision-Lab/VQA, master for Python 3 (Antol et al. 2015, arXiv 1505.00468).
    """
    questions, annotations = Path(questions), Path(annotations)
    predictions, output = Path(predictions), Path(output)
    if answers not in ANSWER_FIELDS:
        raise GapinitError(f"answers: expected {' or '.join(ANSWER_FIELDS)}, found '{answers}'")
    if output.is_dir():
        raise GapinitError(f"{output}: expected the path of a file to write, found a folder")
    annotated = read_annotations(annotations, answers)
    images = read_questions(questions)
    _check_questions(annotated, images, annotations, questions)
    given = read_answers(predictions)
    predicted = match_answers(annotated, images, given, predictions, annotations, questions)
    _warn_of_other_numbers(annotated, annotations)
    scores = [
        100 * vqa_accuracy(question.answers, answer)
        for question, answer in zip(annotated, predicted, strict=True)
    ]
    files = {"questions": questions, "annotations": annotations, "predictions": predictions}
    result = {
        "metrics": {"accuracy": math.fsum(scores) / len(scores)},
        "by_answer_type": _means([question.answer_type for question in annotated], scores),
        "by_question_type": _means([question.question_type for question in annotated], scores),
        "questions": len(annotated),
        "predictions_without_annotation": len(given) - len(annotated),
        "answers": answers,
        "version": VERSIONS["score"],
        "inputs": {
            name: {"file": path.name, "sha256": sha256(path)} for name, path in files.items()
        },
        "packages": package_versions(("gapinit",)),
        "per_sample": [
            {
                "question_id": question.question_id,
                "image_id": question.image_id,
                "answer": answer,
                "accuracy": score,
                "answer_type": question.answer_type,
                "question_type": question.question_type,
            }
            for question, answer, score in zip(annotated, predicted, scores, strict=True)
        ],
    }
    write_json(output, result)
    return result


def vqa_accuracy(answers: Sequence[str], prediction: str) -> float:
    """Return the accuracy of one prediction, in [0, 1].

    An annotator's verdict is min(1, matches / 3), where matches counts the other annotators whose
    answer is the prediction; the accuracy is the mean over annotators. Answers are normalised only
    if the annotators disagree: against a unanimous "yes", "Yes" scores 0, as it does officially.
    """
    given = [strip_answer(answer) for answer in answers]
    said = strip_answer(prediction)
    if len(set(given)) > 1:
        given = [normalise_answer(answer) for answer in given]
        said = normalise_answer(said)
    matches = given.count(said)
    # Those who gave this answer see one match fewer, since they are not among the others.
    agreeing = matches * min(3, matches - 1)
    disagreeing = (len(given) - matches) * min(3, matches)
    return (agreeing + disagreeing) / (3 * len(given))


def read_questions(path: Path) -> dict[EntryId, EntryId]:
    """Return the image of each question of a VQA questions file."""
    images: dict[EntryId, EntryId] = {}
    for number, entry in enumerate(top_list(read_object(path), "questions", path)):
        place = f"{path}: questions[{number}]"
        question_id = entry_id(entry, "question_id", place)
        if question_id in images:
            raise GapinitError(f"{place}: question {question_id!r} is there twice; expected once")
        images[question_id] = entry_id(entry, "image_id", place)
    return images


def read_annotations(path: Path, field: str = "answer") -> list[VqaQuestion]:
    """Read a VQAv2 or OK-VQA annotations file; `field` holds an annotator's answer.

    OK-VQA names its question types by codes and explains them in `question_types`.
    """
    content = read_object(path)
    entries = top_list(content, "annotations", path)
    if not entries:
        raise GapinitError(f"{path}: no annotations in it; there is nothing to score")
    names = _type_names(content)
    found: dict[EntryId, VqaQuestion] = {}
    for number, entry in enumerate(entries):
        place = f"{path}: annotations[{number}]"
        question_id = entry_id(entry, "question_id", place)
        place += f" (question {question_id!r})"
        if question_id in found:
            raise GapinitError(f"{place}: annotated a second time; expected once")
        question_type = entry_text(entry, "question_type", place)
        found[question_id] = VqaQuestion(
            question_id,
            entry_id(entry, "image_id", place),
            names.get(question_type, question_type),
            entry_text(entry, "answer_type", place),
            _annotators_answers(entry, field, place),
        )
    return list(found.values())


def _annotators_answers(entry: Mapping[str, Any], field: str, place: str) -> tuple[str, ...]:
    given = entry.get("answers")
    if not isinstance(given, list) or not given:
        found = "an empty list" if given == [] else shown(given)
        raise GapinitError(
            f"{place}: 'answers': expected a list of annotators' answers, found {found}"
        )
    answers = []
    for number, answer in enumerate(given):
        text = answer.get(field) if isinstance(answer, dict) else None
        if not isinstance(text, str):
            found = shown(text) if isinstance(answer, dict) and field in answer else "no such key"
            hint = " OK-VQA has it; else use --answers answer." if field == "raw_answer" else ""
            raise GapinitError(
                f"{place}: answers[{number}]: '{field}': expected text, found {found}.{hint}"
            )
        answers.append(text)
    return tuple(answers)


def _type_names(content: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the names behind the codes of question types, where the file tells them."""
    names = content.get("question_types")
    if isinstance(names, dict) and all(isinstance(name, str) for name in names.values()):
        return names
    return {}


def read_answers(path: Path) -> list[tuple[EntryId, str]]:
    """Read answers in the VQA result format: a list of {question_id, answer}.

    An empty answer is legal: a model may say nothing.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise GapinitError(
            f"{path}: expected a list of {{'question_id', 'answer'}} (VQA result format), found "
            f"{shown(content)}"
        )
    answers = []
    for number, entry in enumerate(content):
        place = f"{path}: entry {number}"
        question_id = entry_id(entry, "question_id", place)
        answers.append(
            (question_id, entry_text(entry, "answer", f"{place} (question {question_id!r})"))
        )
    return answers


def match_answers(
    annotated: Sequence[VqaQuestion],
    images: Mapping[EntryId, EntryId],
    answers: Sequence[tuple[EntryId, str]],
    predictions_path: Path,
    annotations_path: Path,
    questions_path: Path,
) -> list[str]:
    """Return the answer to each annotated question, in their order.

    Answers to questions that are in the questions file and not annotated are passed over.
    """
    asked = IdIndex(images)
    scored = IdIndex(question.question_id for question in annotated)
    predicted: dict[EntryId, str] = {}
    seen: set[EntryId] = set()
    for number, (question_id, answer) in enumerate(answers):
        place = f"{predictions_path}: entry {number}: question {question_id!r}"
        question = asked.find(question_id)
        if question is None:
            raise GapinitError(
                f"{place} is not in {questions_path}, which has {len(images)} questions (such as "
                f"{examples(images)}). Are these the questions of this dataset?"
            )
        if question in seen:
            raise GapinitError(f"{place} has a second answer; expected one for each question")
        seen.add(question)
        target = scored.find(question)
        if target is not None:
            predicted[target] = answer
    missing = [one.question_id for one in annotated if one.question_id not in predicted]
    if missing:
        raise GapinitError(
            f"{predictions_path}: {len(missing)} of the {len(annotated)} questions of "
            f"{annotations_path} have no answer (such as {examples(missing)}); expected one for "
            f"each. Predict the rest, or score with the annotations of these questions only."
        )
    return [predicted[question.question_id] for question in annotated]


def _check_questions(
    annotated: Sequence[VqaQuestion],
    images: Mapping[EntryId, EntryId],
    annotations_path: Path,
    questions_path: Path,
) -> None:
    """Refuse annotations of other questions, or of the same ids with other images."""
    asked = IdIndex(images)
    for number, question in enumerate(annotated):
        found = asked.find(question.question_id)
        place = f"{annotations_path}: annotations[{number}]: question {question.question_id!r}"
        if found is None:
            raise GapinitError(
                f"{place} is not in {questions_path}, which has {len(images)} questions (such as "
                f"{examples(images)}). Are these the questions of the same split?"
            )
        if str(images[found]) != str(question.image_id):
            raise GapinitError(
                f"{place} is about image {question.image_id!r}, but about image "
                f"{images[found]!r} in {questions_path}. Are the two files of the same dataset?"
            )


def _warn_of_other_numbers(annotated: Sequence[VqaQuestion], path: Path) -> None:
    """Say so if the number of annotators is not the usual one: the scores then mean less."""
    other = [question for question in annotated if len(question.answers) != ANNOTATORS]
    if other:
        print(
            f"warning: {path}: {len(other)} of {len(annotated)} questions do not have {ANNOTATORS} "
            f"answers (question {other[0].question_id!r} has {len(other[0].answers)}). They are "
            f"scored by what is there; a question with one answer always scores 0",
            file=sys.stderr,
        )


def _means(types: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Return the mean score of each type, in the order of their names."""
    groups: dict[str, list[float]] = {}
    for name, score in zip(types, scores, strict=True):
        groups.setdefault(name, []).append(score)
    return {name: math.fsum(groups[name]) / len(groups[name]) for name in sorted(groups)}
