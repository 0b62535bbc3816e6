"""Score files and run records: lined up by image and seed, and checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gapinit.config.runs import Run, TableRow
from gapinit.errors import GapinitError
from gapinit.tables.scores import RowScores, ScoreFolder, Scores, paired_differences

from .plain_json import write_json
from .score_world import MEANS, World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a world in which everything was scored."""
    made = make_world(tmp_path)
    made.fill(MEANS)
    return made


def test_a_missing_score_names_the_file_the_row_and_what_makes_it(world: World) -> None:
    path = world.evaluations / world.rows["gap"][1].path / "scenes.scores.json"
    path.unlink()
    with pytest.raises(GapinitError) as error:
        world.table()
    for part in (str(path), "table 'mine', row 'gap'", "5_evaluate.smk", "snakemake"):
        assert part in str(error.value)
    assert not world.output.exists()


def image(content: dict[str, Any], id_: int) -> None:
    content["per_sample"][0]["image_id"] = id_


DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "expected the 60 images of": lambda content: image(content, 999),
    "60 entries for 59 images": lambda content: image(
        content, content["per_sample"][1]["image_id"]
    ),
    "but the mean over 'per_sample' is": lambda content: content["metrics"].update(CIDEr=99.0),
    "metric 'Bleu_4' is missing, found: CIDEr": lambda content: content["metrics"].pop("Bleu_4"),
    "key 'per_sample': input should be a valid list": lambda it: it.update(per_sample={"CIDEr": 1}),
    "NaN is not a JSON number": lambda content: content["metrics"].update(Bleu_4=float("nan")),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_score_file_is_an_error_that_names_it(world: World, message: str) -> None:
    path = world.evaluations / world.rows["gap"][1].path / "scenes.scores.json"
    content = json.loads(path.read_text())
    DAMAGES[message](content)
    path.write_text(json.dumps(content))
    with pytest.raises(GapinitError) as error:
        world.table()
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


def test_the_record_of_another_run_is_refused(world: World) -> None:
    one, two = (world.runs / run.path / "run.json" for run in world.rows["gap"][:2])
    one.write_text(two.read_text())
    with pytest.raises(GapinitError, match="expected the record of the run") as error:
        world.table()
    assert str(error.value).startswith(str(one))
    one.unlink()
    with pytest.raises(GapinitError, match=r"4_train\.smk"):
        world.table()


@pytest.mark.parametrize(
    ("key", "value"), [("versions", 1.5), ("inputs", "x"), ("layers", 3), ("final_loss", "low")]
)
def test_a_record_of_wrong_types_is_refused(world: World, key: str, value: object) -> None:
    path = world.runs / world.rows["gap"][0].path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(GapinitError, match=rf"run\.json: key '{key}': input should be a valid"):
        world.table()


def test_pairs_are_found_by_seed_and_only_shared_seeds_count() -> None:
    def row(seeds: list[int | None], values: list[float]) -> RowScores:
        runs = tuple(Run("b", "d", "lora-kaiming", 1, "naive", 1, seed=seed) for seed in seeds)
        scores = [
            Scores(Path(), {"CIDEr": v}, "images", (1, 2), {"CIDEr": np.array([v - 1, v + 1])})
            for v in values
        ]
        return RowScores(TableRow(f"row{seeds}", "", None, runs), tuple(scores))

    first, second = row([1, 2, 3], [10, 20, 30]), row([4, 3, 1], [400, 3, 1])
    np.testing.assert_array_equal(paired_differences(first, second, "CIDEr"), [[9, 9], [27, 27]])
    untrained = row([None], [5])
    np.testing.assert_array_equal(
        paired_differences(first, untrained, "CIDEr"), [[5, 5], [15, 15], [25, 25]]
    )
    with pytest.raises(GapinitError, match="no seed in common"):
        paired_differences(first, row([8], [0]), "CIDEr")


def test_questions_are_lined_up_by_their_own_ids(tmp_path: Path) -> None:
    """VQAv2 and POPE have several questions about an image; POPE numbers each category anew."""
    runs = tuple(Run("b", "vqa", "lora-kaiming", 1, "naive", 1, seed=seed) for seed in (1, 2))
    accuracies = {1: [100.0, 0.0, 50.0], 2: [0.0, 0.0, 100.0]}
    for run in runs:
        values = accuracies[run.seed or 0]
        ids = [("random", 1), ("random", 2), ("popular", 1)]
        content = {
            "metrics": {"accuracy": 50.0 if run.seed == 1 else 100 / 3, "mean_f1": 70.0},
            "per_sample": [
                {"question_id": number, "category": category, "image_id": 5, "accuracy": value}
                for (category, number), value in zip(ids, values, strict=True)
            ][:: 1 if run.seed == 1 else -1],
        }
        write_json(tmp_path / run.path / "pope.scores.json", content)
    folder = ScoreFolder(tmp_path, tmp_path)
    scores = tuple(folder.scores(run, "pope", "a test") for run in runs)
    row = RowScores(TableRow("r", "", None, runs), scores)
    assert row.measured_on == "3 questions"
    np.testing.assert_array_equal(row.matrix("VQAv2_accuracy"), [[50, 100, 0], [100, 0, 0]])
    np.testing.assert_array_equal(row.matrix("POPE_F1"), [[70], [70]])
