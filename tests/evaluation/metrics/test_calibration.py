"""Calibration by hand, by enumeration, and on answers whose calibration is known."""

from __future__ import annotations

import math
import random

import pytest

from flamingo.evaluation.metrics.calibration import expected_calibration_error, reliability


def test_calibration_by_hand() -> None:
    confidences, scores = [0.55, 0.6, 0.95, 1.0], [1.0, 0.0, 1.0, 1.0]
    low, high = reliability(confidences, scores, bins=10)
    assert (low.low, low.high, low.count) == (0.5, 0.6, 2)
    assert (low.confidence, low.score) == (pytest.approx(0.575), 0.5)
    assert (high.count, high.gap) == (2, pytest.approx(-0.025))
    error = expected_calibration_error(confidences, scores, bins=10)
    assert error == pytest.approx(0.5 * 0.075 + 0.5 * 0.025)


@pytest.mark.parametrize("bins", [1, 3, 10, 15, 100])
def test_an_edge_belongs_to_the_bin_below(bins: int) -> None:
    for number in range(1, bins + 1):
        (only,) = reliability([number / bins], [1.0], bins)
        assert (only.low, only.high) == ((number - 1) / bins, number / bins)
    (zero,) = reliability([0.0], [1.0], bins)
    assert zero.low == 0.0


def test_it_agrees_with_the_definition() -> None:
    draw = random.Random(0)
    confidences = [draw.random() for _ in range(500)]
    scores = [draw.choice([0.0, 0.3, 0.6, 0.9, 1.0]) for _ in confidences]
    for bins in (1, 7, 15):
        expected = 0.0
        for b in range(bins):
            own = [(c, s) for c, s in zip(confidences, scores, strict=True)
                   if b / bins < c <= (b + 1) / bins]  # fmt: skip
            expected += abs(sum(c - s for c, s in own)) / len(confidences)
        assert expected_calibration_error(confidences, scores, bins) == pytest.approx(expected)


def test_honest_confidences_have_little_error_and_false_ones_have_their_gap() -> None:
    draw = random.Random(1)
    confidences = [draw.uniform(0.2, 0.8) for _ in range(20_000)]
    honest = [float(draw.random() < c) for c in confidences]
    boastful = [float(draw.random() < c - 0.2) for c in confidences]
    assert expected_calibration_error(confidences, honest) < 0.02
    assert expected_calibration_error(confidences, boastful) == pytest.approx(0.2, abs=0.01)


def test_what_is_no_probability_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"confidences: expected values in \[0, 1\], got \[1.5\]"):
        expected_calibration_error([1.5], [1.0])
    with pytest.raises(ValueError, match="confidences"):
        expected_calibration_error([math.nan], [1.0])
    with pytest.raises(ValueError, match="scores: expected values"):
        expected_calibration_error([0.5], [-1.0])
    with pytest.raises(ValueError, match="expected at least one, got none"):
        expected_calibration_error([], [])
    with pytest.raises(ValueError, match="scores: expected one for each of 2"):
        expected_calibration_error([0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match="bins: expected at least 1, got 0"):
        expected_calibration_error([0.5], [1.0], bins=0)
