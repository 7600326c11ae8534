"""Bias, differences and detectable effects of whole results, on answers that are known."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from flamingo.choices import Condition
from flamingo.evaluation.metrics.caption import cider_d
from flamingo.evaluation.metrics.classification import roc_auc
from flamingo.evaluation.results import collect
from flamingo.evaluation.statistics import clustered_standard_error

from . import toys

CONDITIONS = [Condition.real, Condition.blank_query, Condition.reversed_order]


def collected(benchmark, answerer=toys.noisy, **settings):
    outcome = toys.outcome([benchmark], CONDITIONS, answerer, **settings)
    results = collect([benchmark], outcome, None, {}, step=1, seed=0)
    json.dumps(results, allow_nan=False)
    return results, outcome


def copies(condition: Condition, episode, draw: random.Random) -> tuple[str, float]:
    """The last demonstration's answer, written another way; without one "?"."""
    shown = episode.demonstrations
    return (f"The {shown[-1].answer.capitalize()}" if shown else "?"), 0.5


def by_measure(results, shots: int) -> dict[str, dict]:
    return {row["measure"]: row for row in results["bias"] if row["shots"] == shots}


def test_a_model_that_copies_is_found_out_under_the_metric_s_own_normalisation() -> None:
    results, outcome = collected(toys.vqa((0, 1)), copies)
    found = by_measure(results, 4)
    episodes = [
        e
        for cell, _ in outcome.cells
        if cell.shots == 4 and cell.condition is Condition.real
        for e in cell.episodes
    ]
    lasts = [[item.answer for item in e.demonstrations] for e in episodes]
    right = np.mean([e.query.answer == own[-1] for e, own in zip(episodes, lasts, strict=True)])
    assert found["copy_last"]["mean"] == 1.0
    assert found["copy_last"]["right"] == pytest.approx(right)
    assert found["copy_last"]["excess"]["mean"] == pytest.approx(1 - right)
    assert found["among_demonstrations"]["mean"] == 1.0
    assert found["among_demonstrations"]["n"] == 48, "both draws"
    assert found["among_demonstrations"]["clusters"] == 12
    others = np.mean([np.mean([own[-1] == other for other in own[:-1]]) for own in lasts])
    assert found["recency"]["mean"] == pytest.approx(1 - others)
    flips = np.mean([own[-1] != own[0] for own in lasts])
    assert found["order_flip"]["mean"] == pytest.approx(flips)
    assert 0 < flips < 1
    assert found["blank_image_gap"]["mean"] == 0.0, "it never looked"


def test_without_demonstrations_there_is_the_gap_alone() -> None:
    results, _ = collected(toys.vqa())
    assert set(by_measure(results, 0)) == {"blank_image_gap"}
    gap = next(r for r in results["differences"] if r["shots"] == 0)
    assert by_measure(results, 0)["blank_image_gap"]["mean"] == gap["mean"] > 0


def test_a_single_demonstration_has_no_others_to_be_later_than() -> None:
    results, _ = collected(toys.vqa(shots=[1]))
    assert "recency" not in by_measure(results, 1)
    assert "copy_last" in by_measure(results, 1)


# ---------------------------------------------------------------------------- differences


def predictions(outcome, shots: int, condition: Condition):
    return next(
        (cell.episodes, own)
        for cell, own in outcome.cells
        if (cell.shots, cell.condition) == (shots, condition)
    )


def test_a_difference_has_the_error_of_pairs_clustered_by_image() -> None:
    results, outcome = collected(toys.vqa(shots=[2]))
    (_, real), (_, blank) = (predictions(outcome, 2, c) for c in CONDITIONS[:2])
    differences = [a.score - b.score for a, b in zip(real, blank, strict=True)]
    row = next(r for r in results["differences"] if r["condition"] == "real - blank_query")
    expected = clustered_standard_error(differences, [p.cluster for p in blank])
    assert (row["n"], row["clusters"]) == (24, 12), "two questions an image"
    assert row["standard_error"] == pytest.approx(expected)


