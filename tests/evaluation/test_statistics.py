"""Standard errors against hand computation, the textbook formula and simulation."""

from __future__ import annotations

import math
import random
from statistics import mean, stdev

import numpy as np
import pytest

from flamingo.evaluation.statistics import (
    clustered_standard_error,
    estimate,
    mean_estimate,
    paired_difference,
    student_quantile,
)


def test_a_clustered_standard_error_computed_by_hand() -> None:
    # mean 0.6; residual sums: a: 0.4 + 0.4 = 0.8, b: -0.6 - 0.6 = -1.2, c: 0.4
    # SE^2 = 3/2 * (0.64 + 1.44 + 0.16) / 25 = 0.1344
    error = clustered_standard_error([1.0, 1.0, 0.0, 0.0, 1.0], ["a", "a", "b", "b", "c"])
    assert error == pytest.approx(math.sqrt(0.1344), rel=1e-12)


def test_with_one_query_an_image_it_is_the_textbook_standard_error() -> None:
    scores = [0.3, 1.0, 0.0, 0.6, 0.9, 1.0, 0.0]
    expected = stdev(scores) / math.sqrt(len(scores))
    assert clustered_standard_error(scores, range(7)) == pytest.approx(expected, rel=1e-12)


def test_repeating_every_query_does_not_shrink_the_error() -> None:
    scores, clusters = [1.0, 0.0, 1.0, 1.0], ["a", "b", "c", "d"]
    once = clustered_standard_error(scores, clusters)
    assert clustered_standard_error(scores * 10, clusters * 10) == pytest.approx(once)


def test_it_agrees_with_a_bootstrap_over_images() -> None:
    draw = random.Random(0)
    by_image = []
    for _ in range(60):
        ease = draw.random()
        by_image.append([float(draw.random() < ease) for _ in range(draw.randrange(1, 9))])
    scores = [score for image in by_image for score in image]
    clusters = [index for index, image in enumerate(by_image) for _ in image]
    means = []
    for _ in range(2000):
        sample = [score for image in draw.choices(by_image, k=60) for score in image]
        means.append(mean(sample))
    assert clustered_standard_error(scores, clusters) == pytest.approx(stdev(means), rel=0.08)


def test_the_interval_covers_the_truth_19_times_in_20() -> None:
    draw = random.Random(1)
    covered = 0
    for _ in range(1000):
        scores = [float(draw.random() < 0.9) for _ in range(100)]
        result = estimate(scores, range(100))
        covered += result.low <= 0.9 <= result.high
    assert 920 <= covered <= 980


def test_the_effective_size_of_few_clusters_is_korn_s_and_graubard_s() -> None:
    # 5 images x 4 queries: 3, 2, 4, 1, 3 right of 4, mean 0.65, residual sums 0.4, -0.6, 1.4,
    # -1.6, 0.4: SE^2 = 5/4 * 5.2 / 20^2 = 0.01625, so that 0.65 * 0.35 / SE^2 = 14 answers,
    # times (t[19] / t[4])^2 = (2.0930240544 / 2.7764451052)^2.
    right = [3, 2, 4, 1, 3]
    scores = [float(query < count) for count in right for query in range(4)]
    result = estimate(scores, [image for image in range(5) for _ in range(4)])
    size, z, p = 14 * (2.0930240544 / 2.7764451052) ** 2, 1.959963984540054, 0.65
    # Wilson's ends solve (p - end)^2 = z^2 end (1 - end) / size.
    for end in (result.low, result.high):
        assert (p - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / size, rel=1e-6)
    assert result.low < p < result.high


def test_with_one_query_an_image_it_is_wilson_s_interval() -> None:
    result = estimate([1.0] * 8 + [0.0] * 2, range(10))
    # SE^2 = p (1 - p) / (n - 1): at 9 answers, and no factor.
    for end in (result.low, result.high):
        assert (0.8 - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / 9)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_few_images_of_many_queries_cover_the_truth_19_times_in_20(share: float) -> None:
    draw, covered, count = np.random.default_rng(0), 0, 4000
    images = np.arange(5).repeat(20).tolist()
    for _ in range(count):
        ease = draw.beta(4 * share, 4 * (1 - share), size=5)  # correlation 0.2 within an image
        scores = (draw.random((5, 20)) < ease[:, None]).astype(float).ravel().tolist()
        result = estimate(scores, images)
        covered += result.low <= share <= result.high
    # 86 to 88 % without the factor; about 94 and 95 with it.
    assert 0.925 <= covered / count <= 0.965


