"""Configuration files: each mistake is one message with file and key, and never a traceback."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gapinit.config.configuration import Config, load_config
from gapinit.config.yaml_files import Settings, check_settings, read_settings, read_yaml
from gapinit.errors import GapinitError

ORIGIN = "config/mine.yaml"
VALID: dict[str, Any] = {
    "name": "mine",
    "backbone": "mini",
    "datasets": {"in-domain": "scenes", "ood": "notes"},
    "seeds": [1, 2, 3],
    "calibration": {"size": 64, "sizes": [16, 64]},
    "layers": {"num_layers": 6},
    "training": {"learning_rate": 1e-3},
    "experiments": ["table2"],
}


class Row(Settings):
    id: str
    rank: int = 1


class Table(Settings):
    title: str
    rows: list[Row] = []
    best: Row | None = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a `config/` folder with one backbone, two datasets and one experiment."""
    for kind, name, text in (
        ("backbones", "mini", "name: mini"),
        ("datasets", "scenes", "generator: scenes"),
        ("datasets", "notes", "generator: scenes"),
        ("experiments", "table2", "title: Table 2"),
    ):
        path = tmp_path / "config" / kind / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "config"


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the valid configuration with one value set, at a path such as 'layers.num_layers'."""
    content = copy.deepcopy(VALID)
    at = content
    *parents, last = path.split(".")
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    return content


def message_of(content: dict[str, Any], folder: Path) -> str:
    with pytest.raises(GapinitError) as caught:
        load_config(content, folder, ORIGIN)
    return str(caught.value)


def test_a_valid_configuration_is_read_as_written(folder):
    # YAML 1.1 takes a number without a point for text.
    content = changed("training.learning_rate", yaml.safe_load("2e-4"))
    assert isinstance(content["training"]["learning_rate"], str)
    config = load_config(content, folder, ORIGIN)
    assert (config.datasets.of("in-domain"), config.datasets.of("ood")) == ("scenes", "notes")
    assert (config.training.learning_rate, config.training.scheduler) == (2e-4, "cosine")
    with pytest.raises(ValueError, match="frozen"):
        config.seeds = [7]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("bakbone", "mini", ["unknown key 'bakbone'", "did you mean 'backbone'?"]),
        ("training.zzz", 1, ["unknown key 'training.zzz'", "expected one of", "batch_size"]),
        ("datasets.in_domain", "scenes", ["'datasets.in_domain'", "did you mean 'in-domain'?"]),
        ("layers.num_layers", "six", ["'layers.num_layers'", "valid integer", "found 'six'"]),
        ("layers.num_layers", 0, ["'layers.num_layers'", "greater than 0", "found 0"]),
        ("layers.num_layers", True, ["'layers.num_layers'", "boolean", "found True"]),
        ("seeds", 42, ["key 'seeds'", "list", "found 42"]),
        ("seeds", [], ["key 'seeds'", "at least 1", "found []"]),
        ("lora.dropout", 1.0, ["'lora.dropout'", "less than 1", "found 1.0"]),
        ("training.learning_rate", math.inf, ["'training.learning_rate'", "finite", "inf"]),
        ("training.scheduler", "cosin", ["'training.scheduler'", "'cosine'", "found 'cosin'"]),
        ("backbone", "blip3", ["key 'backbone'", "unknown name 'blip3'", "mini"]),
        ("backbone", "a b; rm -r .", ["key 'backbone'", "found 'a b; rm -r .'"]),
        ("backbones.large", "blip3", ["key 'backbones.large'", "unknown name 'blip3'", "mini"]),
        ("recipes", {}, ["key 'recipes'", "not allowed in a configuration", "backbones/NAME.yaml"]),
        ("datasets.in-domain", "coco", ["'datasets.in-domain'", "'coco'", "notes, scenes"]),
        ("experiments", ["table2", "table99"], ["'experiments'", "'table99'", "table2"]),
        ("calibration.sizes", [4, 64], ["4 pairs", "10 neighbours", "calibration.sizes"]),
    ],
)
def test_a_mistake_is_named_with_what_was_expected_and_found(folder, path, value, said):
    message = message_of(changed(path, value), folder)
    for part in [ORIGIN, *said]:
        assert part in message


def test_every_mistake_is_named_at_once(folder):
    content = changed("layers.num_layers", 0) | {"sedes": [1]}
    del content["backbone"]
    message = message_of(content, folder)
    for part in ("key 'layers.num_layers'", "unknown key 'sedes'", "key 'backbone' is missing"):
        assert part in message
    assert all(line.startswith(f"{ORIGIN}: ") for line in message.splitlines())


def test_a_part_that_is_not_configured_is_an_error_when_asked_for(folder):
    content = changed("datasets", {"in-domain": "scenes"})
    with pytest.raises(GapinitError, match=r"datasets\.ood"):
        load_config(content, folder, ORIGIN).datasets.of("ood")


def test_a_merged_configuration_names_the_file_of_each_key(folder):
    content = changed("layers.num_layers", 0) | {"backbone": "blip3"}

    def origin(key: Sequence[Any]) -> str:
        return "base.yaml" if key[0] == "layers" else "mine.yaml"

    with pytest.raises(GapinitError, match=r"^base\.yaml: key 'layers\.num_layers'"):
        load_config(content, folder, origin)
    content["layers"]["num_layers"] = 6
    with pytest.raises(GapinitError, match=r"^mine\.yaml: key 'backbone'"):
        load_config(content, folder, origin)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"title": "t", "rows": [{"id": "a"}, {"id": "b", "rnk": 8}]}, ["'rows.1.rnk'", "'rank'?"]),
        ({"title": "t", "best": {"id": "a", "rnk": 8}}, ["'best.rnk'", "'rank'?"]),
        ({"title": "t", "rows": [{"rank": 8}]}, ["key 'rows.0.id' is missing"]),
    ],
)
def test_a_key_inside_a_list_or_an_optional_part_is_named_with_its_place(content, said):
    with pytest.raises(GapinitError) as caught:
        check_settings(content, Table, "table.yaml")
    for part in ["table.yaml", *said]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mapping"),
        ("just words\n", "mapping"),
        ("a: [1\n", "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "repeated key 'a'"),
        ("rows:\n- {id: a, id: b}\n", "repeated key 'id'"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, text, said):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(GapinitError) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_merge_key_may_stand_beside_a_key_that_it_overrides(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("title: t\nbest: &base {id: a, rank: 8}\nrows: [{<<: *base, id: b}]\n")
    assert read_settings(path, Table).rows == [Row(id="b", rank=8)]


@pytest.mark.parametrize("name", ["none.yaml", "latin.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    with pytest.raises(GapinitError, match=re.escape(str(tmp_path / name))):
        read_yaml(tmp_path / name)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    key=st.sampled_from(
        [*VALID, "backbones", "recipes", "gap", "lora", "decoding", "results", "x"]
    ),
    value=json_like,
)
def test_no_value_under_any_key_ends_in_a_traceback(key, value):
    try:
        config = check_settings({**VALID, key: value}, Config, ORIGIN)
    except GapinitError as error:
        assert str(error).startswith(f"{ORIGIN}: ")
    else:
        assert key != "x" and isinstance(config, Config)
