"""Which single predictions of two arms are shown side by side, and what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from flamingo.comparison.samples import Sample
from flamingo.evaluation.metrics.scores import right
from flamingo.evaluation.predictions import Prediction


class Agreement(Enum):
    """Which of two arms answered rightly."""

    first = "only A right"
    second = "only B right"
    both = "both right"
    neither = "both wrong"


@dataclass(frozen=True, slots=True)
class Example:
    """Two predictions of one query, with their scores."""

    agreement: Agreement
    first: Prediction
    second: Prediction
    first_score: float
    second_score: float


@dataclass(frozen=True)
class Cell:
    """A pair of arms at one benchmark and shot count: the ``examples`` that are shown, and how
    many queries there are of each agreement. Samples are of the same queries."""

    first: Sample
    second: Sample
    examples: Sequence[Example]
    totals: dict[Agreement, int]

    @property
    def left_out(self) -> int:
        return sum(self.totals.values()) - len(self.examples)


def choose(first: Sample, second: Sample, limit: int) -> Cell:
    """At most ``limit`` queries, of the first draw of demonstrations.

    Those where one arm alone is right come first, then those with different answers, then the
    others; within each in the order of their ids.
    """
    metric = first.facts.metric
    every = [
        Example(_agreement(right(metric, a), right(metric, b)), one, other, a, b)
        for one, other, a, b in zip(
            first.draws[0],
            second.draws[0],
            first.scores[0].tolist(),
            second.scores[0].tolist(),
            strict=True,
        )
    ]
    counts = Counter(example.agreement for example in every)
    ranked = sorted(every, key=_interest)
    totals = {agreement: counts[agreement] for agreement in Agreement}
    return Cell(first, second, ranked[:limit], totals)


def _agreement(first: bool, second: bool) -> Agreement:
    if first == second:
        return Agreement.both if first else Agreement.neither
    return Agreement.first if first else Agreement.second


def _interest(example: Example) -> int:
    if example.agreement in (Agreement.first, Agreement.second):
        return 0
    return 1 if example.first.answer != example.second.answer else 2
