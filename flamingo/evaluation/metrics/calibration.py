"""Does an answer of confidence p turn out right in a share p of the cases?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 15
"""As in Guo et al. 2017, whose numbers are cited most. Compare runs with equal bins only."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers with a confidence in (low, high] (the first bin has 0 too): how many, their mean
    confidence and their mean score."""

    low: float
    high: float
    count: int
    confidence: float
    score: float

    @property
    def gap(self) -> float:
        """How much too sure the answers are; negative if they are better than they believe."""
        return self.confidence - self.score


def reliability(
    confidences: Sequence[float], scores: Sequence[float], bins: int = BINS
) -> list[Bin]:
    """The points of a reliability diagram: ``bins`` of equal width, without the empty ones.

    ``confidences`` is the probability of the chosen answer (top-label), ``scores`` its score: 0 or
    1, or a share such as the VQA accuracy. Raises ``ValueError`` for none, for unequal lengths, and
    for values outside [0, 1].
    """
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if len(confidences) != len(scores):
        raise ValueError(
            f"scores: expected one for each of {len(confidences)} confidences, got {len(scores)}"
        )
    if not scores:
        raise ValueError("confidences: expected at least one, got none")
    for name, values in (("confidences", confidences), ("scores", scores)):
        if outside := [value for value in values if not 0 <= value <= 1]:
            raise ValueError(f"{name}: expected values in [0, 1], got {outside[:3]}")
    # Compared with the edges themselves: 0.7 * 10 is above 7, and would land one bin too high.
    edges = [upper / bins for upper in range(1, bins + 1)]
    members: list[list[int]] = [[] for _ in edges]
    for index, confidence in enumerate(confidences):
        members[bisect_left(edges, confidence)].append(index)
    return [
        Bin(
            low=number / bins,
            high=edges[number],
            count=len(own),
            confidence=sum(confidences[i] for i in own) / len(own),
            score=sum(scores[i] for i in own) / len(own),
        )
        for number, own in enumerate(members)
        if own
    ]


def expected_calibration_error(
    confidences: Sequence[float], scores: Sequence[float], bins: int = BINS
) -> float:
    """ECE of top-label confidences (Naeini et al. 2015; Guo et al. 2017, equation 3):

        sum_b n_b / n |mean confidence in b - mean score in b|

    in [0, 1], over bins of equal width. It is biased upwards where bins are thin, so that models
    are compared on the same number of answers. Raises as :func:`reliability` does.
    """
    points = reliability(confidences, scores, bins)
    return sum(point.count * abs(point.gap) for point in points) / len(scores)
