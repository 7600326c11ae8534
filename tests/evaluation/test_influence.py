"""Linearised standard errors against the bootstrap and against those of a mean."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from flamingo.evaluation import influence
from flamingo.evaluation.influence import Influence
from flamingo.evaluation.metrics.classification import f1, precision_recall, roc_auc
from flamingo.evaluation.points import over_draws
from flamingo.evaluation.resampling import bootstrap_metric
from flamingo.evaluation.statistics import (
    clustered_standard_error,
    estimate,
    paired_difference,
)
from flamingo.evaluation.variance import decompose


def data(seed: int, images: int = 150, each: int = 3):
    """Labels, answers and scores that go together, ``each`` alike queries an image."""
    draw = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(images), each).tolist()
    shift = np.repeat(draw.normal(size=images), each)
    labels = (draw.random(images * each) < 0.4).astype(float)
    scores = np.round(labels + shift + draw.normal(size=images * each), 1)  # with ties
    return clusters, labels, (scores > 0.7).astype(float), scores


def test_of_a_mean_it_is_the_clustered_standard_error() -> None:
    clusters, labels, _, _ = data(0)
    found = influence.ratio(labels, np.ones_like(labels))
    expected = clustered_standard_error(labels.tolist(), clusters)
    assert found.standard_error(clusters) == pytest.approx(expected, rel=1e-12)
    assert found.estimate(clusters) == pytest.approx(estimate(labels.tolist(), clusters))


@pytest.mark.parametrize("seed", [1, 2])
def test_decisions_have_the_value_of_their_metric_and_the_error_of_the_bootstrap(seed) -> None:
    clusters, labels, said, _ = data(seed)
    whole, answers = labels.astype(int).tolist(), said.astype(int).tolist()

    def of(metric):
        return lambda q: metric([answers[i] for i in q], [whole[i] for i in q])

    cases = [
        (influence.ratio(2 * said * labels, said + labels), of(f1)),
        (influence.ratio(said * labels, said), of(lambda a, b: precision_recall(a, b)[0])),
        (influence.ratio(said * labels, labels), of(lambda a, b: precision_recall(a, b)[1])),
    ]
    for found, metric in cases:
        resampled = bootstrap_metric(metric, clusters, draws=600)
        assert found.value == pytest.approx(resampled.value, rel=1e-12)
        error = found.standard_error(clusters)
        assert error == pytest.approx(resampled.standard_error, rel=0.1)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_area_has_its_value_and_the_error_of_the_bootstrap(seed: int) -> None:
    clusters, labels, _, scores = data(seed)
    found = influence.roc_auc(scores, labels.astype(bool).tolist())
    whole = labels.astype(int).tolist()
    resampled = bootstrap_metric(
        lambda q: roc_auc([scores[i] for i in q], [whole[i] for i in q]), clusters, draws=600
    )
    assert found.value == pytest.approx(roc_auc(scores.tolist(), whole), rel=1e-12)
    error = found.standard_error(clusters)
    assert error == pytest.approx(resampled.standard_error, rel=0.1)
    assert found.parts.sum() == pytest.approx(0, abs=1e-12)


def test_the_difference_of_two_areas_is_paired() -> None:
    clusters, labels, said, scores = data(3)
    right = labels.astype(bool).tolist()
    first, second = influence.roc_auc(scores, right), influence.roc_auc(scores + 0.1 * said, right)
    apart = math.hypot(first.standard_error(clusters), second.standard_error(clusters))
    own = Influence(second.value - first.value, second.parts - first.parts)
    difference = paired_difference(second.scores.tolist(), first.scores.tolist(), clusters)
    assert difference.mean == pytest.approx(own.value)
    assert difference.standard_error == pytest.approx(own.standard_error(clusters), rel=1e-9)
    assert difference.standard_error < apart / 4, "two alike runs"


def test_several_draws_are_decomposed_as_those_of_a_mean_are() -> None:
    clusters, labels, said, scores = data(4)
    right = labels.astype(bool).tolist()
    # Of a mean the scores are the query's own, so that nothing but the metric differs.
    draws = [said, 1 - said, (scores > 0).astype(float)]
    found = over_draws([influence.ratio(own, np.ones_like(own)) for own in draws], clusters)
    expected = asdict(decompose([own.tolist() for own in draws], clusters))
    assert found == pytest.approx(expected, rel=1e-9)
    # The same draw thrice: nothing of other draws is to be seen, and the images' error is its own.
    area = influence.roc_auc(scores, right)
    thrice = over_draws([area] * 3, clusters)
    assert thrice["mean"] == pytest.approx(area.value)
    assert thrice["error_new_seeds"] == pytest.approx(0, abs=1e-12)
    assert thrice["standard_error"] == pytest.approx(area.standard_error(clusters))


def test_the_interval_of_two_draws_that_differ_is_student_s() -> None:
    clusters, labels, _, scores = data(5)
    right = labels.astype(bool).tolist()
    noise = np.random.default_rng(5).normal(size=len(scores))
    areas = [influence.roc_auc(scores + k * noise, right) for k in (0.0, 4.0)]
    found = over_draws(areas, clusters)
    apart = abs(areas[0].value - areas[1].value)
    assert found["error_new_seeds"] == pytest.approx(apart / 2)
    # Far apart: about one degree of freedom, whose quantile is 12.7 where the normal's is 2.
    assert (found["high"] - found["low"]) / 2 > 5 * found["standard_error"]


def test_what_is_undefined_is_zero_or_nan_as_its_metric_is() -> None:
    none, ones = np.zeros(3), np.ones(3)
    assert influence.ratio(none, none).value == 0.0
    area = influence.roc_auc(np.arange(3.0), [True, True, True])
    assert math.isnan(area.value)
    assert math.isnan(area.estimate(list("abc")).low)
    assert math.isnan(influence.ratio(ones, ones).standard_error(list("aaa")))
