"""The model against its controls on the same queries, and how small an effect that can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from flamingo.choices import Condition, Metric
from flamingo.evaluation.influence import roc_auc
from flamingo.evaluation.metrics.scores import POSITIVE, item_scores
from flamingo.evaluation.points import (
    Draw,
    Point,
    Row,
    positive,
    result,
    row,
    without_nan,
)
from flamingo.evaluation.power import minimum_detectable_effect, sensitivity
from flamingo.evaluation.statistics import difference_range, is_zero, paired_difference
from flamingo.evaluation.variance import decompose
from flamingo.naming import ALL, naming

ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Pair:
    """Scores (draw, query) of the real prompt and of a control, on the control's queries and draws.

    Of ROC-AUC :attr:`flamingo.evaluation.influence.Influence.scores`.
    """

    real: Sequence[Sequence[float]]
    control: Sequence[Sequence[float]]

    @property
    def defined(self) -> bool:
        """Whether these are numbers: ROC-AUC needs queries of both kinds."""
        return not math.isnan(self.real[0][0])


def difference_rows(measured: Sequence[Point]) -> list[Row]:
    """How much better the model is than under each control, on the same queries.

    Under the benchmark's own metric: of ROC-AUC the difference of two areas, of CIDEr with the idf
    of the control's queries in both. No interval where the error is 0; that of a difference of
    shares stays within [-1, 1].
    """
    real = _real(measured)
    return [
        row(point, f"real - {point.condition.value}", ALL, _difference(real[_key(point)], point))
        for point in measured
        if point.condition is not Condition.real
    ]


def power_rows(measured: Sequence[Point]) -> list[Row]:
    """The minimum detectable effect of each benchmark at its largest shot count.

    ``unpaired``: between two runs like this one on different queries, as many as here. Where the
    query's image was blanked too, ``paired`` is the effect that pairing on the same queries can
    show for two conditions that agree as much as these; two trained models usually agree more, and
    show less. Two-sided level 0.05 with power 0.8; one draw of demonstrations, or their mean.
    """
    real, rows = _real(measured), []
    controls = {_key(p): p for p in measured if p.condition is Condition.blank_query}
    largest = {name: max(s for n, s in real if n == name) for name, _ in real}
    for key in largest.items():
        values = {"alpha": ALPHA, "power": POWER, **_effects(real[key], controls.get(key))}
        rows.append(row(real[key], Condition.real.value, ALL, values))
    return rows


def _key(point: Point) -> tuple[str, int]:
    return point.benchmark.name, point.shots


def _real(measured: Sequence[Point]) -> dict[tuple[str, int], Point]:
    return {_key(point): point for point in measured if point.condition is Condition.real}


def _difference(real: Point, control: Point) -> Row:
    pair, clusters = _paired(real, control), control.draws[0].clusters
    share = naming(real.benchmark.task.metric).share
    if len(pair.real) == 1 or not pair.defined:
        one = paired_difference(pair.real[0], pair.control[0], clusters, share=share)
        return asdict(one) | {"seeds": len(pair.real)}
    differences = [
        [a - b for a, b in zip(one, other, strict=True)]
        for one, other in zip(pair.real, pair.control, strict=True)
    ]
    return _told(asdict(decompose(differences, clusters)), share)


def _told(row: Row, share: bool) -> Row:
    """With the interval that :func:`paired_difference` would have: none where nothing varies."""
    error, low, high = (row[name] for name in ("standard_error", "low", "high"))
    if error is None or low is None:
        return row
    if is_zero(error):
        return row | {"low": None, "high": None}
    if share:
        low, high = difference_range(low, high)
    return row | {"low": low, "high": high}


def _paired(real: Point, control: Point) -> Pair:
    by_seed = {draw.cell.seed: draw for draw in real.draws}
    first, second = [], []
    for draw in control.draws:
        own = by_seed.get(draw.cell.seed, real.draws[0])  # at 0 shots there is one draw for all
        place = {p.query: i for i, p in enumerate(own.predictions)}
        places = [place[p.query] for p in draw.predictions]
        first.append(_scores(own, places, real.benchmark.task.metric))
        second.append(_scores(draw, range(len(places)), real.benchmark.task.metric))
    return Pair(first, second)


def _scores(draw: Draw, places: Sequence[int], metric: Metric) -> list[float]:
    """On a part of the queries; CIDEr and ROC-AUC as if they were all."""
    assert draw.scores is not None
    if metric is Metric.roc_auc:
        own = [draw.predictions[i] for i in places]
        chances = np.array([positive(prediction) for prediction in own])
        return roc_auc(chances, [p.target == POSITIVE for p in own]).scores.tolist()
    if metric is not Metric.cider or len(places) == len(draw.scores):
        return [draw.scores[i] for i in places]
    answers = [draw.predictions[i].answer for i in places]
    return item_scores(metric, answers, [draw.cell.episodes[i].references for i in places])


def _effects(real: Point, control: Point | None) -> Row:
    n = len(real.draws[0].predictions)
    if control is None:
        return {"n": n, "against": None, "unpaired": _unpaired(real)}
    effects = {"n": n, "against": control.condition.value, "unpaired": _unpaired(real)}
    pair, clusters = _paired(real, control), control.draws[0].clusters
    if not pair.defined:
        return {**effects, "paired": None}
    first, second = (np.mean(scores, axis=0).tolist() for scores in (pair.real, pair.control))
    found = sensitivity(first, second, clusters, n=n, alpha=ALPHA, power=POWER)
    agreement = {"correlation": found.correlation, "design_effect": found.design_effect}
    return without_nan({**effects, "paired": found.paired or None, **agreement})


def _unpaired(real: Point) -> float | None:
    """None where nothing varies: an error of 0 says nothing about other queries."""
    error = result(real, range(len(real.draws[0].predictions)))["standard_error"]
    if error is None or is_zero(error):
        return None
    return minimum_detectable_effect(math.sqrt(2) * error, alpha=ALPHA, power=POWER)
