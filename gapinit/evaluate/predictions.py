"""Predictions that several jobs make: each answers part of the batches, and one puts them together.

The batches are those of one job, so the answers are, too. A part is JSON: which one it is, what was
asked, and the answers by the place of their sample in the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapinit.artifacts.artifacts import read_json, sha256, write_json
from gapinit.data.manifest import Manifest, read_manifest
from gapinit.data.references import write_lines
from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from gapinit.artifacts.shards import Shard

KIND = "part of predictions"


def write_part(
    output: Path, part: Shard, asked: Mapping[str, Any], answers: Mapping[int, str]
) -> None:
    """Write a part: some of the answers, by place."""
    content = {
        "kind": KIND,
        "shard": [part.index, part.count],
        "asked": dict(asked),
        "answers": {str(index): answers[index] for index in sorted(answers)},
    }
    write_json(output, content)


def gather_predictions(manifest: Path, parts: Sequence[Path], output: Path) -> None:
    """Write the predictions whose parts are given, as one job would have written them.

    Raises GapinitError for a file that is no part, or a set that is not complete or not of one.
    """

    read = [(path, _read(path)) for path in parts]
    first_path, first = read[0]
    if first["asked"].get("manifest") != sha256(manifest):
        raise GapinitError(
            f"{first_path}: answers to another dataset than {manifest}. Delete it and run `gapinit "
            "predict` again."
        )
    answers: dict[int, str] = {}
    for path, part in read:
        if part["asked"] != first["asked"] or part["shard"][1] != first["shard"][1]:
            raise GapinitError(
                f"{path} and {first_path}: not parts of the same predictions (other inputs, or "
                "another number of parts). Delete them and run `gapinit predict` again."
            )
        answers |= {int(index): said for index, said in part["answers"].items()}
    data = read_manifest(manifest)
    samples = data.split(first["asked"]["split"])
    count = first["shard"][1]
    indices = sorted(part["shard"][0] for _, part in read)
    if indices != list(range(1, count + 1)) or set(answers) != set(range(len(samples))):
        found = ", ".join(f"{index}/{count}" for index in indices)
        raise GapinitError(
            f"{first_path}: expected each of {count} parts once, with all answers of "
            f"{len(samples)} samples; found {found}, with {len(answers)}"
        )
    write_predictions(output, data, samples, [answers[index] for index in range(len(samples))])


def write_predictions(
    output: Path, data: Manifest, samples: Sequence[Any], answers: Sequence[str]
) -> None:
    """Write the answers to samples in the benchmark's own format."""
    pairs = list(zip(samples, answers, strict=True))
    if data.kind == "captions":
        write_json(output, [{"image_id": item.image_id, "caption": said} for item, said in pairs])
    elif data.kind == "vqa":
        write_json(
            output, [{"question_id": item.question_id, "answer": said} for item, said in pairs]
        )
    else:
        write_lines(
            output,
            [
                {
                    "question_id": item.question_id,
                    "category": item.category,
                    "question": item.text,
                    "answer": said,
                }
                for item, said in pairs
            ],
        )


def _read(path: Path) -> Any:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND or not _is_whole(content):
        raise GapinitError(
            f"{path}: not a whole {KIND}, expected what `gapinit predict --shard` writes. Delete "
            "it and run that again."
        )
    return content


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Return whether a part has all that is read of it, each of its type."""
    asked, shard, answers = (content.get(key) for key in ("asked", "shard", "answers"))
    return (
        isinstance(asked, dict)
        and isinstance(asked.get("split"), str)
        and isinstance(shard, list)
        and [type(number) for number in shard] == [int, int]
        and isinstance(answers, dict)
        and all(index.isdecimal() and isinstance(it, str) for index, it in answers.items())
    )