def test_a_difference_of_roc_auc_is_that_of_the_areas() -> None:
    results, outcome = collected(toys.yes_no(shots=[2], metric=None), control_queries=9)
    areas = []
    for condition in (Condition.real, Condition.blank_query):
        _, own = predictions(outcome, 2, condition)
        chances = [p.probability if p.answer == "yes" else 1 - p.probability for p in own[:9]]
        areas.append(roc_auc(chances, [int(p.target == "yes") for p in own[:9]]))
    row = next(r for r in results["differences"] if r["condition"] == "real - blank_query")
    assert row["mean"] == pytest.approx(areas[0] - areas[1])
    assert row["n"] == 9


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_control_of_one_kind_of_labels_has_no_area_and_no_difference(seeds) -> None:
    results, _ = collected(toys.yes_no(seeds, shots=[2], metric=None), control_queries=1)
    row = next(r for r in results["differences"] if r["condition"] == "real - blank_query")
    assert row["mean"] is row["low"] is row["high"] is None
    (power,) = results["power"]
    assert power["paired"] is None and power["unpaired"] > 0


def test_a_difference_of_areas_over_draws_is_the_mean_of_theirs() -> None:
    both, _ = collected(toys.yes_no((0, 1), shots=[2], metric=None))
    row = next(r for r in both["differences"] if r["condition"] == "real - blank_query")
    means = {r["condition"]: r["mean"] for r in both["model"] if r["group"] == "all"}
    assert row["mean"] == pytest.approx(means["real"] - means["blank_query"])
    assert row["error_new_seeds"] > 0
    assert row["low"] < row["mean"] < row["high"]
    (power,) = both["power"]
    assert power["paired"] > 0 and -1 <= power["correlation"] <= 1


def test_a_difference_of_cider_has_one_idf_for_both() -> None:
    results, outcome = collected(toys.captions(shots=[2]), control_queries=7)
    scores = []
    for condition in (Condition.real, Condition.blank_query):
        episodes, own = predictions(outcome, 2, condition)
        answers = {p.query: p.answer for p in own[:7]}
        scores.append(cider_d(answers, {e.query.id: e.references for e in episodes[:7]})[0])
    row = next(r for r in results["differences"] if r["condition"] == "real - blank_query")
    assert row["mean"] == pytest.approx(scores[0] - scores[1])


# ---------------------------------------------------------------------------- power


def test_the_detectable_effect_is_2_8_standard_errors_of_the_difference() -> None:
    results, outcome = collected(toys.vqa(), control_queries=12)
    (row,) = results["power"]
    _, real = predictions(outcome, 4, Condition.real)
    _, blank = predictions(outcome, 4, Condition.blank_query)
    differences = [a.score - b.score for a, b in zip(real[:12], blank, strict=True)]
    error = clustered_standard_error(differences, [p.cluster for p in blank])
    # 1.959964 + 0.841621, scaled from 12 queries to 24.
    assert row["paired"] == pytest.approx(2.801585 * error / 2**0.5, rel=1e-5)
    assert (row["shots"], row["n"], row["against"]) == (4, 24, "blank_query")


@pytest.mark.parametrize("controls", [[], [Condition.blank_query]])
def test_two_runs_like_this_one_are_compared_whatever_its_controls(controls) -> None:
    benchmark = toys.vqa()
    outcome = toys.outcome([benchmark], [Condition.real, *controls], control_queries=12)
    results = collect([benchmark], outcome, None, {}, step=1, seed=0)
    (row,) = results["power"]
    model = next(
        r
        for r in results["model"]
        if (r["condition"], r["shots"], r["group"]) == ("real", 4, "all")
    )
    expected = 2.801585 * 2**0.5 * model["standard_error"]
    assert row["unpaired"] == pytest.approx(expected, rel=1e-5)
    assert (row["against"] is None) == ("paired" not in row) == (not controls)


def test_of_a_single_image_no_effect_is_known() -> None:
    benchmark = toys.vqa(shots=[2])
    outcome = toys.outcome([benchmark], [Condition.real])
    for _, predictions in outcome.cells:
        predictions[:] = [replace(p, cluster="one") for p in predictions]
    results = collect([benchmark], outcome, None, {}, step=1, seed=0)
    assert results["power"][0]["unpaired"] is None


def test_where_nothing_varies_no_effect_is_claimed() -> None:
    def always_right(condition, episode, draw) -> tuple[str, float]:
        return episode.references[0], 0.9

    for benchmark in (toys.vqa(shots=[2]), toys.yes_no(shots=[2], metric=None)):
        (row,) = collected(benchmark, always_right)[0]["power"]
        assert row["paired"] is None and row["unpaired"] is None
