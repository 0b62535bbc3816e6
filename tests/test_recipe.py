"""A recipe file: the keys of `training` and `lora`, checked, and what a run's factors override."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapinit.config.recipe import ELSEWHERE, NUMBERLESS, Recipe
from gapinit.config.runs import Run
from gapinit.config.yaml_files import read_settings, read_yaml
from gapinit.errors import GapinitError
from gapinit.workflow.plan import make_plan

CONFIG = Path(__file__).parent.parent / "config"


def recipe_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_two_keys_are_enough_and_yaml_reads_json(tmp_path: Path) -> None:
    expected = Recipe(learning_rate=1e-5, dropout=0.5)
    for text in ("learning_rate: 1e-5\ndropout: 0.5\n", '{"learning_rate": 1e-5, "dropout": 0.5}'):
        assert read_settings(recipe_file(tmp_path, text), Recipe) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1e-5", r"recipe.yaml: unknown key 'learning_rat' \(did you mean"),
        ("batch_size: 0", r"recipe.yaml: key 'batch_size': .* found 0"),
        ("dropout: 1.0", r"recipe.yaml: key 'dropout': .* found 1.0"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(GapinitError, match=message):
        read_settings(recipe_file(tmp_path, text), Recipe)


def test_a_runs_factors_stand_before_the_file() -> None:
    run = Run("mini", "scenes", "random-b", 1, "naive", epochs=3, seed=1)
    assert Recipe(epochs=5, dropout=0.3).of(run) == Recipe(epochs=3, dropout=0.3)


def test_the_plan_gives_a_backbones_recipe() -> None:
    """Every key of the two models reaches training, or is one that is read elsewhere."""
    content = read_yaml(CONFIG / "default.yaml")
    content["training"] |= {"group_by_length": True}
    content["lora"] |= {"dropout": 0.25}
    keys = make_plan(content, CONFIG, []).recipe("mini-blip2")
    assert set(keys) == set(Recipe.model_fields) - ELSEWHERE - NUMBERLESS
    assert keys["group_by_length"] is True and keys["dropout"] == 0.25
