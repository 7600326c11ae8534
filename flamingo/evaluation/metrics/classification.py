"""Right or wrong, yes or no: scores of single answers, and of a set of binary decisions.

A few lines each, where scikit-learn would bring scipy along.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence


def exact_match(prediction: str, answer: str) -> float:
    """1 if both are the same up to case and surrounding space, else 0 (GQA, CLEVR)."""
    return float(prediction.strip().lower() == answer.strip().lower())


def relaxed_match(prediction: str, answer: str, tolerance: float = 0.05) -> float:
    """1 if both are numbers at most ``tolerance`` of the answer apart, or else an exact match.

    ChartQA's relaxed accuracy (Masry et al. 2022, section 5.1, after Methani et al. 2020). "5%" is
    the number 0.05; "1,000" is no number, as in the common implementations. Where the answer is 0
    nothing but 0 is right (those compare the texts then, so that "0.0" is wrong).
    """
    predicted, expected = _number(prediction), _number(answer)
    if predicted is None or expected is None:
        return exact_match(prediction, answer)
    return float(abs(predicted - expected) <= tolerance * abs(expected))


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def accuracy(predictions: Sequence[Hashable], labels: Sequence[Hashable]) -> float:
    """The share of predictions that equal their label."""
    _check(predictions, labels)
    return sum(a == b for a, b in zip(predictions, labels, strict=True)) / len(labels)


def precision_recall(predictions: Sequence[int], labels: Sequence[int]) -> tuple[float, float]:
    """Precision and recall of the positive class; 0 where nothing is predicted, or is, positive.

    1 (or ``True``) is positive, 0 negative; all else is a ``ValueError``, as in :func:`f1`,
    :func:`yes_ratio` and :func:`roc_auc`.
    """
    _check(predictions, labels)
    _check_binary("predictions", predictions)
    _check_binary("labels", labels)
    hits = sum(a * b for a, b in zip(predictions, labels, strict=True))
    return hits / max(sum(predictions), 1), hits / max(sum(labels), 1)


def f1(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Harmonic mean of precision and recall of the positive class; 0 without a true positive."""
    precision, recall = precision_recall(predictions, labels)
    return 2 * precision * recall / (precision + recall) if precision and recall else 0.0


def yes_ratio(predictions: Sequence[int]) -> float:
    """The share of positive predictions (POPE: half of its answers are yes; more is a bias)."""
    if not predictions:
        raise ValueError("predictions: expected at least one, got none")
    _check_binary("predictions", predictions)
    return sum(predictions) / len(predictions)


def roc_auc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """The probability that a positive scores above a negative, ties counting half (Hateful Memes).

    The Mann-Whitney statistic over its maximum; equal to the area under the ROC curve by the
    trapezoidal rule. ``scores`` need an order, not a scale. Raises ``ValueError`` if there are not
    both positives and negatives, or for a score that is NaN.
    """
    _check(scores, labels)
    _check_binary("labels", labels)
    if any(math.isnan(score) for score in scores):
        raise ValueError("scores: expected numbers, got NaN")
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise ValueError(
            f"labels: expected positives and negatives, got {positives} and {negatives}"
        )
    positive = Counter(s for s, label in zip(scores, labels, strict=True) if label)
    negative = Counter(s for s, label in zip(scores, labels, strict=True) if not label)
    below, twice = 0, 0  # negatives with a lower score; twice the pairs won (ties once)
    for score in sorted(positive.keys() | negative.keys()):
        twice += positive[score] * (2 * below + negative[score])
        below += negative[score]
    return twice / (2 * positives * negatives)


def _check(predictions: Sequence[object], labels: Sequence[object]) -> None:
    if len(predictions) != len(labels):
        raise ValueError(
            f"labels: expected one for each of {len(predictions)} predictions, got {len(labels)}"
        )
    if not labels:
        raise ValueError("predictions: expected at least one, got none")


def _check_binary(name: str, values: Sequence[int]) -> None:
    if others := set(values) - {0, 1}:
        raise ValueError(f"{name}: expected 0 and 1, got {sorted(others)[:3]}")
