"""What a backbone's file overrides: read, merged, checked, and kept as it is written down."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.utils import update_config

from gapinit.config.backbone_settings import BackboneSettings, read_recipe
from gapinit.config.configuration import Config
from gapinit.config.recipe import Layers, Training
from gapinit.config.yaml_files import check_settings, read_settings, read_yaml
from gapinit.errors import GapinitError
from gapinit.workflow.plan import Plan, make_plan

OWN: dict[str, Any] = {
    "layers": {"num_layers": 2, "exclude_bottom": 0},
    "training": {"batch_size": 4, "gradient_accumulation": 4, "epochs": 3, "max_caption_tokens": 9},
    "decoding": {"batch_size": 7, "max_new_tokens": 5},
    "resources": {"mem_mb": 48000, "gpu_mem_mb": 70000},
    "decoder_layers": 3,
}
MAIN, OTHER = "mini-blip2-test", "mini-qwen2-vl-test"


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """Return a copy of `config/`, to be changed."""
    return Path(shutil.copytree(repository / "config", tmp_path / "config"))


def plan(folder: Path, **changes: Any) -> Plan:
    """Plan the tests' configuration; keyword arguments go to the other backbone's file."""
    path = folder / "backbones" / f"{OTHER}.yaml"
    head = {"name": OTHER, "family": "mini-qwen2-vl", "pretraining": "scenes-test-pretraining"}
    write(path, head | changes)
    sources = [folder / "default.yaml", folder / "test.yaml"]
    content = copy.deepcopy(read_yaml(sources[0]))
    update_config(content, read_yaml(sources[1]))
    return make_plan(content, folder, sources)


def test_only_the_keys_that_a_file_sets_override(folder: Path) -> None:
    made = plan(folder, **OWN)
    mine, theirs = made.config.training_of(OTHER), made.config.training_of(MAIN)
    assert theirs == made.config.training
    assert (mine.batch_size, mine.gradient_accumulation, mine.epochs) == (4, 4, 3)
    assert mine.learning_rate == theirs.learning_rate != Training().learning_rate
    assert made.config.layers_of(OTHER) == Layers(num_layers=2)
    assert made.config.layers_of(MAIN) == Layers(num_layers=1, exclude_bottom=1)
    without_bottom = plan(folder, layers={"num_layers": 2}).config
    assert without_bottom.layers_of(OTHER) == Layers(num_layers=2, exclude_bottom=1)
    epochs = {run.backbone: run.epochs for run in made.runs("test-backbones")}
    assert epochs == {OTHER: 3}
    decoding = made.config.decoding_of(OTHER)
    assert (decoding.batch_size, decoding.num_beams) == (7, made.config.decoding.num_beams)
    assert made.max_tokens("scenes-test", OTHER) == 9
    assert made.max_new_tokens("scenes-test", OTHER) == 5
    assert made.max_tokens("scenes-test", MAIN) == made.config.training.max_caption_tokens


def test_resources_are_the_backbones_or_the_rules(folder: Path) -> None:
    made = plan(folder, **OWN)
    assert made.resource(OTHER, "mem_mb", 3000) == 48000
    assert made.resource(OTHER, "runtime", 60) == 60
    assert made.resource(MAIN, "mem_mb", 3000) == 3000
    assert made.resource(MAIN, "gpu_mem_mb", None) is None


def test_a_metric_of_one_backbones_table_is_not_computed_for_the_others(folder: Path) -> None:
    table = folder / "experiments" / "test-backbones.yaml"
    table.write_text(table.read_text().replace("metrics: [CIDEr]", "metrics: [CIDEr, METEOR]"))
    made = plan(folder)
    scorers = {run.backbone: made.scorers([run], "scenes-test") for run in made.runs()}
    assert scorers[OTHER] == "bleu,cider,meteor,rouge"
    assert scorers[MAIN] == "bleu,cider,rouge"


def test_the_written_configuration_keeps_what_a_backbone_overrides(folder: Path) -> None:
    made = plan(folder, **OWN)
    again = check_settings(json.loads(made.as_json()), Config, "test")
    assert again == made.config
    for name in (MAIN, OTHER):
        assert again.training_of(name) == made.config.training_of(name)
        assert again.layers_of(name) == made.config.layers_of(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"training": {"learing_rate": 1}}, "unknown key 'training.learing_rate' (did you mean"),
        ({"training": {"batch_size": 0}}, "key 'training.batch_size': input should be greater"),
        ({"layers": {"exclude_bottom": 2}}, "key 'layers.num_layers' is missing"),
        ({"resources": {"mem_mb": "much"}}, "key 'resources.mem_mb'"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_message_that_names_the_backbones_file(
    folder: Path, content: dict[str, Any], said: str
) -> None:
    with pytest.raises(GapinitError) as error:
        plan(folder, **content)
    assert str(error.value).startswith(f"{folder}/backbones/{OTHER}.yaml: ")
    assert said in str(error.value)


def test_too_many_layers_are_told_of_any_backbone_that_is_used(folder: Path) -> None:
    with pytest.raises(GapinitError) as error:
        plan(folder, **OWN | {"decoder_layers": 1})
    assert str(error.value).startswith(
        f"{folder}/backbones/{OTHER}.yaml: key 'layers.num_layers': 2 layers, but backbone "
        f"'{OTHER}' has 1"
    )
    # Without layers of its own, it is the configuration that asks for too many.
    with pytest.raises(GapinitError) as error:
        plan(folder, decoder_layers=1)
    assert str(error.value).startswith(
        f"{folder}/test.yaml: key 'layers.num_layers': 1 layers, but backbone '{OTHER}' has 1, of "
        "which exclude_bottom removes 1"
    )


def test_a_familys_own_keys_are_left_to_the_family(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", {"name": "mine", "family": "f", "width": 5, **OWN})
    recipe = read_recipe(path)
    assert recipe.decoder_layers == 3 and recipe.training is not None

    class Mine(BackboneSettings):
        width: int

    assert read_settings(path, Mine).training == recipe.training
    with pytest.raises(GapinitError, match=r"mine.yaml: unknown key 'width'"):
        read_settings(path, BackboneSettings)


def test_every_backbone_file_of_the_repository_can_be_read(repository: Path) -> None:
    for path in (repository / "config" / "backbones").glob("*.yaml"):
        recipe = read_recipe(path)
        assert read_yaml(path)["name"] == path.stem
        assert recipe.decoder_layers, path


def test_a_number_that_is_none_is_told_with_its_file(repository: Path, tmp_path: Path) -> None:
    """NaN equals nothing, itself included: its file is found by how it reads."""
    config = repository / "config"
    content = read_yaml(config / "default.yaml") | {"noise": math.nan}
    (tmp_path / "default.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(GapinitError, match=r"default\.yaml: unknown key 'noise'"):
        make_plan(content, config, [tmp_path / "default.yaml"])


def test_a_dataset_that_is_not_configured_is_told_before_its_rows(
    repository: Path, tmp_path: Path
) -> None:
    config = repository / "config"
    content = read_yaml(config / "default.yaml")
    content["datasets"]["vqa"] = None
    (tmp_path / "default.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        GapinitError, match=r"default\.yaml: key 'datasets\.vqa': no dataset.* which experiment"
    ):
        make_plan(content, config, [tmp_path / "default.yaml"])
