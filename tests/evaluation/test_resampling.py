"""The bootstrap against all resamples of tiny data, closed forms, scipy and coverage."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from flamingo.evaluation.resampling import (
    Bootstrap,
    Interval,
    bootstrap_mean,
    bootstrap_metric,
    paired_bootstrap,
    paired_bootstrap_metric,
)
from flamingo.evaluation.statistics import clustered_standard_error

SCORES = [1.0, 0.4, 0.0, 0.3, 0.9, 1.0, 0.1]
IMAGES = ["d", "a", "a", "b", "d", "c", "a"]


def every_resample() -> np.ndarray:
    """The means of all 4 ** 4 equally likely samples of the four images above."""
    by_image = {
        image: [score for score, own in zip(SCORES, IMAGES, strict=True) if own == image]
        for image in "abcd"
    }
    return np.array(
        [
            np.mean([score for image in drawn for score in by_image[image]])
            for drawn in product("abcd", repeat=4)
        ]
    )


def area_under_roc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs in the right order (Mann-Whitney), NaN without either class."""
    positive, negative = scores[labels][:, None], scores[~labels][None]
    if not positive.size or not negative.size:
        return math.nan
    return float((positive > negative).mean() + (positive == negative).mean() / 2)


def crossed(seed: int, images: int, each: int) -> tuple[list[float], list[int]]:
    """Yes-no scores whose chance differs between images; 0.6 is right on average."""
    draw = np.random.default_rng(seed)
    ease = draw.beta(0.6, 0.4, size=images).repeat(each)
    scores = (draw.random(images * each) < ease).astype(float)
    return scores.tolist(), np.arange(images).repeat(each).tolist()


def test_it_draws_from_all_resamples_of_the_images() -> None:
    truth = every_resample()
    result = bootstrap_mean(SCORES, IMAGES, draws=40_000, interval=Interval.percentile)
    assert result.value == pytest.approx(np.mean(SCORES))
    assert result.standard_error == pytest.approx(truth.std(), rel=0.015)
    assert result.low == pytest.approx(np.quantile(truth, 0.025), abs=0.01)
    assert result.high == pytest.approx(np.quantile(truth, 0.975), abs=0.01)
    assert (result.n, result.clusters, result.draws, result.undefined) == (7, 4, 40_000, 0)


def test_with_one_query_an_image_the_error_is_the_closed_form() -> None:
    draw = np.random.default_rng(0)
    scores = draw.random(60)
    result = bootstrap_mean(scores.tolist(), range(60), draws=20_000)
    assert result.standard_error == pytest.approx(scores.std() / math.sqrt(60), rel=0.02)


def test_the_error_is_the_clustered_standard_error() -> None:
    scores, images = crossed(0, 80, 5)
    result = bootstrap_mean(scores, images, draws=10_000)
    assert result.standard_error == pytest.approx(
        clustered_standard_error(scores, images), rel=0.04
    )


def test_asking_each_question_ten_times_changes_nothing() -> None:
    once = bootstrap_mean(SCORES, IMAGES, draws=500)
    often = bootstrap_mean(SCORES * 10, IMAGES * 10, draws=500)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert often.standard_error == pytest.approx(once.standard_error)


@pytest.mark.parametrize("interval", Interval)
def test_the_interval_covers_the_truth_and_one_without_images_does_not(interval: Interval) -> None:
    covered = apart = 0
    for seed in range(300):
        scores, images = crossed(seed, 40, 5)
        with_images = bootstrap_mean(scores, images, draws=400, interval=interval)
        without = bootstrap_mean(scores, range(200), draws=400, interval=interval)
        covered += with_images.low <= 0.6 <= with_images.high
        apart += without.low <= 0.6 <= without.high
    assert 0.91 <= covered / 300 <= 0.98
    assert apart / 300 < 0.8


SPATIAL = [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6,
           0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41]  # fmt: skip
"""Efron & Tibshirani 1993, table 14.1 (A)."""


def test_intervals_of_a_variance_agree_with_scipy() -> None:
    # scipy 1.18, stats.bootstrap, 60,000 resamples: (86.5, 249.3), and (106.0, 280.4) for BCa.
    data = np.array(SPATIAL, dtype=float)
    expected = {Interval.percentile: (86.5, 249.3), Interval.bca: (106.0, 280.4)}
    for interval, limits in expected.items():
        result = bootstrap_metric(
            lambda queries: float(data[queries].var()), range(26), draws=6_000, interval=interval
        )
        assert result.value == pytest.approx(171.534, abs=1e-3)
        assert (result.low, result.high) == pytest.approx(limits, rel=0.025)


def test_a_metric_that_is_a_mean_gives_what_the_mean_gives() -> None:
    scores = np.array(SCORES)
    for interval in Interval:
        mean = bootstrap_mean(SCORES, IMAGES, draws=300, interval=interval)
        metric = bootstrap_metric(
            lambda queries: float(scores[queries].mean()), IMAGES, draws=300, interval=interval
        )
        assert values(metric) == pytest.approx(values(mean))


def values(result: Bootstrap) -> tuple[float, float, float, float]:
    return result.value, result.standard_error, result.low, result.high


