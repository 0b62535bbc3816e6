"""Dispersion and members by products alone: against every distance measured one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gapinit.neighbourhoods as module
from gapinit.neighbourhoods import neighbourhoods
from gapinit.neighbours import search

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
    monkeypatch.setattr("gapinit.neighbours.BLOCK_ENTRIES", block)
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
    parts = [generator.standard_normal((400, 500)).astype(np.float32) for _ in range(2)]
    neighbourhoods(parts, (0, 1), 8)
    assert sum(measured) < 0.5 * 400


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
