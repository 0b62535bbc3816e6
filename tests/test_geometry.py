"""Spectra of per-sample gaps, cones, cosines."""

from __future__ import annotations

import numpy as np
import pytest

from gapinit.errors import GapinitError
from gapinit.gap.geometry import cone_cosines, explained_share, gap_cosine, gap_norm, spectrum


def pairs(seed: int, number: int = 40, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    vision = generator.standard_normal((number, width)) * np.linspace(0.5, 2, width)
    # Skewed, so that some pairs are everybody's neighbours and others nobody's.
    text = 0.6 * vision + generator.exponential(1.0, (number, width)) + 0.5
    return text, vision


def test_spectrum_from_the_gram_matrix() -> None:
    gaps = np.subtract(*pairs(8, 30, 5))
    found = spectrum(gaps)
    centred = gaps - gaps.mean(axis=0)
    for values, share, matrix in [
        (found.singular_values, found.explained, gaps),
        (found.singular_values_centred, found.explained_centred, centred),
    ]:
        energy = np.sort(np.linalg.eigvalsh(matrix.T @ matrix))[::-1]
        np.testing.assert_allclose(values**2, energy, rtol=1e-10)
        np.testing.assert_allclose(share, energy / np.trace(matrix.T @ matrix), rtol=1e-10)


def test_spectrum_of_a_pure_translation() -> None:
    found = spectrum(np.tile([[3.0, 4.0]], (5, 1)))
    np.testing.assert_allclose(found.explained, [1.0, 0.0], atol=1e-15)
    np.testing.assert_array_equal(found.explained_centred, [0.0, 0.0])


def test_cone_cosines_by_definition() -> None:
    text, vision = pairs(9)
    found = cone_cosines(vision, text)
    centre = np.vstack([vision, text]).mean(axis=0)
    for cosines, states in [(found.vision, vision), (found.text, text)]:
        mean = states.mean(axis=0) - centre
        for i, cosine in enumerate(cosines):
            offset = states[i] - centre
            expected = offset @ mean / np.linalg.norm(offset) / np.linalg.norm(mean)
            assert cosine == pytest.approx(expected, abs=1e-12)


def test_narrow_cones_are_narrow() -> None:
    text, vision = pairs(10)
    wide, narrow = cone_cosines(vision, text), cone_cosines(vision, text + 1e3)
    assert narrow.text.min() > 0.999 > wide.text.min()


def test_cone_without_axis() -> None:
    vision = pairs(11)[1]
    with pytest.raises(GapinitError, match="gap between text and vision has the length 0"):
        cone_cosines(vision, vision)


def test_explained_share_works_row_by_row() -> None:
    shares = explained_share(np.array([[2.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(shares, [[0.8, 0.2], [0.0, 0.0]])


def test_cosine_and_length_by_definition() -> None:
    first, second = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    assert gap_norm(first, "x") == 5.0
    assert gap_cosine(first, first * 1e-9, "x") == pytest.approx(1.0, abs=1e-15)
    assert gap_cosine(first, -first, "x") == pytest.approx(-1.0, abs=1e-15)
    assert gap_cosine(first, second, "x") == 0.0
    assert gap_cosine(first, np.array([1.0, 0.0]), "x") == pytest.approx(0.6, abs=1e-15)


def test_a_zero_gap_has_no_direction() -> None:
    with pytest.raises(
        GapinitError, match="layer 3: the gap between text and vision has the length 0"
    ):
        gap_norm(np.zeros(2), "layer 3")
    for arguments in [(np.zeros(2), np.ones(2)), (np.ones(2), np.zeros(2))]:
        with pytest.raises(GapinitError, match="layer 3: .* has the length 0"):
            gap_cosine(*arguments, "layer 3")


def test_cosines_stay_cosines() -> None:
    generator = np.random.default_rng(0)
    for vector in generator.standard_normal((200, 7)):
        assert -1.0 <= gap_cosine(vector, vector * 3, "x") <= 1.0
