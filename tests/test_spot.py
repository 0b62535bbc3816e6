"""SPOT-Gap and its neighbours against the paper's formulas written out, and scikit-learn."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gapinit.gap.neighbours as neighbours_module
from gapinit.errors import GapinitError
from gapinit.gap.neighbours import Neighbours, nearest
from gapinit.gap.spot import spot_gap


def pairs(seed: int, number: int = 40, width: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds of different shape and place, correlated pair by pair."""
    generator = np.random.default_rng(seed)
    vision = generator.standard_normal((number, width)) * np.linspace(0.5, 2, width)
    text = 0.6 * vision + generator.standard_normal((number, width)) + 1.5
    return text, vision


def neighbours_of(points: np.ndarray, k: int) -> Neighbours:
    return nearest([points], [(0,)], k)[0]


def naive_neighbours(points: list[list[float]], k: int) -> list[list[int]]:
    """Nearest other points by definition: every distance by math.dist, ties to the lower index."""
    found = []
    for i, point in enumerate(points):
        others = sorted((math.dist(point, other), j) for j, other in enumerate(points) if j != i)
        found.append([j for _, j in others[:k]])
    return found


def naive_spot(
    text: np.ndarray, vision: np.ndarray, k: int, sem: float, geom: float, space: str = "joint"
) -> tuple[float, list[float]]:
    """Appendix C, steps 1 to 4, with loops and Python floats only."""
    t, v = text.tolist(), vision.tolist()
    number = len(t)
    s_sem = [math.dist(t[i], v[i]) for i in range(number)]
    near_v, near_t = naive_neighbours(v, k), naive_neighbours(t, k)
    d_v = [sum(math.dist(v[i], v[j]) for j in near_v[i]) / k for i in range(number)]
    d_t = [sum(math.dist(t[i], t[j]) for j in near_t[i]) / k for i in range(number)]
    s_geom = [abs(d_t[i] - d_v[i]) for i in range(number)]
    place = {"joint": [a + b for a, b in zip(v, t, strict=True)], "vision": v, "text": t}[space]
    near = naive_neighbours(place, k)
    smoothed = [sum(sem * s_sem[j] + geom * s_geom[j] for j in near[i]) / k for i in range(number)]
    return sum(smoothed) / number, smoothed


@pytest.mark.parametrize("space", ["joint", "vision", "text"])
@pytest.mark.parametrize(("k", "sem", "geom"), [(1, 1.0, 1.0), (5, 0.3, 2.0), (39, 1.0, 0.0)])
def test_equals_the_formulas(space: str, k: int, sem: float, geom: float) -> None:
    text, vision = pairs(k)
    found = spot_gap(
        text, vision, neighbours=k, alpha_semantic=sem, alpha_geometric=geom, space=space
    )
    score, per_sample = naive_spot(text, vision, k, sem, geom, space)
    assert found.score == pytest.approx(score, rel=1e-12)
    np.testing.assert_allclose(found.per_sample, per_sample, rtol=1e-12)


def test_components() -> None:
    text, vision = pairs(3)
    found = spot_gap(text, vision, neighbours=4)
    np.testing.assert_allclose(found.semantic, np.linalg.norm(text - vision, axis=1), rtol=1e-13)
    alone = spot_gap(text, vision, neighbours=4, alpha_semantic=0.0)
    weighted = found.weights @ found.geometric
    assert alone.score == pytest.approx(weighted, rel=1e-12)
    assert found.weights.sum() == pytest.approx(1.0)


