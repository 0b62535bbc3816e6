"""Dispersion and members by products alone: against every distance measured one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gapinit.gap.neighbourhoods as module
from gapinit.gap.neighbourhoods import _sides, neighbourhoods
from gapinit.gap.neighbours import exact_squared, near_squared, search

SPACES = [(0,), (1,), (0, 1)]


def exact(parts: list[np.ndarray], space: tuple[int, ...], k: int) -> tuple[list, np.ndarray]:
    *single, joint = search([part.astype(np.float64) for part in parts], [(0,), (1,), space], k)
    return [found.distances.mean(axis=1) for found in single], np.sort(joint.indices)


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("block", [7 * 200, 1 << 20])
def test_equals_what_is_measured_one_by_one(
    space: tuple[int, ...],
    block: int,
    device: torch.device | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gapinit.gap.neighbours.BLOCK_ENTRIES", block)
    generator = np.random.default_rng(0)
    parts = [
        (generator.standard_normal((200, width)) + 5).astype(np.float32) for width in (300, 200)
    ]
    found = neighbourhoods(parts, space, 6, device)
    dispersion, members = exact(parts, space, 6)
    for mine, true in zip(found.dispersion, dispersion, strict=True):
        np.testing.assert_allclose(mine, true, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(found.members), members)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 30), clusters=st.integers(1, 40))
def test_clusters_duplicates_and_ties(seed: int, k: int, clusters: int) -> None:
    """Where a product has lost all digits, differences decide; ties go to the lower index."""
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(2):
        centres = generator.integers(-300, 300, (clusters, 3))
        points = centres[generator.integers(0, clusters, 300)] + generator.integers(0, 2, (300, 3))
        parts.append(points.astype(np.float32))
    found = neighbourhoods(parts, (0, 1), k)
    dispersion, members = exact(parts, (0, 1), k)
    for mine, true in zip(found.dispersion, dispersion, strict=True):
        np.testing.assert_allclose(mine, true, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(np.sort(found.members), members)


def test_products_decide_most(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    measure = module.exact_squared

    def counting(parts: list, row: np.ndarray, column: np.ndarray, scale: float) -> np.ndarray:
        measured.append(len(row))
        return measure(parts, row, column, scale)

    monkeypatch.setattr(module, "exact_squared", counting)
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((400, 512)).astype(np.float32) for _ in range(2)]
    neighbourhoods(parts, (0, 1), 8)
    assert sum(measured) < 0.02 * 400


@pytest.mark.parametrize("width", [1, 63, 64, 2560])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_error_of_a_near_distance_is_bounded(width: int, offset: float) -> None:
    generator = np.random.default_rng(width)
    points = (generator.standard_normal((60, width)) + offset).astype(np.float32)
    points[1] = points[0]
    row, column = (index.ravel() for index in np.indices((60, 60)))
    value, error = near_squared([points, points], row, column)
    true = exact_squared([points, points], row, column, 1.0)
    assert np.all(np.abs(value - true) <= error)
    assert np.all(error <= (width // math.gcd(width, 64) + 6) * 2**-24 * true + 1e-30)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5), spread=st.floats(0, 0.5))
def test_sides_are_right_wherever_the_true_values_lie(seed: int, count: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    row = np.sort(
        np.concatenate([np.repeat(np.arange(6), count + 1), generator.integers(0, 6, 20)])
    )
    true = generator.integers(1, 6, len(row)).astype(np.float64)  # with ties
    error = generator.uniform(0, 2 * spread, len(row))
    value = true + error * generator.uniform(-1, 1, len(row))
    near, far, either = _sides(row, value, error, count)
    assert np.all(near.astype(int) + far + either == 1)
    for line in range(6):
        mine = np.flatnonzero(row == line)
        ranked = mine[np.argsort(true[mine], kind="stable")]
        assert set(mine[near[mine]]) <= set(ranked[:count])
        assert not set(mine[far[mine]]) & set(ranked[:count])


def test_offset_and_extreme_sizes_keep_the_members() -> None:
    """A common offset or a common factor changes no neighbour, up to what float32 still holds."""
    generator = np.random.default_rng(1)
    for offset, factor in [(1e5, 1.0), (0.0, 1e37), (0.0, 1e-30), (1e9, 1e5)]:
        parts = [
            (generator.standard_normal((150, 40)) * factor + offset).astype(np.float32)
            for _ in range(2)
        ]
        found = neighbourhoods(parts, (0, 1), 5)
        np.testing.assert_array_equal(np.sort(found.members), exact(parts, (0, 1), 5)[1])


def test_double_precision_is_measured_one_by_one() -> None:
    parts = [np.random.default_rng(seed).standard_normal((300, 40)) for seed in (0, 1)]
    found = neighbourhoods(parts, (0, 1), 5)
    for mine, true in zip(found.dispersion, exact(parts, (0, 1), 5)[0], strict=True):
        np.testing.assert_array_equal(mine, true)


@pytest.mark.parametrize("given", ["highest", "high"])
def test_products_on_a_device_are_of_whole_single_precision(given: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(given)
        parts = [np.random.default_rng(3).standard_normal((40, 9)).astype(np.float32)] * 2
        neighbourhoods(parts, (0, 1), 2, torch.device("cpu"))
        assert torch.get_float32_matmul_precision() == given
    finally:
        torch.set_float32_matmul_precision(before)
