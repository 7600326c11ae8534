"""Scores of answers and decisions against enumeration and literal values."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from flamingo.evaluation.metrics.classification import (
    accuracy,
    exact_match,
    f1,
    precision_recall,
    relaxed_match,
    roc_auc,
    yes_ratio,
)


def test_exact_match_ignores_case_and_space() -> None:
    assert exact_match(" Yes\n", "yes") == 1.0
    assert exact_match("yes.", "yes") == 0.0


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1.0), ("95", "100", 1.0), ("105.1", "100", 0.0), ("94.9", "100", 0.0),
        ("-105", "-100", 1.0), ("100", "-100", 0.0),
        ("5%", "0.05", 1.0), ("5%", "5", 0.0), ("51%", "50%", 1.0),
        ("0", "0.0", 1.0), ("0.001", "0", 0.0),
        ("1,000", "1000", 0.0), ("1,000", "1,000", 1.0),
        ("Blue ", "blue", 1.0), ("blues", "blue", 0.0), ("3", "three", 0.0), ("nan", "NaN", 1.0),
        ("2019", "1920", 0.0), ("", "", 1.0), ("%", "%", 1.0),
    ],
)  # fmt: skip
def test_relaxed_match(prediction: str, answer: str, expected: float) -> None:
    assert relaxed_match(prediction, answer) == expected


def test_relaxed_match_is_relative_to_the_answer() -> None:
    assert relaxed_match("95.1", "100", tolerance=0.05) == 1.0
    assert relaxed_match("100", "95.1", tolerance=0.05) == 0.0
    assert relaxed_match("120", "100", tolerance=0.2) == 1.0


def test_accuracy_and_yes_ratio() -> None:
    assert accuracy(["a", "b", "c", "d"], ["a", "x", "c", "y"]) == 0.5
    assert yes_ratio([1, 1, 1, 0]) == 0.75
    assert yes_ratio([True, False]) == 0.5


def test_f1_by_hand() -> None:
    predictions, labels = [1, 1, 1, 0, 0], [1, 0, 0, 1, 0]
    assert precision_recall(predictions, labels) == (pytest.approx(1 / 3), 0.5)
    assert f1(predictions, labels) == pytest.approx(2 * 1 / (2 * 1 + 2 + 1))
    assert f1([1, 0], [1, 0]) == 1.0


def test_f1_without_a_hit_is_zero() -> None:
    assert f1([0, 0], [1, 0]) == f1([1, 0], [0, 1]) == f1([0, 0], [0, 0]) == 0.0


def by_pairs(scores: Sequence[float], labels: Sequence[int]) -> float:
    pairs = [
        (p > n) + (p == n) / 2
        for p, positive in zip(scores, labels, strict=True)
        for n, other in zip(scores, labels, strict=True)
        if positive and not other
    ]
    return sum(pairs) / len(pairs)


def by_trapezoids(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The area under (false positive rate, true positive rate), one threshold after the other."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores), reverse=True):
        accepted = [label for s, label in zip(scores, labels, strict=True) if s >= threshold]
        true = sum(accepted) / sum(labels)
        points.append(((len(accepted) - sum(accepted)) / (len(labels) - sum(labels)), true))
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


def test_roc_auc_agrees_with_every_pair_and_with_the_area() -> None:
    draw = random.Random(0)
    for _ in range(200):
        size = draw.randrange(2, 30)
        levels = draw.choice([2, 5, 1000])
        scores = [draw.randrange(levels) / levels for _ in range(size)]
        labels = [1, 0, *(draw.randrange(2) for _ in range(size - 2))]
        assert roc_auc(scores, labels) == pytest.approx(by_pairs(scores, labels))
        assert roc_auc(scores, labels) == pytest.approx(by_trapezoids(scores, labels))


def test_roc_auc_by_hand() -> None:
    assert roc_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert roc_auc([0.5] * 4, [0, 1, 0, 1]) == 0.5
    assert roc_auc([-math.inf, 0.0], [True, False]) == 0.0


def test_what_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected positives and negatives, got 2 and 0"):
        roc_auc([0.1, 0.2], [1, 1])
    with pytest.raises(ValueError, match="expected numbers, got NaN"):
        roc_auc([math.nan, 0.2], [1, 0])
    with pytest.raises(ValueError, match="expected one for each of 1 predictions, got 2"):
        accuracy(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="expected at least one"):
        accuracy([], [])
    with pytest.raises(ValueError, match="expected at least one"):
        yes_ratio([])
    with pytest.raises(ValueError, match=r"labels: expected 0 and 1, got \[-1\]"):
        f1([1, 0], [1, -1])
    with pytest.raises(ValueError, match=r"predictions: expected 0 and 1, got \[2\]"):
        yes_ratio([2])
