"""Baselines under each benchmark's own metric, computed in another way."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from flamingo.choices import Condition, Metric
from flamingo.evaluation.baseline_rows import baseline_rows
from flamingo.evaluation.metrics.caption import cider_d
from flamingo.evaluation.metrics.classification import roc_auc
from flamingo.evaluation.metrics.scores import expected_scores
from flamingo.evaluation.metrics.vqa import vqa_accuracy
from flamingo.evaluation.points import points
from flamingo.evaluation.pool_answers import PoolAnswers
from flamingo.evaluation.statistics import clustered_standard_error

from . import tiny, toys


def rows_of(benchmark) -> dict[tuple[str, int], dict]:
    found = points(toys.outcome([benchmark], [Condition.real, Condition.blank_query]))
    return {(row["condition"], row["shots"]): row for row in baseline_rows(found, None)}


def test_vqa_s_baselines_are_worth_their_vqa_accuracy() -> None:
    benchmark = toys.vqa()
    rows = rows_of(benchmark)
    expected = []
    for episode in benchmark.episodes(4, 0):
        counts = Counter(item.answer for item in episode.demonstrations)
        top = [a for a, count in counts.items() if count == max(counts.values())]
        worth = [vqa_accuracy(answer, episode.references, "official") for answer in top]
        expected.append(sum(worth) / len(top))
    assert rows["majority", 4]["mean"] == pytest.approx(sum(expected) / 24)
    assert 0 < rows["majority", 4]["mean"] < 1
    copied = [
        vqa_accuracy(e.demonstrations[-1].answer, e.references, "official")
        for e in benchmark.episodes(2, 0)
    ]
    assert rows["last", 2]["mean"] == pytest.approx(sum(copied) / 24)
    images = [episode.cluster for episode in benchmark.episodes(2, 0)]
    expected_error = clustered_standard_error(copied, images)
    assert rows["last", 2]["standard_error"] == pytest.approx(expected_error)
    assert ("majority", 0) not in rows and ("last", 0) not in rows
    # All questions are among the pool's: its nearest question is the question itself.
    for shots in (0, 2, 4):
        assert rows["prior", shots]["mean"] == rows["nearest_question", shots]["mean"] > 0
    assert all(condition != "chance" for condition, _ in rows), "open answers have no chance"


def test_a_uniform_choice_among_captions_is_the_mean_of_all_choices() -> None:
    references = [("a dog runs", "a dog"), ("two cats sit", "cats on a mat"), ("a red bus",)]
    guesses = [("a dog", "a cat"), ("two cats sit",), ("a bus", "a red dog")]
    scores = expected_scores(Metric.cider, guesses, references)
    by_image = {str(i): own for i, own in enumerate(references)}
    choices = [
        cider_d({str(i): text for i, text in enumerate(chosen)}, by_image)[0]
        for chosen in product(*guesses)
    ]
    assert sum(scores) / 3 == pytest.approx(sum(choices) / len(choices))
    assert max(scores) > 1


def test_captions_have_the_text_baselines_that_need_no_question() -> None:
    rows = rows_of(toys.captions())
    assert {condition for condition, _ in rows} == {"majority", "last"}
    benchmark = toys.captions()
    episodes = benchmark.episodes(2, 0)
    copied = {e.query.id: e.demonstrations[-1].answer for e in episodes}
    whole, _ = cider_d(copied, {e.query.id: e.references for e in episodes})
    assert rows["last", 2]["mean"] == pytest.approx(whole)


def test_under_roc_auc_baselines_are_ordered_by_their_share_of_yes() -> None:
    benchmark = toys.yes_no(metric=None)
    rows = rows_of(benchmark)
    episodes = benchmark.episodes(4, 0)
    shares = []
    for episode in episodes:
        yes = sum(item.answer == "yes" for item in episode.demonstrations)
        shares.append(0.5 if yes == 2 else float(yes > 2))
    labels = [int(e.references[0] == "yes") for e in episodes]
    assert rows["majority", 4]["mean"] == pytest.approx(roc_auc(shares, labels))
    assert rows["chance", 4]["mean"] == rows["chance", 4]["low"] == 0.5


def test_the_answer_of_the_nearest_question_of_memes() -> None:
    benchmark = toys.yes_no()
    pool = PoolAnswers(benchmark.pool)
    by_text: dict[str, Counter[str]] = {}
    for item in benchmark.pool:
        by_text.setdefault(item.question, Counter())[item.answer] += 1
    for episode in benchmark.episodes(0, 0):
        counts = by_text[episode.query.question]
        top = {a for a, count in counts.items() if count == max(counts.values())}
        assert set(pool.nearest_question(episode.query)) == top


def test_over_several_draws_rules_have_as_many_as_the_model_and_the_pool_one() -> None:
    rows = rows_of(toys.vqa((0, 1, 2)))
    alone = [rows_of(toys.vqa((seed,)))["last", 2]["mean"] for seed in range(3)]
    assert len(set(alone)) > 1
    assert rows["last", 2]["mean"] == pytest.approx(sum(alone) / 3)
    assert (rows["last", 2]["seeds"], rows["prior", 2]["seeds"]) == (3, 1)
    assert rows["last", 2]["error_new_seeds"] > 0


def test_binding_has_no_pool_to_look_questions_up_in() -> None:
    rows = rows_of(tiny.binding(queries=8))
    assert {condition for condition, _ in rows} == {"majority", "last", "chance"}
