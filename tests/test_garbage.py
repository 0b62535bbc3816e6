"""Numerical garbage: a message, or a finite and right number; never NaN without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gapinit.artifacts.artifacts import read_json
from gapinit.backbones import load_backbone
from gapinit.errors import GapinitError
from gapinit.gap.spot import spot_gap
from gapinit.gap.vector import gap_vector

from .small_backbone import SmallWorld, small_world

NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e-45, 1e30, 3e38, np.nan, np.inf, -np.inf]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def finite(*values: object) -> bool:
    return all(bool(np.isfinite(np.asarray(value, dtype=np.float64)).all()) for value in values)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    states=arrays(np.float32, st.tuples(st.integers(2, 9), st.just(3)), elements=NUMBERS),
    vision=st.sampled_from(["same", "zero", "reversed", "shifted"]),
    neighbours=st.integers(1, 12),
)
def test_any_states_give_a_finite_gap_or_a_message(
    states: np.ndarray, vision: str, neighbours: int
) -> None:
    other = {
        "same": states,
        "zero": np.zeros_like(states),
        "reversed": states[::-1].copy(),
        "shifted": states + np.float32(1.0),
    }[vision]
    with np.errstate(all="ignore"):
        try:
            found = gap_vector(states, other, neighbours=neighbours)
        except GapinitError as error:
            assert str(error)
        else:
            assert finite(found) and found.shape == (3,)


@settings(max_examples=60)
@given(value=NUMBERS, number=st.integers(2, 12), neighbours=st.integers(1, 12))
def test_identical_samples_are_ties_and_no_trouble(
    value: float, number: int, neighbours: int
) -> None:
    text = np.full((number, 4), value, np.float32)
    vision = np.full((number, 4), 2.0, np.float32)
    with np.errstate(all="ignore"):
        try:
            spot = spot_gap(text, vision, neighbours=neighbours)
        except GapinitError as error:
            assert str(error)
            return
    assert neighbours < number
    assert finite(spot.score, spot.per_sample, spot.weights)
    # Every gap is the same, and so is every mean of some of them.
    assert spot.geometric == pytest.approx(np.zeros(number), abs=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return small_world(tmp_path_factory.getbasetemp())


def test_a_tokenizer_of_another_model_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.backbone, tmp_path / "backbone"))
    tokenizer = read_json(folder / "tokenizer.json")
    tokens = tokenizer["model"]["vocab"]
    tokens |= {f"new{n}": len(tokens) + n for n in range(5000)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(GapinitError, match="belong to different models"):
        load_backbone(folder)


def test_the_same_call_gives_the_same_bytes_and_two_threads_nearly_the_same(
    world: SmallWorld, tmp_path: Path
) -> None:
    """Tolerance across thread counts: 1e-5 of each weight's scale, since sums are ordered anew."""
    import torch
    from safetensors.torch import load_file

    weights = "adapter/adapter_model.safetensors"
    first = world.train(tmp_path / "first") / weights
    second = world.train(tmp_path / "second") / weights
    assert first.read_bytes() == second.read_bytes()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        other = world.train(tmp_path / "other") / weights
    finally:
        torch.set_num_threads(threads)
    one, two = load_file(first), load_file(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        scale = float(value.abs().max()) or 1.0
        assert float((value - two[name]).abs().max()) <= 1e-5 * scale, name
