"""Baselines beside the model: each rule on the queries of each real point, under its metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from flamingo.choices import Condition
from flamingo.evaluation.baselines import (
    Baseline,
    Guess,
    PooledFeatures,
    last,
    majority,
    nearest_centroid,
    positive,
)
from flamingo.evaluation.metrics.scores import expected_scores
from flamingo.evaluation.points import Point, Row, Scored, labels, row, summary
from flamingo.evaluation.pool_answers import PoolAnswers
from flamingo.evaluation.prompts import Episode
from flamingo.evaluation.statistics import Estimate
from flamingo.naming import ALL


def baseline_rows(measured: Sequence[Point], pooled: PooledFeatures | None) -> list[Row]:
    """A row for each real point and rule that applies to it, over the same draws as the model.

    The ceiling only with ``pooled`` features. What demonstrations have no part in has one draw.
    """
    pools: dict[str, PoolAnswers] = {}
    rows = []
    for point in measured:
        if point.condition is not Condition.real:
            continue
        name = point.benchmark.name
        if name not in pools:
            pools[name] = PoolAnswers(point.benchmark.pool)
        for baseline in Baseline:
            values = _values(point, baseline, pools[name], pooled)
            if values is not None:
                rows.append(row(point, baseline.value, ALL, values))
    return rows


def _values(
    point: Point, baseline: Baseline, pool: PoolAnswers, pooled: PooledFeatures | None
) -> Row | None:
    """The numbers of a row, None where the baseline does not apply."""
    if baseline is Baseline.chance:
        return _chance(point)
    draws = [draw.cell.episodes for draw in point.draws]
    if baseline in (Baseline.nearest_question, Baseline.prior):
        draws = draws[:1]
    guesses = [_guesses(baseline, episodes, pool, pooled) for episodes in draws]
    scored = [
        _scored(point, episodes, own)
        for episodes, own in zip(draws, guesses, strict=True)
        if own is not None
    ]
    if not scored:
        return None
    places = range(len(draws[0]))
    found = summary(
        point.benchmark.task.metric, scored, point.draws[0].clusters, labels(point, places)
    )
    if found["low"] is None and found["standard_error"] is not None:
        # A rule that is worth the same on every query, as where it always ties, is exact.
        found |= {"low": found["mean"], "high": found["mean"]}
    return found


def _chance(point: Point) -> Row | None:
    """A number that is known, without an interval."""
    chance, clusters = point.benchmark.chance, point.draws[0].clusters
    if chance is None:
        return None
    known = Estimate(chance, 0.0, chance, chance, len(clusters), len(set(clusters)))
    return asdict(known) | {"seeds": 1}


def _guesses(
    baseline: Baseline,
    episodes: Sequence[Episode],
    pool: PoolAnswers,
    pooled: PooledFeatures | None,
) -> list[Guess] | None:
    """The rule's answers to each query, None where it does not apply."""
    context = bool(episodes[0].demonstrations)
    match baseline:
        case Baseline.majority:
            return [majority(episode) for episode in episodes] if context else None
        case Baseline.last:
            return [last(episode) for episode in episodes] if context else None
        case Baseline.nearest_question:
            return [pool.nearest_question(e.query) for e in episodes] if pool.differ else None
        case Baseline.prior:
            return [pool.prior(e.query) for e in episodes] if pool.tells else None
        case Baseline.centroid:
            if pooled is None or not context or not episodes[0].candidates:
                return None
            return _centroids(episodes, pooled)
        case Baseline.chance:
            return None


def _centroids(episodes: Sequence[Episode], pooled: PooledFeatures) -> list[Guess]:
    return [
        (nearest_centroid(own[0], own[1:], [item.answer for item in episode.demonstrations]),)
        for episode, own in zip(episodes, pooled.of(episodes), strict=True)
    ]


def _scored(point: Point, episodes: Sequence[Episode], guesses: Sequence[Guess]) -> Scored:
    references = [episode.references for episode in episodes]
    scores = expected_scores(point.benchmark.task.metric, guesses, references)
    return Scored(scores, [positive(guess) for guess in guesses])
