"""Uncertainty of the numbers in a table: intervals, paired comparisons, corrections.

The data of a table cell is a matrix of scores, seeds x samples: every seed is scored on the same
samples (images or questions). A metric that is no mean over samples (BLEU, METEOR, F1) has one
column, the corpus score.
Every result depends on its arguments alone, resampling included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gapinit.errors import GapinitError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2000
PERMUTATIONS = 9999
EXACT_UP_TO = 12
"""Up to this many differences, every one of the 2^n sign flips is made."""
FEW_SEEDS = 10
_BLOCK = 2**18
"""Sign flips made at a time: a block stays in the cache."""


@dataclass(frozen=True)
class Interval:
    """An interval at level `LEVEL`."""

    low: float
    high: float
    over: str = ""
    """What was resampled: `images`, `questions`, `seeds`, or `seeds and` one of them."""


def mean_and_std(values: ArrayLike) -> tuple[float, float | None]:
    """Return mean and sample standard deviation (ddof = 1) of scores, one a seed.

    The standard deviation of one seed is unknown: None, not zero.
    """
    array = _finite(values)
    std = float(array.std(ddof=1)) if array.size > 1 else None
    return float(array.mean()), std


def small_sample_note(num_seeds: int) -> str:
    """Say what a handful of seeds cannot show; empty from ten seeds on.

    The true standard deviation lies between s sqrt((n-1) / q) of the two quantiles q of the
    chi-squared distribution with n - 1 degrees of freedom (scores normal over seeds), and of n
    differences an exact sign-flip test gives no p-value below 2 / 2^n.
    """
    from scipy import special

    if num_seeds == 1:
        return (
            "There is one seed: no standard deviation is known, and an interval over samples says "
            "nothing of other seeds."
        )
    if num_seeds >= FEW_SEEDS:
        return ""
    tails = [(1 + LEVEL) / 2, (1 - LEVEL) / 2]
    quantiles = special.chdtri(num_seeds - 1, [1 - tail for tail in tails])
    low, high = np.sqrt((num_seeds - 1) / quantiles)
    return (
        f"There are {num_seeds} seeds: the true standard deviation lies between {low:.1f} and "
        f"{high:.1f} times the printed one (95 %), and a test over seeds alone cannot give p below "
        f"{2 / 2**num_seeds:g}."
    )


def bootstrap_interval(
    values: ArrayLike, *, samples: str = "images", resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the two-way bootstrap interval of the mean of a (seeds, samples) matrix.

    Seeds and samples are crossed, so both are drawn with replacement, independently, and their
    deviations from the mean m add up:

        m* = m + c (mean over drawn seeds - m) + (mean over drawn samples - m).

    With one seed the interval is over samples alone, with one column over seeds alone, and with
    both there is none. A plain bootstrap of S seeds is too narrow by sqrt((S-1)/S) and has normal
    tails where Student's are due: on three seeds it covers 75 % instead of 95 %.

    Args:
        values: shape (S,), (S, 1) or (S, N), in the units of the metric.
        samples: what the columns are, for `over`.
        resamples: number of bootstrap draws.
        seed: of the draws; equal arguments give equal intervals.
    """
    array = _finite(values)
    matrix = array[:, None] if array.ndim == 1 else array
    num_seeds, num_samples = matrix.shape
    if num_seeds == num_samples == 1:
        return None
    mean = matrix.mean()
    drawn = np.full(resamples, mean)
    if num_samples > 1:
        per_sample = (matrix.mean(axis=0) - mean).astype(np.float32)
        drawn += _draws(num_samples, resamples, seed) @ per_sample
    if num_seeds > 1:
        per_seed = matrix.mean(axis=1) - mean
        # A stream of its own: with as many seeds as samples, the two draws would be the same.
        drawn += _small_sample_factor(num_seeds) * (
            _draws(num_seeds, resamples, seed + 1) @ per_seed
        )
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    parts = [name for name, n in (("seeds", num_seeds), (samples, num_samples)) if n > 1]
    return Interval(float(low), float(high), " and ".join(parts))


