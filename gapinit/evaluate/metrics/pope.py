"""POPE scores of object hallucination, equal to the official program's."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gapinit.artifacts.artifacts import write_json
from gapinit.evaluate.metrics.pope_files import (
    PopeAnswer,
    PopeQuestion,
    file_names,
    match_answers,
    read_answers_of_each,
    read_pope_questions,
)
from gapinit.evaluate.metrics.score_file import provenance

SHARES = ("accuracy", "precision", "recall", "f1", "yes_rate")


def score_pope(
    questions: Sequence[Path], predictions: Sequence[Path], output: Path
) -> dict[str, Any]:
    """Score yes/no answers by POPE's rules and write the scores as JSON.

    `questions`: POPE question files, JSON lines of {question_id, image, text, label}.
    `predictions`: one file of answers per question file, in the same order; or one file for all,
    whose entries have a `category` (random, popular or adversarial) that is also the end of a
    question file's name. An answer is the entry's `answer` or, without one, its `text`. Any file
    may be a JSON list instead of JSON lines. All shares are percent; yes is the positive class.
    `metrics` pools all questions; its `mean_` values are means over the files. Returns the written
    content. Raises GapinitError for every mistake in a file.

    Source: POPE (Li et al. 2023, arXiv 2305.10355) and its evaluate.py.
    """
    asked = [read_pope_questions(path) for path in questions]
    given = read_answers_of_each(questions, predictions)
    by_file: dict[str, dict[str, float]] = {}
    samples: list[dict[str, Any]] = []
    for name, path, in_file, (source, answers) in zip(
        file_names(questions), questions, asked, given, strict=True
    ):
        matched = match_answers(in_file, answers, path, source)
        judged = [_sample(one, answer, name) for one, answer in zip(in_file, matched, strict=True)]
        by_file[name] = pope_metrics(judged, str(path))
        samples += judged
    pooled = next(iter(by_file.values()))
    if len(by_file) > 1:
        pooled = pope_metrics(samples, "all files together")
    average = {
        share: sum(one[share] for one in by_file.values()) / len(by_file) for share in SHARES
    }
    result = {
        "metrics": {**pooled, **{f"mean_{share}": average[share] for share in SHARES}},
        "pooled": pooled,
        "average": average,
        "by_file": by_file,
        "questions": len(samples),
        **provenance({"questions": questions, "predictions": predictions}),
        "per_sample": samples,
    }
    write_json(output, result)
    return result


def yes_or_no(text: str) -> str:
    """Return "yes" or "no" by POPE's rule: no if the first sentence has the word No, not or no.

    Commas are removed and words split at single spaces. Anything else is yes, even "NO", "none"
    and "".
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if not {"No", "not", "no"}.isdisjoint(words) else "yes"


def pope_metrics(samples: Sequence[Mapping[str, Any]], place: str) -> dict[str, float]:
    """Return the shares, in percent, and counts of samples with `prediction` and `label`.

    A share with denominator 0 is 0, with a warning that names `place`; the official program fails.
    """
    counts = Counter((sample["prediction"], sample["label"]) for sample in samples)
    tp, fp = counts["yes", "yes"], counts["yes", "no"]
    tn, fn = counts["no", "no"], counts["no", "yes"]

    def share(part: float, whole: float, name: str, reason: str) -> float:
        if whole:
            return part / whole
        print(f"warning: {place}: {name} is set to 0 because {reason}", file=sys.stderr)
        return 0.0

    precision = share(tp, tp + fp, "precision", "no answer is yes")
    recall = share(tp, tp + fn, "recall", "no label is yes")
    f1 = share(2 * precision * recall, precision + recall, "f1", "no answer of yes is correct")
    total = len(samples)
    values = ((tp + tn) / total, precision, recall, f1, (tp + fp) / total)
    shares = {name: 100 * value for name, value in zip(SHARES, values, strict=True)}
    return {**shares, "tp": tp, "fp": fp, "tn": tn, "fn": fn}


def _sample(question: PopeQuestion, answer: PopeAnswer, category: str) -> dict[str, Any]:
    prediction = yes_or_no(answer.text)
    return {
        "question_id": question.question_id,
        "category": category,
        "image": question.image,
        "answer": answer.text,
        "prediction": prediction,
        "label": question.label,
        "accuracy": 100 * (prediction == question.label),
    }