def test_a_pair_is_not_its_own_neighbour() -> None:
    # One far pair with a huge gap: it is nobody's neighbour, so it enters no smoothed value,
    # not even its own.
    text, vision = pairs(5)
    text[0] += 1e4
    found = spot_gap(text, vision, neighbours=3, alpha_geometric=0.0)
    assert found.semantic[0] > 1e4
    assert found.per_sample.max() < 100
    assert found.weights[0] == 0


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    number=st.integers(2, 25),
    width=st.integers(1, 9),
    data=st.data(),
)
def test_random_sizes(seed: int, number: int, width: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, number - 1))
    text, vision = pairs(seed, number, width)
    found = spot_gap(text, vision, neighbours=k)
    score, per_sample = naive_spot(text, vision, k, 1.0, 1.0)
    assert found.score == pytest.approx(score, rel=1e-11)
    np.testing.assert_allclose(found.per_sample, per_sample, rtol=1e-11)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 11), low=st.booleans())
def test_ties_go_to_the_lower_index(seed: int, k: int, low: bool) -> None:
    # Points of a small integer grid: many exact ties and duplicates.
    generator = np.random.default_rng(seed)
    points = generator.integers(0, 3, (12, 2)).astype(np.float32 if low else np.float64)
    assert neighbours_of(points, k).indices.tolist() == naive_neighbours(points.tolist(), k)


def test_identical_points() -> None:
    points = np.full((30, 4), 3.7, dtype=np.float32)
    found = neighbours_of(points, 3)
    assert not found.distances.any()
    assert found.indices[0].tolist() == [1, 2, 3]
    assert found.indices[9].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("offset", "spread"), [(0.0, 1.0), (1e4, 1e-2), (-1e4, 1e-1), (0.0, 1e-30), (0.0, 1e25)]
)
def test_neighbours_equal_scikit_learn(offset: float, spread: float, dtype: type) -> None:
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    points = (generator.standard_normal((300, 20)) * spread + offset).astype(dtype)
    found = neighbours_of(points, 7)
    # Its tree search measures true differences, unlike its brute force on matrix products.
    # Scaled, because it squares without a guard against overflow.
    scaled = (points.astype(np.float64) - offset) / spread
    peer = NearestNeighbors(n_neighbors=9, algorithm="kd_tree").fit(scaled)
    distances, indices = (part[:, 1:] for part in peer.kneighbors(scaled))
    np.testing.assert_allclose(found.distances, distances[:, :7] * spread, rtol=1e-9)
    # Single precision puts points at 1e4 on a grid, where some distances are equal.
    distinct = (np.diff(distances, axis=1) > 1e-9 * distances[:, 1:]).all(axis=1)
    assert distinct.mean() > 0.9
    np.testing.assert_array_equal(found.indices[distinct], indices[distinct, :7])


def test_tight_clusters_far_apart() -> None:
    # Within a cluster the squared distances are 1e-20 of the squared norms: products say nothing
    # there, even in double precision, and the differences have to decide.
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((4, 6)) * 1e7
    points = np.repeat(centres, 10, axis=0) + generator.standard_normal((40, 6)) * 1e-3
    found = neighbours_of(points, 9)
    assert found.indices.tolist() == naive_neighbours(points.tolist(), 9)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    text, vision = pairs(8, 50)
    whole = nearest([vision, text], [(0,), (1,), (0, 1)], 6)
    monkeypatch.setattr(neighbours_module, "BLOCK_ENTRIES", 130)
    monkeypatch.setattr(neighbours_module, "ROW_BLOCK_ENTRIES", 30)
    cut = nearest([vision, text], [(0,), (1,), (0, 1)], 6)
    for first, second in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(first.indices, second.indices)
        np.testing.assert_array_equal(first.distances, second.distances)


def test_memory_grows_with_the_pairs_and_not_their_square() -> None:
    def peak(number: int) -> int:
        text, vision = (part.astype(np.float32) for part in pairs(0, number, 8))
        tracemalloc.start()
        spot_gap(text, vision, neighbours=5)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    small, large = peak(1500), peak(3500)
    # 2000 more pairs of width 8: the square alone would be 10 M distances more, 80 MB.
    assert large - small < 12e6
    assert large < 80e6


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_scales_with_the_states(scale: float) -> None:
    text, vision = pairs(11)
    found, scaled = spot_gap(text, vision), spot_gap(scale * text, scale * vision)
    np.testing.assert_allclose(scaled.per_sample, scale * found.per_sample, rtol=1e-10)