def test_the_error_of_an_area_under_the_roc_curve_is_that_of_delong() -> None:
    draw = np.random.default_rng(3)
    labels = np.arange(160) < 70
    scores = draw.normal(size=160) + labels
    result = bootstrap_metric(
        lambda queries: area_under_roc(labels[queries], scores[queries]), range(160), draws=1_500
    )
    wins = scores[labels][:, None] > scores[~labels][None]
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    delong = by_positive.var(ddof=1) / 70 + by_negative.var(ddof=1) / 90
    assert result.standard_error == pytest.approx(math.sqrt(delong), rel=0.06)


def test_resamples_without_a_value_are_counted() -> None:
    labels = np.array([True, False, False, False])
    scores = np.array([0.8, 0.1, 0.9, 0.3])

    def metric(queries: np.ndarray) -> float:
        return area_under_roc(labels[queries], scores[queries])

    result = bootstrap_metric(metric, "abcd", draws=4_000)
    # No positive: (3/4)^4; nothing else: (1/4)^4.
    expected = 0.75**4 + 0.25**4
    assert result.undefined / 4_000 == pytest.approx(expected, abs=0.025)
    assert 0 <= result.low <= result.high <= 1
    with pytest.raises(ValueError, match="without each cluster"):
        bootstrap_metric(metric, "abcd", draws=50, interval=Interval.bca)
    with pytest.raises(ValueError, match="metric: expected a number for all queries"):
        bootstrap_metric(lambda queries: math.nan, "abcd")


def test_resamples_hold_whole_images() -> None:
    images = ["a", "b", "a", "c", "b", "a"]
    members = {"a": [0, 2, 5], "b": [1, 4], "c": [3]}

    def metric(queries: np.ndarray) -> float:
        counts = np.bincount(queries, minlength=6)
        assert all(len(set(counts[own])) == 1 for own in members.values())
        assert sum(counts[own[0]] for own in members.values()) == 3
        return float(len(queries))

    bootstrap_metric(metric, images, draws=100)


def test_pairs_lose_what_both_runs_share() -> None:
    draw = np.random.default_rng(1)
    shared = draw.random(100)
    first, second = (shared + 0.02).tolist(), shared.tolist()
    result = paired_bootstrap(first, second, range(100), draws=500)
    assert result.difference.value == pytest.approx(0.02)
    assert result.difference.standard_error < 1e-12
    assert result.p_value == 1 / 501


def test_the_p_value_is_that_of_all_resamples() -> None:
    first, second = SCORES, [0.2, 0.7, 0.0, 0.1, 1.0, 0.8, 0.0]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    by_image = {
        image: [d for d, own in zip(differences, IMAGES, strict=True) if own == image]
        for image in "abcd"
    }
    observed = np.mean(differences)
    means = np.array(
        [
            np.mean([d for image in drawn for d in by_image[image]])
            for drawn in product("abcd", repeat=4)
        ]
    )
    expected = (np.abs(means - observed) >= abs(observed) - 1e-12).mean()
    assert 0.1 < expected < 0.6
    result = paired_bootstrap(first, second, IMAGES, draws=40_000)
    assert result.p_value == pytest.approx(expected, abs=0.01)


def test_no_difference_is_never_significant() -> None:
    result = paired_bootstrap(SCORES, SCORES, IMAGES, draws=100)
    assert (result.difference.low, result.difference.high, result.p_value) == (0.0, 0.0, 1.0)


def test_a_paired_metric_measures_both_runs_on_the_same_resample() -> None:
    first, second = np.array(SCORES), np.array(SCORES[::-1])
    means = paired_bootstrap(SCORES, SCORES[::-1], IMAGES, draws=300, interval=Interval.percentile)
    metric = paired_bootstrap_metric(
        lambda queries: float(first[queries].mean()),
        lambda queries: float(second[queries].mean()),
        IMAGES,
        draws=300,
    )
    assert values(metric.difference) == pytest.approx(values(means.difference))
    assert metric.p_value == means.p_value


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    scores, images = crossed(5, 50, 3)
    assert bootstrap_mean(scores, images, seed=4) == bootstrap_mean(scores, images, seed=4)
    assert bootstrap_mean(scores, images, seed=4) != bootstrap_mean(scores, images, seed=5)


def test_a_single_image_has_no_interval() -> None:
    result = paired_bootstrap([1.0, 0.0], [0.0, 0.0], ["a", "a"], draws=50)
    difference = result.difference
    assert difference.value == 0.5
    assert all(
        math.isnan(x)
        for x in (difference.standard_error, difference.low, difference.high, result.p_value)
    )


def test_unusable_scores_are_named() -> None:
    with pytest.raises(ValueError, match="at least one query, got none"):
        bootstrap_mean([], [])
    with pytest.raises(ValueError, match="scores: expected 3, one a query, got 2"):
        bootstrap_mean([0.0, 1.0], "abc")
    with pytest.raises(ValueError, match=r"scores\[1\]: expected a finite score, got nan"):
        bootstrap_mean([0.0, math.nan], "ab")
    with pytest.raises(ValueError, match="second: expected 2, one a query, got 1"):
        paired_bootstrap([0.0, 1.0], [0.0], "ab")
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        bootstrap_mean([0.0, 1.0], "ab", draws=0)