def _small_sample_factor(n: int) -> float:
    """Widen the bootstrap of n values to the interval of Student's t.

    ASSUME: no paper says how an interval over a handful of seeds is made. The factor is
    sqrt(n / (n-1)), which undoes the bias of the bootstrap variance (Rao and Wu, 1988, "Resampling
    inference with complex survey data"), times the ratio of Student's quantile to the normal one.
    """
    from scipy import special

    upper = (1 + LEVEL) / 2
    return float(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, upper) / special.ndtri(upper))


@lru_cache(maxsize=4)
def _draws(n: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """Return weights (resamples, n): how often each item is drawn, divided by n.

    The same draws serve every row of a table, which makes them quick and comparable.
    """
    rng = np.random.default_rng([seed, n])
    weights = np.empty((resamples, n), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(n, size=n), minlength=n)
    return weights / np.float32(n)


def permutation_p_value(
    differences: ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Return the two-sided p-value of a paired permutation (sign-flip) test of mean zero.

    Under the null hypothesis the two members of a pair are exchangeable, so that each difference
    could as well have the other sign. With up to `EXACT_UP_TO` differences every flip is made:
    p = #{|m*| >= |m|} / 2^n. With more, K random ones: p = (1 + #{|m*| >= |m|}) / (1 + K), which
    is never zero (Phipson and Smyth, 2010). Over images, the test takes the trained models as
    they are and asks about other images of the same kind; it does not ask about other seeds.

    Args:
        differences: shape (n,), one a pair.
        permutations: number K of random sign flips.
        seed: of the flips; equal arguments give equal p-values.
    """
    values = _finite(differences).ravel()
    observed = abs(values.sum())
    # Sums that differ by rounding alone are ties, and ties count as extreme.
    tolerance = 1e-6 * np.abs(values).sum()
    if values.size <= EXACT_UP_TO:
        flips = (np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1
        sums = np.abs(values.sum() - 2 * flips @ values)
        return float(np.mean(sums >= observed - tolerance))
    rng = np.random.default_rng([seed, values.size])
    extreme = 0
    width, block = -(-values.size // 8), max(1, _BLOCK // values.size)
    single = values.astype(np.float32)
    for start in range(0, permutations, block):
        rows = min(block, permutations - start)
        random_bytes = np.frombuffer(rng.bytes(rows * width), dtype=np.uint8)
        bits = np.unpackbits(random_bytes.reshape(rows, width), axis=1, count=values.size)
        sums = np.abs(values.sum() - 2 * (bits.astype(np.float32) @ single))
        extreme += int(np.sum(sums >= observed - tolerance))
    return (1 + extreme) / (1 + permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of tests by Holm's step-down method.

    With p(1) <= ... <= p(m), the adjusted one is max over j <= i of min(1, (m - j + 1) p(j)): the
    probability of any false rejection stays below the level (Holm, 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def std_ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike
) -> tuple[float, Interval] | None:
    """Return the ratio of two standard deviations over seeds, with its interval.

    ASSUME: the scores of a method are normal over seeds. Then the parametric bootstrap has a
    closed form, (s1/s2)^2 / F with F of Fisher's distribution of (n1-1, n2-1) degrees of freedom.
    Drawing the seeds themselves fails on a handful of them: on three seeds its interval covers
    71 % instead of 95 %, and draws of one seed alone have no standard deviation. Seeds that two
    methods share make their scores correlated, which makes this interval too wide, never too
    narrow, when the correlation is positive.

    Args:
        numerator: scores of one method, shape (n1,), one a seed.
        denominator: scores of the other, shape (n2,).

    Returns:
        The ratio and its interval, or None with fewer than two seeds or a zero denominator.
    """
    from scipy import special

    first, second = _finite(numerator).ravel(), _finite(denominator).ravel()
    if first.size < 2 or second.size < 2 or second.std() == 0:
        return None
    ratio = float(first.std(ddof=1) / second.std(ddof=1))
    quantiles = special.fdtri(first.size - 1, second.size - 1, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    low, high = ratio / np.sqrt(quantiles)
    return ratio, Interval(float(low), float(high), "seeds")


def _finite(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise GapinitError(f"scores must be finite and at least one, found {array.tolist()[:5]}")
    return array
