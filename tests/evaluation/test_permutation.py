"""Sign flips against enumeration by hand, McNemar's test, scipy and the level under the null."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from flamingo.evaluation.permutation import paired_permutation, paired_permutation_metric


def enumerated(first: list[float], second: list[float], clusters: list[str]) -> float:
    """Exchange the labels of every subset of the images; the share at least as far from zero."""
    names = sorted(set(clusters))
    observed = sum(first) - sum(second)
    extreme = []
    for chosen in product([False, True], repeat=len(names)):
        swapped = dict(zip(names, chosen, strict=True))
        pairs = [
            (b, a) if swapped[own] else (a, b)
            for a, b, own in zip(first, second, clusters, strict=True)
        ]
        extreme.append(abs(sum(a - b for a, b in pairs)) >= abs(observed) - 1e-12)
    return sum(extreme) / len(extreme)


@pytest.mark.parametrize("seed", range(12))
def test_a_small_test_counts_every_exchange_of_images(seed: int) -> None:
    draw = np.random.default_rng(seed)
    first = (draw.integers(0, 11, size=14) / 10).tolist()
    second = (draw.integers(0, 9, size=14) / 10).tolist()
    clusters = [f"image {index}" for index in draw.integers(0, 7, size=14)]
    result = paired_permutation(first, second, clusters)
    assert result.exact
    assert result.p_value == pytest.approx(enumerated(first, second, clusters), abs=1e-12)
    assert result.difference == pytest.approx(np.mean(first) - np.mean(second))


def test_it_agrees_with_scipy_where_every_query_has_its_image() -> None:
    differences = [0.3, -0.1, 0.6, 1.0, 0.2, -0.3, 0.7, 0.4, -0.2, 0.9]
    result = paired_permutation(differences, [0.0] * 10, range(10))
    # scipy 1.18: permutation_test(..., permutation_type="samples", n_resamples=inf)
    assert (result.p_value, result.arrangements) == (0.05078125, 1024)


@pytest.mark.parametrize(("gained", "lost"), [(7, 1), (9, 3), (5, 5), (4, 0)])
def test_with_yes_no_scores_it_is_the_exact_test_of_mcnemar(gained: int, lost: int) -> None:
    first = [1.0] * gained + [0.0] * lost + [1.0] * 200
    second = [0.0] * gained + [1.0] * lost + [1.0] * 200
    result = paired_permutation(first, second, range(len(first)))
    both = gained + lost
    tail = sum(math.comb(both, k) for k in range(min(gained, lost) + 1)) / 2**both
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))
    # Of the 200 queries on which the runs agree nothing needs to be exchanged.
    assert result.exact
    assert result.arrangements == 2**both


def test_a_sample_of_the_exchanges_comes_near_all_of_them() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.35, 1, size=13).tolist(), [0.0] * 13
    exact = paired_permutation(first, second, range(13), draws=2**13)
    sampled = paired_permutation(first, second, range(13), draws=2**13 - 1)
    assert (exact.exact, sampled.exact) == (True, False)
    assert 0.02 < exact.p_value < 0.98
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.02)


def test_a_sampled_p_value_is_never_zero() -> None:
    result = paired_permutation([1.0] * 60, [0.0] * 60, range(60), draws=99)
    assert result.p_value == 1 / 100


def test_the_level_holds_for_images_and_breaks_without_them() -> None:
    rejected = apart = 0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        # No difference on average, but each image is easier for one of the two runs.
        differences = draw.normal(size=30).repeat(6) + draw.normal(size=180)
        first, second = differences.tolist(), [0.0] * 180
        images = np.arange(30).repeat(6).tolist()
        rejected += paired_permutation(first, second, images, draws=300).p_value <= 0.05
        apart += paired_permutation(first, second, range(180), draws=300).p_value <= 0.05
    assert 0.02 <= rejected / 300 <= 0.08
    assert apart / 300 > 0.2


def test_a_true_difference_is_found() -> None:
    draw = np.random.default_rng(2)
    shared = draw.random(80)
    first, second = shared + 0.1 + 0.1 * draw.normal(size=80), shared
    assert paired_permutation(first.tolist(), second.tolist(), range(80)).p_value < 0.001


def test_equal_runs_are_never_different() -> None:
    result = paired_permutation([0.3, 0.9], [0.3, 0.9], "ab")
    assert (result.difference, result.p_value, result.arrangements) == (0.0, 1.0, 1)
    # An image on which the differences cancel.
    assert paired_permutation([0.3, 0.1], [0.1, 0.3], "aa").p_value == 1.0


def test_a_metric_that_is_a_mean_gives_the_p_value_of_the_mean() -> None:
    first = np.array([0.9, 0.4, 1.0, 0.2, 0.8, 0.7, 1.0, 0.3])
    second = np.array([0.5, 0.6, 0.1, 0.0, 0.6, 0.8, 0.2, 0.3])
    images = list("abacbdec")

    def difference(swapped: np.ndarray) -> float:
        ours, theirs = np.where(swapped, second, first), np.where(swapped, first, second)
        return float(ours.mean() - theirs.mean())

    result = paired_permutation_metric(difference, images)
    assert (result.exact, result.arrangements, result.clusters) == (True, 32, 5)
    assert result.p_value == enumerated(first.tolist(), second.tolist(), images)
    assert result.difference == pytest.approx((first - second).mean())


def test_a_metric_over_many_images_is_sampled_and_reproducible() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(0.5, 1, size=60), draw.normal(size=60)

    def difference(swapped: np.ndarray) -> float:
        ours, theirs = np.where(swapped, second, first), np.where(swapped, first, second)
        return float(np.median(ours) - np.median(theirs))

    result = paired_permutation_metric(difference, range(60), draws=200)
    assert (result.exact, result.arrangements) == (False, 200)
    assert 1 / 201 <= result.p_value < 0.2
    assert result == paired_permutation_metric(difference, range(60), draws=200)


def test_a_metric_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="difference: expected a number for each arrangement"):
        paired_permutation_metric(lambda swapped: math.nan if swapped.any() else 0.1, "ab")
