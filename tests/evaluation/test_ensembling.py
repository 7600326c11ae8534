"""The ways one query is asked, and the one answer made of theirs."""

from __future__ import annotations

import math

import pytest

from flamingo.evaluation.ensembling import Ensemble, combine, variants
from flamingo.evaluation.prompts import BINDING, QUESTION, Episode, Item, Template
from flamingo.evaluation.scoring import Answer

OTHER = Template(question="Q: {question}", answer=" A: {answer}")


def episode(demonstrations: int, query: str = "q") -> Episode:
    items = tuple(Item(str(n), None, f"what {n}", f"a{n}") for n in range(demonstrations))
    return Episode(Item(query, None, "what", "x"), items, demonstrations)


def orders(asked: list[tuple[Episode, Template]]) -> list[str]:
    return ["".join(item.id for item in own.demonstrations) for own, _ in asked]


def asked(own: Episode, ensemble: Ensemble, seed: int = 0, benchmark: str = "b"):
    return variants(own, QUESTION, ensemble, seed, benchmark)


def test_alone_a_query_is_asked_as_it_is() -> None:
    own = episode(4)
    assert asked(own, Ensemble()) == [(own, QUESTION)]


def test_all_orders_of_few_demonstrations_are_drawn_once_each() -> None:
    for permutations in (6, 100):
        found = orders(asked(episode(3), Ensemble(permutations)))
        assert found[0] == "012"
        assert sorted(found) == ["012", "021", "102", "120", "201", "210"]
    assert orders(asked(episode(0), Ensemble(5))) == [""]
    assert orders(asked(episode(1), Ensemble(5))) == ["0"]


def test_orders_are_distinct_and_more_begin_with_the_fewer() -> None:
    many = orders(asked(episode(8), Ensemble(40)))
    assert len(set(many)) == 40
    assert orders(asked(episode(8), Ensemble(7))) == many[:7]
    assert {"".join(sorted(order)) for order in many} == {"01234567"}


def test_orders_depend_on_seed_benchmark_and_query_alone() -> None:
    first = orders(asked(episode(8), Ensemble(4)))
    assert orders(asked(episode(8), Ensemble(4))) == first
    assert first == ["01234567", "34657210", "03142675", "34261507"]
    for changed in (
        asked(episode(8, "another"), Ensemble(4)),
        asked(episode(8), Ensemble(4), seed=1),
        asked(episode(8), Ensemble(4), benchmark="c"),
    ):
        assert orders(changed)[1:] != first[1:]


def test_orders_that_show_the_same_count_once() -> None:
    twice = episode(3)
    same = twice.demonstrations[0]
    own = Episode(twice.query, (same, same, twice.demonstrations[2]), 3)
    assert sorted(orders(asked(own, Ensemble(6)))) == ["002", "020", "200"]


def test_every_order_is_asked_with_every_template() -> None:
    own = episode(2)
    found = asked(own, Ensemble(2, (OTHER, QUESTION, BINDING)))
    assert found[0] == (own, QUESTION)
    assert [template for _, template in found] == [QUESTION] * 2 + [OTHER] * 2 + [BINDING] * 2
    assert orders(found) == ["01", "10"] * 3
    assert all(e.query == own.query and e.candidates == own.candidates for e, _ in found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble(0), "ensemble.permutations: expected at least 1, got 0"),
        (lambda: Ensemble(1, (OTHER, OTHER)), "ensemble.templates: expected different ones"),
    ],
)
def test_impossible_ensembles_are_errors(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def ranked(*probabilities: float, offset: float = 0.0) -> Answer:
    """Scores whose softmax is ``probabilities``."""
    scores = tuple(math.log(p) + offset for p in probabilities)
    return Answer("unread", "unread", 0.0, scores)


def test_closed_answers_are_pooled_by_the_geometric_mean() -> None:
    # One variant is sure of the second candidate; two lean to the first.
    answers = [ranked(0.6, 0.4), ranked(0.6, 0.4, offset=-20.0), ranked(0.01, 0.99)]
    pooled = combine(answers, [" dax", " wug"])
    products = [(0.6 * 0.6 * 0.01) ** (1 / 3), (0.4 * 0.4 * 0.99) ** (1 / 3)]
    expected = [p / sum(products) for p in products]
    assert (pooled.raw, pooled.text) == (" wug", "wug")
    assert pooled.probability == pytest.approx(expected[1])
    assert [math.exp(score) for score in pooled.scores] == pytest.approx(expected)


def test_one_closed_answer_keeps_its_choice_and_probability() -> None:
    pooled = combine([ranked(0.2, 0.5, 0.3, offset=-7.0)], ["a", "b", "c"])
    assert (pooled.text, pooled.probability) == ("b", pytest.approx(0.5))
    assert combine([ranked(0.5, 0.5)], ["a", "b"]).text == "a", "ties go to the first"


def test_the_open_answer_with_the_largest_summed_probability_wins() -> None:
    answers = [
        Answer(" red<|endofchunk|>", "red", 0.5),
        Answer(" blue<|endofchunk|>", "blue", 0.3),
        Answer(" blue", "blue", 0.4),
        Answer(" green", "green", 0.6),
    ]
    best = combine(answers, [])
    assert (best.raw, best.text, best.scores) == (" blue<|endofchunk|>", "blue", ())
    assert best.probability == pytest.approx(0.7 / 4)
    assert combine(answers[:1], []) == answers[0]


def test_ties_of_open_answers_go_to_the_earliest() -> None:
    answers = [Answer("x", "x", 0.25), Answer("y", "y", 0.5), Answer("x", "x", 0.25)]
    assert combine(answers, []).text == "x"
    assert combine(answers[1:], []).text == "y"


def test_answers_that_do_not_fit_the_candidates_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one"):
        combine([], ["a"])
    with pytest.raises(ValueError, match=r"expected 2 scores, .* in variant 1, got 3"):
        combine([ranked(0.5, 0.5), ranked(0.2, 0.5, 0.3)], ["a", "b"])
    with pytest.raises(ValueError, match="expected 0 scores"):
        combine([ranked(0.5, 0.5)], [])
