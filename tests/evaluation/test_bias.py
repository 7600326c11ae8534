"""Bias and grounding on answers counted by hand, and on models that copy by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flamingo.choices import Metric
from flamingo.evaluation.baselines import last, majority
from flamingo.evaluation.bias import (
    ContextRule,
    context_rate,
    flip_rate,
    follows,
    recency,
)
from flamingo.evaluation.metrics.scores import expected_scores
from flamingo.evaluation.prompts import Episode, Item
from flamingo.testing import synthetic_images
from flamingo.types import Media

IMAGE = Media((synthetic_images(1)[0],))


def test_rules_on_one_query() -> None:
    shown = ["yes", "no", "no", "red"]
    expected = {
        ContextRule.copy_last: {"red": 1.0, "yes": 0.0, "no": 0.0, "blue": 0.0},
        ContextRule.majority_label: {"red": 0.0, "yes": 0.0, "no": 1.0, "blue": 0.0},
        ContextRule.among_demonstrations: {"red": 1.0, "yes": 1.0, "no": 1.0, "blue": 0.0},
    }
    for rule, by_answer in expected.items():
        assert {answer: follows(rule, answer, shown) for answer in by_answer} == by_answer


def test_equally_frequent_answers_share_the_majority() -> None:
    shown = ["a", "b", "a", "b", "c"]
    assert follows(ContextRule.majority_label, "a", shown) == 0.5
    assert follows(ContextRule.majority_label, "c", shown) == 0.0
    # All different: nothing is in the majority, and the rate of a copying model stays at chance.
    assert follows(ContextRule.majority_label, "z", ["x", "y", "z"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(20))
def test_rules_agree_with_the_baselines_of_the_same_name(seed: int) -> None:
    draw = np.random.default_rng(seed)
    answers = [str(answer) for answer in draw.choice(["Yes", "no", "red", "2 "], size=5)]
    items = tuple(Item(str(i), IMAGE, "", answer) for i, answer in enumerate(answers))
    for target in ("Yes", "no", "red", "2 "):
        episode = Episode(Item("q", IMAGE, "", target), items, shots=5)
        for rule, baseline in (
            (ContextRule.majority_label, majority),
            (ContextRule.copy_last, last),
        ):
            (worth,) = expected_scores(Metric.exact_match, [baseline(episode)], [[target]])
            assert follows(rule, target, answers) == worth


PREDICTIONS = ["yes", "no", "red", "no"]
TARGETS = ["yes", "yes", "blue", "yes"]
SHOWN = [["no", "yes"], ["yes", "no"], ["blue", "green"], ["red", "no"]]


def test_rates_counted_by_hand() -> None:
    copy = context_rate(ContextRule.copy_last, PREDICTIONS, TARGETS, SHOWN, "abcd")
    assert (copy.rate.mean, copy.right.mean, copy.excess.mean) == (0.75, 0.25, 0.5)
    among = context_rate(ContextRule.among_demonstrations, PREDICTIONS, TARGETS, SHOWN, "abcd")
    assert (among.rate.mean, among.right.mean, among.excess.mean) == (0.75, 0.75, 0.0)
    label = context_rate(ContextRule.majority_label, PREDICTIONS, TARGETS, SHOWN, "abcd")
    assert (label.rate.mean, label.right.mean) == (0.375, 0.375)
    # Copies 1 1 0 1 less right 1 0 0 0: differences 0 1 0 1, sd sqrt(1/3).
    assert copy.excess.standard_error == pytest.approx(math.sqrt(1 / 3) / 2)


def test_rates_are_clustered_by_image() -> None:
    apart = context_rate(ContextRule.copy_last, PREDICTIONS, TARGETS, SHOWN, "abcd").rate
    together = context_rate(
        ContextRule.copy_last, PREDICTIONS * 5, TARGETS * 5, SHOWN * 5, "abcd" * 5
    ).rate
    assert together.standard_error == pytest.approx(apart.standard_error)
    assert (together.n, together.clusters) == (20, 4)


def contexts(count: int) -> tuple[list[list[str]], list[str]]:
    draw = np.random.default_rng(0)
    shown = [[str(a) for a in draw.choice(["red", "blue", "green"], size=4)] for _ in range(count)]
    return shown, [str(a) for a in draw.choice(["red", "blue", "green"], size=count)]


def test_a_perfect_model_has_no_excess_and_a_copying_one_has() -> None:
    shown, targets = contexts(600)
    for rule in ContextRule:
        perfect = context_rate(rule, targets, targets, shown, range(600))
        assert perfect.excess.mean == 0
        assert perfect.rate.mean > 0.2
    copies = [answers[-1] for answers in shown]
    result = context_rate(ContextRule.copy_last, copies, targets, shown, range(600))
    assert result.rate.mean == 1.0
    assert result.right.mean == pytest.approx(1 / 3, abs=0.06)
    assert result.excess.low > 0.5


def test_recency_sees_the_last_place_alone() -> None:
    shown, targets = contexts(600)
    draw = np.random.default_rng(1)
    anywhere = [answers[int(draw.integers(4))] for answers in shown]
    for indifferent in (targets, anywhere):
        result = recency(indifferent, shown, range(600))
        assert result.low < 0 < result.high
    assert recency([answers[-1] for answers in shown], shown, range(600)).low > 0.5
    assert recency([answers[0] for answers in shown], shown, range(600)).high < -0.1


def test_recency_counted_by_hand() -> None:
    # Last 1, others 1 of 2: 0.5. Last 0, others 2 of 2: -1.
    result = recency(["a", "b"], [["a", "c", "a"], ["b", "b", "a"]], "xy")
    assert result.mean == -0.25


def test_flips_are_answers_that_change() -> None:
    result = flip_rate(["yes", "no", "Red", "two"], ["yes", "yes", " red ", "2"], "aabb")
    assert (result.mean, result.n, result.clusters) == (0.5, 4, 2)
    assert flip_rate(["yes"], ["yes"], "a").mean == 0.0


def test_the_benchmark_says_what_counts_as_the_same_answer() -> None:
    def numbers(text: str) -> str:
        return {"two": "2"}.get(text, text)

    assert flip_rate(["two"], ["2"], "a").mean == 1.0
    assert flip_rate(["two"], ["2"], "a", numbers).mean == 0.0
    rate = context_rate(ContextRule.copy_last, ["two"], ["3"], [["2"]], "a", numbers)
    assert (rate.rate.mean, rate.right.mean) == (1.0, 0.0)
    assert recency(["two"], [["3", "2"]], "a", numbers).mean == 1.0


def test_queries_without_an_answer_to_compare_are_errors() -> None:
    with pytest.raises(ValueError, match="demonstrations: expected at least one"):
        context_rate(ContextRule.copy_last, ["a"], ["a"], [[]], "x")
    with pytest.raises(ValueError, match=r"demonstrations\[1\]: expected at least two answers"):
        recency(["a", "b"], [["a", "b"], ["b"]], "xy")
    with pytest.raises(ValueError, match="targets: expected 2, one a query, got 1"):
        context_rate(ContextRule.copy_last, ["a", "b"], ["a"], [["a"], ["b"]], "xy")
    with pytest.raises(ValueError, match="second: expected 2, one a query, got 1"):
        flip_rate(["a", "b"], ["a"], "xy")
    with pytest.raises(ValueError, match="at least one"):
        flip_rate([], [], [])