def test_translation_and_rotation_leave_it_as_it_is() -> None:
    text, vision = pairs(12)
    found = spot_gap(text, vision)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))
    moved = spot_gap(text @ rotation + 3.0, vision @ rotation + 3.0)
    np.testing.assert_allclose(moved.per_sample, found.per_sample, rtol=1e-10)


def test_moving_one_modality_changes_only_the_semantic_part() -> None:
    text, vision = pairs(13)
    found, moved = spot_gap(text, vision), spot_gap(text + 100.0, vision)
    np.testing.assert_allclose(moved.geometric, found.geometric, rtol=1e-9, atol=1e-12)
    assert moved.score > found.score + 100


def test_permuting_the_pairs_permutes_the_result() -> None:
    text, vision = pairs(14)
    order = np.random.default_rng(0).permutation(len(text))
    found, moved = spot_gap(text, vision), spot_gap(text[order], vision[order])
    np.testing.assert_allclose(moved.per_sample, found.per_sample[order], rtol=1e-12)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_torch_tensors(name: str) -> None:
    import torch

    text, vision = (
        torch.tensor(part).to(getattr(torch, name)).requires_grad_() for part in pairs(16)
    )
    found = spot_gap(text, vision, neighbours=5)
    peer = spot_gap(text.detach().double().numpy(), vision.detach().double().numpy(), neighbours=5)
    assert isinstance(found.score, float)
    assert found.score == pytest.approx(peer.score, rel=1e-12)
    np.testing.assert_allclose(found.per_sample, peer.per_sample, rtol=1e-12)


def test_strided_views() -> None:
    text, vision = pairs(17)
    found = spot_gap(np.asfortranarray(text), np.repeat(vision, 2, axis=1)[:, ::2])
    assert found.score == pytest.approx(spot_gap(text, vision).score, rel=1e-12)


def test_numpy_input_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from gapinit.gap.spot import spot_gap;"
        "x = np.arange(24.0).reshape(12, 2); spot_gap(x * x, x, neighbours=3);"
        "assert not {'torch', 'pandas', 'scipy', 'h5py', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def with_bad_entry(value: float) -> np.ndarray:
    text = pairs(0)[0]
    text[13, 2] = value
    return text


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (np.zeros((40, 6)), {}, r"h_text has shape \(40, 6\) and h_vision \(40, 7\)"),
        (np.zeros(40), {}, r"h_text: expected a two-dimensional array.*\(40,\)"),
        (np.full((40, 7), "a"), {}, "h_text: expected real numbers"),
        (pairs(0)[0], {"neighbours": 40}, "40 neighbours.*at most 39"),
        (pairs(0)[0], {"neighbours": 0}, "neighbours: expected a whole number"),
        (pairs(0)[0], {"neighbours": 2.5}, "neighbours: expected a whole number"),
        (pairs(0)[0], {"neighbours": True}, "neighbours: expected a whole number"),
        (pairs(0)[0], {"alpha_semantic": -1.0}, "alpha_semantic: expected a finite number"),
        (pairs(0)[0], {"alpha_geometric": math.nan}, "alpha_geometric: expected a finite number"),
        (pairs(0)[0], {"space": "audio"}, "space: expected one of joint, vision, text"),
        (with_bad_entry(math.nan), {}, "h_text: sample 13 of 40 has a non-finite entry"),
        (with_bad_entry(-math.inf), {}, "h_text: sample 13 of 40 has a non-finite entry"),
        (with_bad_entry(-1e200), {}, "h_text: sample 13 of 40 has an entry that is too large"),
    ],
)
def test_errors(text: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(GapinitError, match=message):
        spot_gap(text, pairs(0)[1], **options)


def test_one_pair_is_an_error() -> None:
    with pytest.raises(GapinitError, match="at least 2 pairs"):
        spot_gap(np.ones((1, 3)), np.zeros((1, 3)), neighbours=1)
