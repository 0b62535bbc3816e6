"""The Gaussian toy model: the alignment of a random direction with a fixed one in d dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

CHUNK_ENTRIES = 1 << 21


class EffectiveGradient(NamedTuple):
    """The share of the gradient along the gap that each initialisation keeps."""

    random: Float64Array
    """(directions,): |<b, ĝ>| of uniformly random unit vectors b."""
    gap_init: float
    """|<b, ĝ>| for b along the gap estimated from the two sampled clusters."""


def random_unit_directions(
    number: int, dimension: int, generator: np.random.Generator
) -> Float64Array:
    """Draw `number` directions uniformly from the unit sphere in `dimension` dimensions.

    b = z / |z| with z ~ N(0, I_d). Returns (number, dimension).
    """
    vectors = generator.standard_normal((number, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def random_alignments(
    number: int, direction: npt.ArrayLike, generator: np.random.Generator
) -> Float64Array:
    """Return <b, u> for `number` random unit vectors b and u along `direction` (d,), as (number,).

    The directions are drawn in chunks, so that memory does not grow with `number` times d.
    """
    vector = np.asarray(direction, dtype=np.float64)
    unit = vector / float(np.linalg.norm(vector))
    rows = max(1, CHUNK_ENTRIES // len(unit))
    chunks = [
        random_unit_directions(min(rows, number - start), len(unit), generator) @ unit
        for start in range(0, number, rows)
    ]
    return np.concatenate(chunks)


def alignment_probability(edges: npt.ArrayLike, dimension: int) -> Float64Array:
    """Return the probability that <b, u> falls between consecutive `edges`, for a random b.

    P(<b, u> <= x) = (1 + sign(x) F(x^2)) / 2, with F the distribution function of
    Beta(1/2, (d-1)/2), the law of <b, u>^2. `edges` is increasing; the result is one shorter.

    Source: Zhao et al., Appendix A.3, equation 6.
    """
    from scipy.stats import beta

    values = np.asarray(edges, dtype=np.float64)
    within = beta(0.5, (dimension - 1) / 2).cdf(np.minimum(values**2, 1.0))
    return np.diff((1 + np.sign(values) * within) / 2)


def mean_alignment(dimension: int) -> float:
    """Return E|<b, u>| = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), about sqrt(2 / (pi d))."""
    return math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)) / math.sqrt(
        math.pi
    )


def root_mean_square_alignment(dimension: int) -> float:
    """Return sqrt(E<b, u>^2) = d^(-1/2) (Zhao et al., Proposition 3.1)."""
    return dimension**-0.5


def effective_gradient(
    dimension: int,
    *,
    directions: int,
    pairs: int,
    gap_to_noise: float,
    generator: np.random.Generator,
) -> EffectiveGradient:
    """Sample the toy model and measure |<b, ĝ>| for random directions and for Gap-Init.

    Vision states are N(mu, I_d) and text states N(mu + g, I_d), `pairs` of each. Gap-Init takes b
    along the difference of the two sample means, a random initialisation takes b uniform on the
    sphere; the useful part of the gradient is proportional to <b, g> (Appendix A.3, equation 5).
    Expected for Gap-Init: about (1 + 2 / (pairs * gap_to_noise^2))^(-1/2) in every dimension.

    `gap_to_noise` is |g| / (sigma sqrt(d)).

    Source: Zhao et al., Appendix A.
    """
    unit = random_unit_directions(1, dimension, generator)[0]
    # ASSUME: sigma = 1 and |g| grows like sqrt(d), as the length of hidden states does; the paper
    # fixes neither. mu does not enter: it cancels in the difference of the means.
    gap = gap_to_noise * math.sqrt(dimension) * unit
    vision = generator.standard_normal((pairs, dimension)).mean(axis=0)
    text = gap + generator.standard_normal((pairs, dimension)).mean(axis=0)
    estimate = text - vision
    return EffectiveGradient(
        random=np.abs(random_alignments(directions, unit, generator)),
        gap_init=float(abs(estimate @ unit) / np.linalg.norm(estimate)),
    )
