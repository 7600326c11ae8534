"""What an answer is worth under each metric, and the interval of what is no mean."""

from __future__ import annotations

import random

import pytest

from flamingo.choices import Metric
from flamingo.evaluation.metrics.scores import item_score, item_scores, measure

RACE = ["race"] * 2 + ["ride"] * 8


@pytest.mark.parametrize(
    ("metric", "answer", "references", "score"),
    [
        (Metric.exact_match, " Blue", ["red", "blue"], 1.0),
        (Metric.exact_match, "blue.", ["red", "blue"], 0.0),
        (Metric.roc_auc, "yes", ["yes"], 1.0),
        (Metric.relaxed_match, "104", ["7", "100"], 1.0),
        (Metric.relaxed_match, "106", ["7", "100"], 0.0),
        (Metric.vqa_accuracy, "A race!", RACE, 0.6),
        (Metric.vqa_accuracy, "racing", RACE, 0.0),
        (Metric.vqa_accuracy, "A race!", ["race"] * 10, 0.0),
        (Metric.vqa_accuracy_always, "A race!", ["race"] * 10, 1.0),
        (Metric.ok_vqa_accuracy, "Racing", RACE, 0.6),
        (Metric.ok_vqa_accuracy, "race", ["racing"] * 10, 1.0),
        (Metric.ok_vqa_accuracy, "A race!", ["racing"] * 10, 0.0),
        (Metric.ok_vqa_accuracy_always, "The races!", ["racing"] * 10, 1.0),
    ],
)
def test_each_metric_scores_by_its_own_rule(metric, answer, references, score) -> None:
    assert item_score(metric, answer, references) == pytest.approx(score)
    assert item_scores(metric, [answer, references[0]], [references] * 2)[0] == pytest.approx(score)


def test_the_interval_of_roc_auc_is_over_images() -> None:
    draw = random.Random(0)
    labels = [i % 2 for i in range(30)]
    positive = [label + draw.gauss(0, 1) for label in labels]
    images = [i // 2 for i in range(30)]
    once = measure(Metric.roc_auc, [], images, positive, labels)
    often = measure(Metric.roc_auc, [], images * 5, positive * 5, labels * 5)
    assert 0.5 < once.mean < 1 and once.standard_error > 0
    assert (often.n, often.clusters) == (150, 15)
    told = [(own.mean, own.standard_error, own.low, own.high) for own in (once, often)]
    assert told[1] == pytest.approx(told[0]), "asked five times, nobody knows more"
