"""VQA accuracy of VQAv2 and OK-VQA, equal to the official evaluation's."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import write_json
from gapinit.data.entries import read_object, top_list
from gapinit.errors import GapinitError
from gapinit.evaluate.metrics.entries import (
    EntryId,
    KnownIds,
    entry_id,
    entry_list,
    entry_text,
    examples,
    read_results,
)
from gapinit.evaluate.metrics.score_file import provenance
from gapinit.evaluate.metrics.vqa_answers import normalise_answer, strip_answer

ANSWER_FIELDS = ("answer", "raw_answer")
ANNOTATORS = 10


@dataclass(frozen=True, slots=True)
class VqaQuestion:
    """One annotated question: its type and the annotators' answers."""

    place: str
    """Its file and entry, for error messages."""
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

    `questions`: VQA questions JSON; it may have questions without annotation. `annotations`: VQAv2
    or OK-VQA annotations JSON. `predictions`: a list of {question_id, answer}, the VQA result
    format. `answers`: the field of the annotators' answers. OK-VQA's `answer` is stemmed ("race"
    for "racing"), but its program does not stem predictions: `answer` is for models whose answers
    are stems, `raw_answer` for models that answer in plain words. Returns the written content.
    Raises GapinitError for every mistake in a file.

    Source: GT-Vision-Lab/VQA, master for Python 3 (Antol et al. 2015, arXiv 1505.00468).
    """
    if answers not in ANSWER_FIELDS:
        raise GapinitError(f"answers: expected {' or '.join(ANSWER_FIELDS)}, found '{answers}'")
    annotated = read_annotations(annotations, answers)
    images = read_questions(questions)
    asked = KnownIds(images, questions)
    given = read_results(predictions, "question_id", "answer", asked)
    keys = [asked.require(one.question_id, one.place) for one in annotated]
    for key, one in zip(keys, annotated, strict=True):
        if str(images[key]) != str(one.image_id):
            raise GapinitError(
                f"{one.place}: image {one.image_id!r}, but image {images[key]!r} in {questions}. "
                "Do the two files belong to the same dataset?"
            )
    missing = [key for key in keys if key not in given]
    if missing:
        raise GapinitError(
            f"{predictions}: {len(missing)} of the {len(annotated)} questions of {annotations} "
            f"have no answer (such as {examples(missing)}); expected one per question. Predict the "
            "rest, or remove the annotations of these questions."
        )
    predicted = [given[key] for key in keys]
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
        **provenance(files),
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

    The accuracy is the mean over annotators of min(1, matches / 3), where matches is the number of
    other annotators whose answer equals the prediction. As in the official program, answers are
    normalised only if the annotators disagree: "Yes" scores 0 against a unanimous "yes".
    """
    given = [strip_answer(answer) for answer in answers]
    said = strip_answer(prediction)
    if len(set(given)) > 1:
        given = [normalise_answer(answer) for answer in given]
        said = normalise_answer(said)
    matches = given.count(said)
    # An annotator who gave this answer does not count as a match for himself or herself.
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
            raise GapinitError(f"{place}: question {question_id!r} is repeated; expected it once")
        images[question_id] = entry_id(entry, "image_id", place)
    return images


def read_annotations(path: Path, field: str) -> list[VqaQuestion]:
    """Read a VQAv2 or OK-VQA annotations file; `field` is the key of an annotator's answer.

    OK-VQA's question types are codes, with their names in `question_types`.
    """
    content = read_object(path)
    names = content.get("question_types") or {}
    found: dict[EntryId, VqaQuestion] = {}
    for number, entry in enumerate(top_list(content, "annotations", path)):
        place = f"{path}: annotations[{number}]"
        question_id = entry_id(entry, "question_id", place)
        place += f" (question {question_id!r})"
        if question_id in found:
            raise GapinitError(f"{place}: a second annotation; expected one per question")
        question_type = entry_text(entry, "question_type", place)
        found[question_id] = VqaQuestion(
            place,
            question_id,
            entry_id(entry, "image_id", place),
            names.get(question_type, question_type),
            entry_text(entry, "answer_type", place),
            tuple(
                entry_text(answer, field, f"{place}: answers[{position}]")
                for position, answer in enumerate(entry_list(entry, "answers", place))
            ),
        )
        if not found[question_id].answers:
            raise GapinitError(f"{place}: 'answers': expected annotators' answers, found none")
    if not found:
        raise GapinitError(f"{path}: expected annotations, found none")
    return list(found.values())


def _warn_of_other_numbers(annotated: Sequence[VqaQuestion], path: Path) -> None:
    """Print a warning if the number of answers is not 10, which makes scores less reliable."""
    other = [question for question in annotated if len(question.answers) != ANNOTATORS]
    if other:
        print(
            f"warning: {path}: {len(other)} of {len(annotated)} questions do not have {ANNOTATORS} "
            f"answers (question {other[0].question_id!r} has {len(other[0].answers)}). They are "
            f"scored with the given answers; a question with one answer always scores 0",
            file=sys.stderr,
        )


def _means(types: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Return the mean score of each type, sorted by name."""
    groups: dict[str, list[float]] = {}
    for name, score in zip(types, scores, strict=True):
        groups.setdefault(name, []).append(score)
    return {name: math.fsum(groups[name]) / len(groups[name]) for name in sorted(groups)}
