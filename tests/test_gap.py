"""The gap vector: plain and smoothed means, invariances, errors."""

from __future__ import annotations

import numpy as np
import pytest

from gapinit.errors import GapinitError
from gapinit.gap.vector import gap_vector


def pairs(seed: int, number: int = 40, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    vision = generator.standard_normal((number, width)) * np.linspace(0.5, 2, width)
    # Skewed, so that some pairs are everybody's neighbours and others nobody's.
    text = 0.6 * vision + generator.exponential(1.0, (number, width)) + 0.5
    return text, vision


def test_plain_mean() -> None:
    text, vision = pairs(0)
    expected = [sum(row[c] for row in (text - vision).tolist()) / 40 for c in range(6)]
    gap = gap_vector(text, vision)
    assert gap.shape == (6,) and gap.dtype == np.float64
    np.testing.assert_allclose(gap, expected, rtol=1e-13)


@pytest.mark.parametrize("k", [1, 4, 39])
def test_smoothed_mean_by_definition(k: int) -> None:
    text, vision = pairs(1)
    joint = np.hstack([vision, text])
    smoothed = np.zeros((40, 6))
    for i in range(40):
        near = sorted((np.linalg.norm(joint[i] - joint[j]), j) for j in range(40) if j != i)[:k]
        for _, j in near:
            smoothed[i] += (text[j] - vision[j]) / k
    np.testing.assert_allclose(
        gap_vector(text, vision, neighbours=k), smoothed.mean(axis=0), rtol=1e-11
    )


def test_smoothed_mean_differs_where_neighbourhoods_are_not_symmetric() -> None:
    text, vision = pairs(2)
    plain, smoothed = gap_vector(text, vision), gap_vector(text, vision, neighbours=3)
    assert np.linalg.norm(plain - smoothed) > 0.02 * np.linalg.norm(plain)
    # With all others as neighbours every pair counts alike, and the two agree.
    np.testing.assert_allclose(gap_vector(text, vision, neighbours=39), plain, rtol=1e-12)


def test_shuffled_pairs_keep_the_plain_mean() -> None:
    text, vision = pairs(3)
    shuffled = vision[np.random.default_rng(0).permutation(40)]
    np.testing.assert_allclose(gap_vector(text, shuffled), gap_vector(text, vision), rtol=1e-12)
    smoothed = gap_vector(text, vision, neighbours=3)
    assert not np.allclose(gap_vector(text, shuffled, neighbours=3), smoothed, rtol=1e-3)


@pytest.mark.parametrize("neighbours", [None, 4])
def test_geometry_of_the_vector(neighbours: int | None) -> None:
    text, vision = pairs(4)
    gap = gap_vector(text, vision, neighbours=neighbours)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    for name, found, expected in [
        ("swap", gap_vector(vision, text, neighbours=neighbours), -gap),
        ("shift both", gap_vector(text + 9, vision + 9, neighbours=neighbours), gap),
        ("shift one", gap_vector(text + 9, vision, neighbours=neighbours), gap + 9),
        ("scale", gap_vector(3 * text, 3 * vision, neighbours=neighbours), 3 * gap),
        (
            "rotate",
            gap_vector(text @ rotation, vision @ rotation, neighbours=neighbours),
            gap @ rotation,
        ),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10, err_msg=name)


def test_offsets_cancel() -> None:
    # 1e4 is common to both modalities; the gap is 1e-3 and must keep its digits in float32.
    generator = np.random.default_rng(5)
    vision = (1e4 + generator.integers(0, 8, (500, 4)) / 1024).astype(np.float32)
    text = (vision.astype(np.float64) + 1 / 1024).astype(np.float32)
    np.testing.assert_array_equal(gap_vector(text, vision), np.full(4, 1 / 1024))


@pytest.mark.parametrize("neighbours", [None, 4])
@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
def test_torch_in_torch_out(name: str, neighbours: int | None) -> None:
    import torch

    text, vision = (torch.tensor(part).to(getattr(torch, name)) for part in pairs(6))
    gap = gap_vector(text, vision, neighbours=neighbours)
    assert isinstance(gap, torch.Tensor) and gap.dtype == torch.float64
    assert gap.device == text.device
    expected = gap_vector(text.double().numpy(), vision.double().numpy(), neighbours=neighbours)
    np.testing.assert_allclose(gap.numpy(), expected, rtol=1e-12)


def test_vector_errors() -> None:
    text, vision = pairs(7)
    with pytest.raises(GapinitError, match="at most 39"):
        gap_vector(text, vision, neighbours=40)
    with pytest.raises(GapinitError, match=r"\(39, 6\)"):
        gap_vector(text[1:], vision)
    text[3, 1] = np.nan
    with pytest.raises(GapinitError, match="h_text: sample 3"):
        gap_vector(text, vision)
