"""Layer choice: naive, gap-guided, all."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapinit.artifacts.artifacts import create_hdf5
from gapinit.errors import GapinitError
from gapinit.gap.layers import read_layers, select_layers, write_layers

SCORE = [9.0, 8.0, 1.0, 5.0, 2.0, 5.0, 3.0, 4.0]


def test_naive_takes_the_last_whatever_the_score() -> None:
    assert select_layers(SCORE, "naive", 3, 2) == [5, 6, 7]
    assert select_layers(SCORE, "naive", 8, 2) == list(range(8))


def test_gg_safe_takes_the_highest_scores_above_the_excluded() -> None:
    assert select_layers(SCORE, "gg-safe", 3, 0) == [0, 1, 3]
    # The two highest scores are at the bottom, and are left alone.
    assert select_layers(SCORE, "gg-safe", 3, 2) == [3, 5, 7]


def test_ties_go_to_the_lower_layer() -> None:
    assert select_layers(SCORE, "gg-safe", 1, 2) == [3]
    assert select_layers([1.0] * 6, "gg-safe", 2, 1) == [1, 2]


def test_all_takes_every_layer() -> None:
    assert select_layers(SCORE, "all", 99, 99) == list(range(8))


@given(
    score=st.lists(st.floats(0, 100), min_size=2, max_size=8),
    data=st.data(),
)
def test_no_other_choice_scores_higher(score: list[float], data: st.DataObject) -> None:
    excluded = data.draw(st.integers(0, len(score) - 1))
    k = data.draw(st.integers(1, len(score) - excluded))
    chosen = select_layers(score, "gg-safe", k, excluded)
    assert chosen == sorted(set(chosen)) and len(chosen) == k and chosen[0] >= excluded
    best = max(
        math.fsum(score[layer] for layer in layers)
        for layers in combinations(range(excluded, len(score)), k)
    )
    assert math.fsum(score[layer] for layer in chosen) == best


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SCORE, "naive", 9, 0), "9 layers asked for, but the decoder has 8"),
        ((SCORE, "gg-safe", 7, 2), "7 layers asked for, but without the bottom 2.* has 6"),
        ((SCORE, "gg-safe", 1, 99), "without the bottom 99 the decoder has 0"),
        ((SCORE, "naive", 0, 0), "num_layers: expected a whole number of at least 1, found 0"),
        ((SCORE, "gg-safe", 1, -1), "exclude_bottom: expected a whole number"),
        ((SCORE, "top", 1, 0), "layers: expected one of naive, gg-safe, all, found 'top'"),
        (([1.0, math.nan], "gg-safe", 1, 0), "layer 1 has the score nan"),
    ],
)
def test_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(GapinitError, match=message):
        select_layers(*arguments)


def test_the_file_holds_every_strategy(tmp_path: Path) -> None:
    with create_hdf5(tmp_path / "gap.h5", "gap", {}) as file:
        file["score"] = np.array(SCORE)
    write_layers(tmp_path / "gap.h5", tmp_path / "layers.json", 3, 2)
    assert json.loads((tmp_path / "layers.json").read_text()) == {
        "naive": [5, 6, 7],
        "gg-safe": [3, 5, 7],
        "all": list(range(8)),
        "all-vision": list(range(8)),
        "num_layers": 3,
        "exclude_bottom": 2,
        "score": SCORE,
    }
    with pytest.raises(GapinitError, match="gap.h5: num_layers"):
        write_layers(tmp_path / "gap.h5", tmp_path / "other.json", 7, 2)
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize(
    "content",
    [[], {}, {"all": [1]}, {"naive": []}, {"naive": 3}, {"naive": [-1]}, {"naive": [True]},
     {"naive": ["2"]}],
)  # fmt: skip
def test_a_file_without_the_layers_of_the_strategy_is_named(
    tmp_path: Path, content: object
) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(content))
    with pytest.raises(GapinitError, match=r"layers.json: .*'naive'.*gapinit layers"):
        read_layers(path, "naive")


def test_the_layers_of_a_strategy_are_read(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps({"naive": [5, 6], "all": [0], "score": [1.0] * 7}))
    assert read_layers(path, "naive") == [5, 6]
