"""The Gaussian toy model against the exact laws of random directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from gapinit.figures.toy import (
    alignment_probability,
    effective_gradient,
    mean_alignment,
    random_alignments,
    random_unit_directions,
    root_mean_square_alignment,
)


@pytest.mark.parametrize("dimension", [2, 3, 64, 512])
def test_squared_alignment_follows_the_beta_law(dimension: int) -> None:
    generator = np.random.default_rng(dimension)
    direction = generator.standard_normal(dimension)
    # Of 512 dimensions these are several chunks; only the direction counts, not its length.
    sample = random_alignments(5000, 7 * direction, generator)
    assert sample.shape == (5000,)
    law = stats.beta(0.5, (dimension - 1) / 2)
    assert stats.kstest(sample**2, law.cdf).pvalue > 1e-3
    # The law of another dimension is refused: the test can tell.
    assert stats.kstest(sample**2, stats.beta(0.5, dimension / 1.5).cdf).pvalue < 1e-6
    # The sign is even.
    assert stats.binomtest(int((sample > 0).sum()), 5000).pvalue > 1e-3


def test_directions_are_unit_vectors_without_a_preferred_one() -> None:
    directions = random_unit_directions(20_000, 5, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(directions.mean(axis=0), 0.0, atol=0.015)
    np.testing.assert_allclose(directions.T @ directions / 20_000, np.eye(5) / 5, atol=0.01)


@pytest.mark.parametrize("dimension", [2, 3, 10, 300])
def test_moments_equal_the_integral_of_the_density(dimension: int) -> None:
    # With x = cos(angle) the density is proportional to sin(angle)^(d-2).
    def moment(power: float) -> float:
        def weight(angle: float) -> float:
            return math.cos(angle) ** power * math.sin(angle) ** (dimension - 2)

        half = math.pi / 2
        norm = integrate.quad(lambda a: math.sin(a) ** (dimension - 2), 0, half, epsabs=0)[0]
        return integrate.quad(weight, 0, half, epsabs=0)[0] / norm

    assert mean_alignment(dimension) == pytest.approx(moment(1), rel=1e-7)
    assert root_mean_square_alignment(dimension) ** 2 == pytest.approx(moment(2), rel=1e-7)


def test_probability_between_edges() -> None:
    edges = np.linspace(-1, 1, 21)
    mass = alignment_probability(edges, 9)
    assert mass.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(mass, mass[::-1], atol=1e-14)
    sample = random_alignments(50_000, np.eye(9)[2], np.random.default_rng(1))
    np.testing.assert_allclose(np.histogram(sample, edges)[0] / 50_000, mass, atol=0.006)
    # In three dimensions the cosine is uniform (Archimedes).
    np.testing.assert_allclose(alignment_probability(edges, 3), 0.05, rtol=1e-9)


@pytest.mark.parametrize("dimension", [64, 1024])
def test_gap_init_keeps_the_gradient_that_random_loses(dimension: int) -> None:
    generator = np.random.default_rng(0)
    found = effective_gradient(
        dimension, directions=2000, pairs=64, gap_to_noise=1.0, generator=generator
    )
    assert found.random.shape == (2000,) and found.random.min() >= 0
    assert found.random.mean() == pytest.approx(mean_alignment(dimension), rel=0.07)
    # cos = 1 / sqrt(1 + 2 sigma^2 d / (pairs |g|^2)): estimated, so near 1 and not 1.
    assert found.gap_init == pytest.approx((1 + 2 / 64) ** -0.5, abs=0.01)


def test_gap_init_needs_a_gap_above_the_noise() -> None:
    def gap_init(ratio: float) -> float:
        generator = np.random.default_rng(0)
        return effective_gradient(
            2048, directions=1, pairs=16, gap_to_noise=ratio, generator=generator
        ).gap_init

    assert gap_init(0.01) < 0.1 < 0.9 < gap_init(2.0) < 1.0
