"""Variance components against hand computation, a published table, simulation and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flamingo.evaluation.statistics import clustered_standard_error
from flamingo.evaluation.variance import Decomposition, decompose


def simulated(
    seed: int,
    *,
    seeds: int = 4,
    images: int = 40,
    each: int = 3,
    between_seeds: float = 0.02,
    between_images: float = 0.3,
    noise: float = 0.3,
) -> Decomposition:
    """Scores of true mean 0.5 with effects of these standard deviations, decomposed.

    Half of the noise variance is an image's own under each seed, shared by its queries.
    """
    draw = np.random.default_rng(seed)
    own = draw.normal(0, noise, size=(seeds, images)).repeat(each, axis=1)
    scores = (
        0.5
        + draw.normal(0, between_seeds, size=(seeds, 1))
        + draw.normal(0, between_images, size=images).repeat(each)
        + (own + draw.normal(0, noise, size=(seeds, images * each))) / math.sqrt(2)
    )
    return decompose(scores.tolist(), np.arange(images).repeat(each).tolist())


def test_components_computed_by_hand() -> None:
    # Rows 1 1 0 and 1 0 0 with images a a b. Mean 1/2; seeds 2/3 and 1/3; queries 1, 1/2, 0.
    # A = 2 (1/6)^2 = 1/18. B: image sums 1/2 + 0 and -1/2, so 2/1 (1/4 + 1/4) / 9 = 1/9.
    # AB: rest -1/6 1/3 -1/6 and its negative, image sums +-1/6: 2/1 * 4/36 / 9 = 2/81.
    result = decompose([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], "aab")
    assert result.mean == pytest.approx(1 / 2)
    assert result.interaction == pytest.approx(2 / 81)
    assert result.seed == pytest.approx(1 / 18 - 2 / 81)
    assert result.sampling == pytest.approx(1 / 9 - 1 / 81)
    assert result.error_new_seeds == pytest.approx(math.sqrt(1 / 36))
    assert result.error_new_images == pytest.approx(math.sqrt(1 / 9))
    # 1/36 + 1/9 - 1/81 = 41/324; degrees of freedom (41/324)^2 / ((1/36)^2 + (1/9)^2)
    assert result.standard_error == pytest.approx(math.sqrt(41 / 324))
    assert result.degrees_of_freedom == pytest.approx((41 / 324) ** 2 / (1 / 1296 + 1 / 81))
    assert (result.seeds, result.n, result.clusters) == (2, 3, 2)


def test_one_query_an_image_is_the_analysis_of_variance_of_shrout_and_fleiss() -> None:
    # Shrout & Fleiss 1979, tables 2 and 3: four judges rate six targets.
    # Mean squares: targets 11.24, judges 32.49, residual 1.02.
    targets = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    result = decompose(np.array(targets, dtype=float).T.tolist(), range(6))
    assert 6 * result.interaction == pytest.approx(1.02, abs=0.005)
    assert 6 * (result.seed + result.interaction) == pytest.approx(32.49, abs=0.005)
    assert 24 * result.error_new_images**2 == pytest.approx(11.24, abs=0.005)
    expected = (32.49 + 11.24 - 1.02) / 24
    assert result.standard_error**2 == pytest.approx(expected, abs=0.005)


def test_components_are_right_on_average() -> None:
    runs = [simulated(seed, seeds=3, images=25, between_seeds=0.05) for seed in range(800)]
    # Of a mean over 25 images of three: the image's own half undivided, the queries' over three.
    assert np.mean([r.seed for r in runs]) == pytest.approx(0.05**2, rel=0.15)
    assert np.mean([r.sampling for r in runs]) == pytest.approx(0.3**2 / 25, rel=0.05)
    interaction = (0.3**2 / 2 + 0.3**2 / 2 / 3) / 25
    assert np.mean([r.interaction for r in runs]) == pytest.approx(interaction, rel=0.05)


@pytest.mark.parametrize("between_seeds", [0.0, 0.05, 0.2])
def test_the_interval_holds_for_new_seeds_and_new_images(between_seeds: float) -> None:
    runs = [simulated(seed, between_seeds=between_seeds) for seed in range(400)]
    assert 0.925 <= np.mean([r.low <= 0.5 <= r.high for r in runs]) <= 0.985


def test_neither_error_alone_holds_for_both() -> None:
    runs = [simulated(seed, between_seeds=0.05) for seed in range(400)]
    means, by_seeds, by_images = np.array(
        [[r.mean - 0.5, r.error_new_seeds, r.error_new_images] for r in runs]
    ).T
    assert (np.abs(means) <= 1.96 * by_seeds).mean() < 0.75
    assert (np.abs(means) <= 1.96 * by_images).mean() < 0.92


def test_each_error_is_the_spread_of_repetitions_of_its_kind() -> None:
    # The same 200 queries under many seeds, and one set of seeds on many samples of queries.
    draw = np.random.default_rng(0)
    queries, effects = draw.normal(0, 0.4, size=200), draw.normal(0, 0.1, size=1_200)
    scores = effects[:, None] + queries + draw.normal(0, 0.3, size=(1_200, 200))
    few = [decompose(scores[i : i + 4].tolist(), range(200)) for i in range(0, 1_200, 4)]
    spread = np.std([r.mean for r in few])
    assert math.sqrt(np.mean([r.error_new_seeds**2 for r in few])) == pytest.approx(spread, rel=0.1)
    fixed = draw.normal(0, 0.1, size=4)
    many = [
        decompose(
            (fixed[:, None] + draw.normal(0, 0.4, size=60) + draw.normal(0, 0.3, (4, 60))).tolist(),
            range(60),
        )
        for _ in range(300)
    ]
    spread = np.std([r.mean for r in many])
    by_images = math.sqrt(np.mean([r.error_new_images**2 for r in many]))
    assert by_images == pytest.approx(spread, rel=0.1)


def test_seeds_that_shift_every_query_alike_are_seed_variance_alone() -> None:
    queries = np.array([0.0, 0.5, 1.0, 0.3])
    result = decompose([(queries + shift).tolist() for shift in (0.0, 0.1, 0.2)], "abcd")
    assert result.seed == pytest.approx(0.01)
    assert result.interaction == pytest.approx(0.0)
    assert result.error_new_seeds == pytest.approx(math.sqrt(0.01 / 3))


def test_the_error_is_never_below_that_of_new_images_with_these_seeds() -> None:
    runs = [simulated(seed, between_seeds=0.0, noise=1.0) for seed in range(200)]
    assert any(r.seed < 0 for r in runs)
    assert all(r.standard_error >= r.error_new_images for r in runs)


def test_asking_each_question_ten_times_changes_nothing() -> None:
    scores = [[1.0, 0.0, 0.4, 0.6], [0.9, 0.2, 0.0, 0.6], [0.3, 0.1, 0.8, 1.0]]
    once = decompose(scores, "aabc")
    often = decompose([row * 10 for row in scores], "aabc" * 10)
    assert often.standard_error == pytest.approx(once.standard_error)
    assert often.seed == pytest.approx(once.seed)


def test_one_seed_gives_the_clustered_error_and_nothing_about_seeds() -> None:
    scores, images = [1.0, 0.0, 0.0, 1.0, 0.5], "aabbc"
    result = decompose([scores], images)
    assert result.error_new_images == pytest.approx(clustered_standard_error(scores, images))
    unknown = (result.seed, result.sampling, result.interaction, result.error_new_seeds)
    unknown += (result.standard_error, result.low, result.high)
    assert all(math.isnan(value) for value in unknown)


def test_a_single_image_tells_of_seeds_alone() -> None:
    result = decompose([[1.0, 0.0], [0.0, 0.0]], "aa")
    assert result.error_new_seeds == pytest.approx(0.25)
    assert math.isnan(result.error_new_images)
    assert math.isnan(result.standard_error)


def test_two_seeds_and_two_images_leave_one_degree_of_freedom() -> None:
    for seed in range(50):
        result = simulated(seed, seeds=2, images=2, between_seeds=0.0)
        assert result.degrees_of_freedom >= 1
        assert result.low < result.mean < result.high


def test_scores_without_any_spread_have_no_error() -> None:
    result = decompose([[1.0, 1.0]] * 3, "ab")
    assert (result.standard_error, result.low, result.high) == (0.0, 1.0, 1.0)


def test_rows_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="scores: expected at least one seed, got none"):
        decompose([], "ab")
    with pytest.raises(ValueError, match=r"scores\[1\]: expected 2, one a query, got 3"):
        decompose([[0.0, 1.0], [0.0, 1.0, 1.0]], "ab")
