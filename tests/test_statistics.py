"""Intervals cover, p-values are uniform under the null, and both agree with other programs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gapinit.errors import GapinitError
from gapinit.tables.statistics import (
    bootstrap_interval,
    holm,
    mean_and_std,
    permutation_p_value,
    small_sample_note,
    std_ratio_interval,
)


def two_way(
    rng: np.random.Generator, num_seeds: int, num_images: int, sizes: tuple[float, float, float]
) -> np.ndarray:
    """Draw scores with mean zero from seed effects, image effects, and noise of the given sizes."""
    return (
        sizes[0] * rng.normal(size=(num_seeds, 1))
        + sizes[1] * rng.normal(size=(1, num_images))
        + sizes[2] * rng.normal(size=(num_seeds, num_images))
    )


def test_mean_and_sample_standard_deviation() -> None:
    mean, std = mean_and_std([1.0, 2.0, 6.0])
    assert mean == 3 and std == pytest.approx(np.sqrt(7))
    assert mean_and_std([5.0]) == (5.0, None)


@pytest.mark.parametrize(
    ("num_seeds", "num_images", "sizes"),
    [(1, 80, (0, 1, 0)), (3, 80, (1, 3, 3)), (3, 1, (1, 0, 0)), (5, 80, (1, 5, 5))],
)
def test_intervals_cover_the_mean_about_as_often_as_they_say(
    num_seeds: int, num_images: int, sizes: tuple[float, float, float]
) -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        interval = bootstrap_interval(two_way(rng, num_seeds, num_images, sizes), resamples=500)
        assert interval is not None
        covered += interval.low <= 0 <= interval.high
    # A plain bootstrap of three seeds would cover 75 %.
    assert 0.91 <= covered / 400 <= 0.995


def test_over_images_the_interval_is_scipys_bootstrap_and_over_seeds_students() -> None:
    images = np.random.default_rng(0).gamma(2.0, size=300)
    seeds = np.random.default_rng(0).normal(10, 2, size=40)
    drawn = stats.bootstrap((images,), np.mean, n_resamples=5000, method="percentile", rng=1)
    student = stats.t.interval(0.95, 39, seeds.mean(), stats.sem(seeds))
    for values, over, (low, high) in (
        (images[None, :], "images", drawn.confidence_interval),
        (seeds, "seeds", student),
    ):
        ours = bootstrap_interval(values, resamples=5000)
        assert ours is not None and ours.over == over
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_over_seeds_and_images_the_variances_add_up() -> None:
    """The closed form: t^2 s_seed^2 / S + z^2 s_image^2 / N, of means over the other factor."""
    rng = np.random.default_rng(3)
    values = two_way(rng, 30, 400, (1, 15, 15))
    ours = bootstrap_interval(values, resamples=20_000)
    assert ours is not None
    seeds, images = values.mean(axis=1), values.mean(axis=0)
    by_seed = stats.t.ppf(0.975, 29) * stats.sem(seeds)
    by_image = stats.norm.ppf(0.975) * stats.sem(images)
    assert (ours.high - ours.low) / 2 == pytest.approx(np.hypot(by_seed, by_image), rel=0.04)
    assert by_seed > 0.15 * by_image


def test_seeds_that_differ_widen_the_interval() -> None:
    images = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval([[1.0]]) is None
    same = bootstrap_interval(np.stack([images, images, images]))
    alone = bootstrap_interval(images[None, :])
    apart = bootstrap_interval(np.stack([images - 2, images, images + 2]))
    assert same is not None and alone is not None and apart is not None
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=1e-5)
    assert apart.high - apart.low > 3 * (same.high - same.low)


@given(st.integers(0, 100), st.floats(-100, 100), st.floats(0.1, 100))
def test_intervals_move_and_stretch_with_the_scores(seed: int, shift: float, scale: float) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 10))
    one = bootstrap_interval(values, resamples=100)
    two = bootstrap_interval(scale * values + shift, resamples=100)
    assert one is not None and two is not None
    assert two.low == pytest.approx(scale * one.low + shift, abs=1e-3 * scale)
    assert two.high == pytest.approx(scale * one.high + shift, abs=1e-3 * scale)


def test_results_depend_on_the_arguments_alone() -> None:
    values = np.random.default_rng(0).normal(0.2, size=(3, 40))
    first = bootstrap_interval(values), permutation_p_value(values.mean(axis=0))
    bootstrap_interval(np.ones((2, 7)))
    np.random.seed(0)
    assert (bootstrap_interval(values), permutation_p_value(values.mean(axis=0))) == first
    assert bootstrap_interval(values, seed=3) != first[0]


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(1)
    p_values = [permutation_p_value(rng.normal(size=40), permutations=499) for _ in range(500)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09


@pytest.mark.parametrize("num_pairs", [5, 9, 60])
def test_p_values_agree_with_scipys_permutation_test(num_pairs: int) -> None:
    differences = np.random.default_rng(num_pairs).normal(0.3, size=num_pairs)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, rng=3
    ).pvalue
    # Exact for the two small ones; two samples of sign flips for the large one.
    tolerance = 1e-12 if num_pairs < 12 else 0.02
    assert permutation_p_value(differences) == pytest.approx(theirs, abs=tolerance)


def test_p_values_know_their_bounds() -> None:
    assert permutation_p_value([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert permutation_p_value(np.zeros(5)) == 1
    assert permutation_p_value(np.zeros(50)) == 1
    assert permutation_p_value(np.ones(200)) == pytest.approx(1 / 10_000)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_what_a_handful_of_seeds_cannot_show_is_said(num_seeds: int) -> None:
    note = small_sample_note(num_seeds)
    rng = np.random.default_rng(num_seeds)
    ratios = 1 / rng.normal(size=(200_000, num_seeds)).std(axis=1, ddof=1)
    low, high = (
        float(text) for text in note.split("between ")[1].split(" times")[0].split(" and ")
    )
    assert np.mean((ratios >= low) & (ratios <= high)) == pytest.approx(0.95, abs=0.025)
    smallest = permutation_p_value(np.arange(1.0, num_seeds + 1))
    assert f"p below {smallest:g}." in note and f"There are {num_seeds} seeds" in note
    assert "one seed: no standard deviation" in small_sample_note(1)
    assert small_sample_note(10) == ""


def test_holm_on_a_case_made_by_hand() -> None:
    """Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1; the last is raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_order_and_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, corrected in zip(p_values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw) + 1e-12
    by_raw = [corrected for _, corrected in sorted(zip(p_values, adjusted, strict=True))]
    assert by_raw == sorted(by_raw)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_the_interval_of_a_ratio_of_standard_deviations_covers(num_seeds: int) -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(500):
        result = std_ratio_interval(rng.normal(0, 3, num_seeds), rng.normal(9, 2, num_seeds))
        assert result is not None
        covered += result[1].low <= 1.5 <= result[1].high
    assert 0.92 <= covered / 500 <= 0.98


def test_the_ratio_of_standard_deviations_agrees_with_a_parametric_bootstrap() -> None:
    result = std_ratio_interval([0.0, 1.0, 2.0, 5.0], [0.0, 10.0, 30.0, 50.0])
    assert result is not None
    ratio, interval = result
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2, 100_000, 4)).std(axis=2, ddof=1)
    low, high = ratio / np.quantile(drawn[0] / drawn[1], [0.975, 0.025])
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=0.03)
    # There is no ratio without a spread to compare.
    assert std_ratio_interval([1.0], [1.0, 2.0]) is None
    assert std_ratio_interval([1.0, 2.0], [3.0, 3.0]) is None


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_scores_that_are_not_numbers_are_refused(values: list[float]) -> None:
    spread = partial(std_ratio_interval, [1.0, 2.0])
    for function in (mean_and_std, bootstrap_interval, permutation_p_value, spread):
        with pytest.raises(GapinitError, match="finite"):
            function(values)
