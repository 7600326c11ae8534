"""Secondary metrics against the metric functions and literal values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from flamingo.choices import Condition, Metric
from flamingo.evaluation.metrics.caption import bleu_4, rouge_l
from flamingo.evaluation.metrics.classification import f1, precision_recall, roc_auc, yes_ratio
from flamingo.evaluation.metrics.vqa import vqa_accuracy
from flamingo.evaluation.points import Point, points
from flamingo.evaluation.secondary import SECONDARY_LABELS, calibration_bins, secondary
from flamingo.evaluation.statistics import clustered_standard_error

from . import toys


def points_of(benchmark, answerer=toys.noisy) -> list[Point]:
    return points(toys.outcome([benchmark], [Condition.real], answerer))


def every(point: Point) -> Sequence[int]:
    return range(len(point.draws[0].predictions))


def test_yes_or_no_has_the_metrics_of_its_decisions() -> None:
    point = points_of(toys.yes_no(shots=[2]))[0]
    found = secondary(point, every(point))
    own = point.draws[0].predictions
    said = [int(p.answer == "yes") for p in own]
    right = [int(p.target == "yes") for p in own]
    chances = [p.probability if p.answer == "yes" else 1 - p.probability for p in own]
    assert 0 < sum(said) < 12, "both are said"
    expected = {
        "accuracy": sum(a == b for a, b in zip(said, right, strict=True)) / 12,
        "precision": precision_recall(said, right)[0],
        "recall": precision_recall(said, right)[1],
        "f1": f1(said, right),
        "yes_ratio": yes_ratio(said),
        "roc_auc": roc_auc(chances, right),
    }
    assert {name: found[name]["mean"] for name in expected} == pytest.approx(expected)
    assert all(
        found[name]["low"] <= found[name]["mean"] <= found[name]["high"] for name in expected
    )
    assert set(found) == {*expected, "ece"} <= set(SECONDARY_LABELS)


def test_over_several_draws_they_are_means_over_draws() -> None:
    point = points_of(toys.yes_no((0, 1, 2), shots=[2]))[0]
    found = secondary(point, every(point))
    each = [
        f1([int(p.answer == "yes") for p in draw.predictions],
           [int(p.target == "yes") for p in draw.predictions])
        for draw in point.draws
    ]  # fmt: skip
    assert len(set(each)) > 1
    assert found["f1"]["mean"] == pytest.approx(sum(each) / 3)

    point = points_of(toys.captions((0, 1, 2), shots=[2]))[0]
    each = [
        bleu_4({p.query: p.answer for p in draw.predictions},
               {p.query: p.references for p in draw.predictions})[0]
        for draw in point.draws
    ]  # fmt: skip
    assert len(set(each)) > 1
    found = secondary(point, every(point))
    assert found["bleu_4"]["mean"] == pytest.approx(sum(each) / 3)


def test_intervals_are_clustered_by_image() -> None:
    (point,) = points_of(toys.yes_no(shots=[2]))
    (draw,) = point.draws
    own = [replace(p, cluster=f"image {i // 3}") for i, p in enumerate(draw.predictions)]
    found = secondary(replace(point, draws=[replace(draw, predictions=own)]), every(point))
    right = [float(p.answer == p.target) for p in own]
    expected = clustered_standard_error(right, [p.cluster for p in own])
    assert found["accuracy"]["standard_error"] == pytest.approx(expected)

    (point,) = points_of(toys.vqa(shots=[0]))
    (draw,) = point.draws
    assert draw.scores is not None and len(set(draw.clusters)) == len(draw.scores) / 2
    expected = clustered_standard_error(draw.scores, draw.clusters)
    found = secondary(point, every(point))
    assert found["vqa_accuracy"]["standard_error"] == pytest.approx(expected)


def test_captions_have_bleu_and_rouge_and_no_calibration() -> None:
    point = points_of(toys.captions(shots=[2]))[0]
    found = secondary(point, every(point))
    own, episodes = point.draws[0].predictions, point.draws[0].cell.episodes
    answers = {p.query: p.answer for p in own}
    references = {e.query.id: e.references for e in episodes}
    assert found["bleu_4"]["mean"] == pytest.approx(bleu_4(answers, references)[0])
    assert found["rouge_l"]["mean"] == pytest.approx(rouge_l(answers, references)[0])
    assert set(found) == {"bleu_4", "rouge_l"}
    assert calibration_bins(point, every(point)) == []


def test_vqa_has_both_modes_of_normalisation() -> None:
    def answerer(condition, episode, draw: random.Random) -> tuple[str, float]:
        return f"The {episode.references[0]}.", 0.5

    (point,) = points_of(toys.vqa(shots=[0]), answerer)
    (draw,) = point.draws
    # Half of the questions have annotators who all agree: there the official mode compares as is.
    episodes = [
        replace(e, references=("red",) * 10) if i % 2 else e
        for i, e in enumerate(draw.cell.episodes)
    ]
    draw = replace(draw, cell=replace(draw.cell, episodes=episodes))
    found = secondary(replace(point, draws=[draw]), every(point))
    answers, references = [p.answer for p in draw.predictions], [e.references for e in episodes]
    for name, mode in (("vqa_accuracy", "official"), ("vqa_accuracy_always", "always")):
        scores = [vqa_accuracy(a, r, mode) for a, r in zip(answers, references, strict=True)]
        assert found[name]["mean"] == pytest.approx(sum(scores) / len(scores))
    assert found["vqa_accuracy"]["mean"] < found["vqa_accuracy_always"]["mean"]


def test_calibration_of_open_answers_counted_by_hand() -> None:
    def answerer(condition, episode, draw: random.Random) -> tuple[str, float]:
        if episode.group == "colour":
            return episode.references[0], 0.95  # right
        return "nothing", 0.25

    point = points_of(toys.vqa(shots=[0]), answerer)[0]
    assert secondary(point, every(point))["ece"]["mean"] == pytest.approx((0.05 + 0.25) / 2)
    bins = [
        (b["count"], b["confidence"], b["score"]) for b in calibration_bins(point, every(point))
    ]
    assert bins == [(12, pytest.approx(0.25), 0.0), (12, pytest.approx(0.95), 1.0)]


def test_ranked_by_roc_auc_a_meme_is_right_or_wrong_for_its_calibration() -> None:
    point = points_of(toys.yes_no(shots=[2], metric=None))[0]
    assert point.benchmark.task.metric is Metric.roc_auc
    found = secondary(point, every(point))
    assert 0 <= found["ece"]["mean"] <= 1
    assert found["roc_auc"]["mean"] is not None
    yes = [i for i, p in enumerate(point.draws[0].predictions) if p.target == "yes"]
    assert secondary(point, yes)["roc_auc"]["mean"] is None, "one kind of labels orders nothing"