def test_the_interval_of_a_mean_of_few_images_covers_it_19_times_in_20() -> None:
    draw, covered = np.random.default_rng(1), 0
    for _ in range(2000):
        result = mean_estimate(draw.normal(size=5).tolist(), range(5))
        covered += result.low <= 0 <= result.high
    assert 0.935 <= covered / 2000 <= 0.965


def test_all_right_still_leaves_doubt() -> None:
    result = estimate([1.0] * 50, range(50))
    # Wilson at p = 1: low = n / (n + z^2)
    assert result.low == pytest.approx(50 / (50 + 1.959964**2), rel=1e-5)
    assert (result.mean, result.high, result.standard_error) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize("score", [0.5, 1 / 3, 0.9])
def test_equal_scores_that_are_neither_right_nor_wrong_have_no_interval(score: float) -> None:
    result = estimate([score] * 97, range(97))
    assert result.mean == pytest.approx(score)
    assert math.isnan(result.low) and math.isnan(result.high)


def test_an_interval_always_holds_its_mean() -> None:
    for n in range(2, 200):
        for score in (0.0, 1.0):
            result = estimate([score] * n, range(n))
            assert result.low <= result.mean <= result.high


def test_a_single_image_gives_no_standard_error() -> None:
    result = estimate([1.0, 0.0, 1.0], ["a"] * 3)
    assert math.isnan(result.standard_error)
    assert result.clusters == 1
    assert 0 <= result.low < result.mean < result.high <= 1


def test_a_paired_difference_drops_what_both_share() -> None:
    first, second = [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]
    result = paired_difference(first, second, "abcd")
    assert result.mean == 0.5
    # differences 0 1 0 1: sd = sqrt(1/3), SE = sqrt(1/3) / 2
    assert result.standard_error == pytest.approx(math.sqrt(1 / 3) / 2)
    # t on 3 degrees of freedom
    assert result.high - result.low == pytest.approx(2 * 3.182446 * math.sqrt(1 / 3) / 2, rel=1e-5)


def test_the_difference_of_two_shares_is_at_most_one() -> None:
    first, second = [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]
    assert paired_difference(first, second, "abc").high > 1
    one, other = (
        paired_difference(a, b, "abc", share=True) for a, b in ((first, second), (second, first))
    )
    assert (one.high, other.low) == (1.0, -1.0)
    assert one.low == pytest.approx(-other.high) and one.low > -1


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (0.0, 1.0), (0.3, 0.1), (2.7, 0.9)])
def test_equal_differences_have_no_interval(first: float, second: float) -> None:
    result = paired_difference([first] * 97, [second] * 97, range(97))
    assert result.mean == pytest.approx(first - second)
    assert result.standard_error == pytest.approx(0, abs=1e-12)
    assert math.isnan(result.low) and math.isnan(result.high)
    assert not math.isnan(paired_difference([first, 0.0], [second, 0.5], range(2)).low)


def test_no_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate([], [])


@pytest.mark.parametrize("probability", [0.6, 0.8, 0.975, 0.9999])
def test_student_quantiles_agree_with_their_closed_forms(probability: float) -> None:
    a = 2 * probability - 1
    one = math.tan(math.pi * (probability - 0.5))
    two = a * math.sqrt(2 / (1 - a * a))
    assert student_quantile(probability, 1.0) == pytest.approx(one, rel=1e-9)
    assert student_quantile(probability, 2.0) == pytest.approx(two, rel=1e-9)


def test_student_quantiles_agree_with_the_tables() -> None:
    table = {3.0: 3.182446305284, 5.0: 2.570581835636, 10.0: 2.228138851965, 30.0: 2.042272456301}
    for df, expected in table.items():
        assert student_quantile(0.975, df) == pytest.approx(expected, rel=1e-9)
        assert student_quantile(0.025, df) == pytest.approx(-expected, rel=1e-9)
    # scipy.stats.t.ppf
    assert student_quantile(0.9, 1.5) == pytest.approx(2.1963984175655376, rel=1e-9)
    assert student_quantile(0.999, 12.25) == pytest.approx(3.9087868356938316, rel=1e-9)


def test_student_quantiles_end_in_the_normal_distribution() -> None:
    assert student_quantile(0.975, math.inf) == pytest.approx(1.959963984540054, rel=1e-12)
    assert student_quantile(0.975, 1e7) == pytest.approx(1.959963984540054, rel=1e-6)


def test_a_quantile_needs_a_probability_and_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="probability: expected one between 0 and 1, got 1"):
        student_quantile(1.0, 3.0)
    with pytest.raises(ValueError, match="degrees_of_freedom: expected at least 1, got 0.5"):
        student_quantile(0.9, 0.5)
