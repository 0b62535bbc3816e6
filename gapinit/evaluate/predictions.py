"""Prediction files, and parts of them: several jobs answer some batches each, one joins the parts.

Batches and answers equal those of a single job. A part is JSON: its shard, its inputs, and the
answers by the index of the sample in the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gapinit.artifacts.artifacts import read_json, sha256, write_json
from gapinit.config.yaml_files import Settings, check_settings
from gapinit.data.manifest import Manifest, read_manifest
from gapinit.data.references import write_lines
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.artifacts.shards import Shard


class PredictionPart(Settings):
    """The content of a part's file."""

    kind: Literal["part of predictions"] = "part of predictions"
    shard: tuple[int, int]
    """The number of this part, from 1, and the number of all parts."""
    asked: dict[str, Any]
    """The inputs of the answers; the same in every part."""
    answers: dict[int, str]


def write_part(
    output: Path, part: Shard, asked: Mapping[str, Any], answers: Mapping[int, str]
) -> None:
    """Write a part: some answers, by the index of the sample."""
    content = PredictionPart(
        shard=(part.index, part.count), asked=dict(asked), answers=dict(sorted(answers.items()))
    )
    write_json(output, content.model_dump())


def gather_predictions(manifest: Path, parts: Sequence[Path], output: Path) -> None:
    """Join parts into a prediction file that equals that of a single job.

    Raises GapinitError for a file that is not a part, and for incomplete or mixed parts.
    """
    read = [(path, check_settings(read_json(path), PredictionPart, str(path))) for path in parts]
    first_path, first = read[0]
    if first.asked.get("manifest") != sha256(manifest):
        raise GapinitError(
            f"{first_path}: not answers to {manifest}. Delete it and run `gapinit predict` again."
        )
    answers: dict[int, str] = {}
    for path, part in read:
        if part.asked != first.asked or part.shard[1] != first.shard[1]:
            raise GapinitError(
                f"{path} and {first_path}: not parts of the same predictions (different inputs or "
                "numbers of parts). Delete them and run `gapinit predict` again."
            )
        answers |= part.answers
    data = read_manifest(manifest)
    samples = data.split(first.asked["split"])
    if set(answers) != set(range(len(samples))):
        found = ", ".join("{}/{}".format(*part.shard) for _, part in read)
        raise GapinitError(
            f"{first_path}: expected each of {first.shard[1]} parts once, with {len(samples)} "
            f"answers; found {found}, with {len(answers)} answers"
        )
    write_predictions(output, data, samples, [answers[index] for index in range(len(samples))])


def write_predictions(
    output: Path, data: Manifest, samples: Sequence[Any], answers: Sequence[str]
) -> None:
    """Write answers to samples in the benchmark's format.

    Captions: COCO's result format. VQAv2 and OK-VQA: a list of {question_id, answer}. POPE: JSON
    lines of {question_id, category, question, answer}.
    """

    def entry(sample: Any, answer: str) -> dict[str, Any]:
        if data.kind == "captions":
            return {"image_id": sample.image_id, "caption": answer}
        asked = (
            {"category": sample.category, "question": sample.text} if data.kind == "pope" else {}
        )
        return {"question_id": sample.question_id, **asked, "answer": answer}

    entries = [entry(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
    if data.kind == "pope":
        write_lines(output, entries)
    else:
        write_json(output, entries)
