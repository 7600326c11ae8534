"""Priors and nearest questions counted by hand."""

from __future__ import annotations

from flamingo.evaluation.pool_answers import PoolAnswers
from flamingo.evaluation.prompts import Item
from flamingo.testing import synthetic_images
from flamingo.types import Media

IMAGES = synthetic_images(12)


def item(name: str, image: int, question: str, answer: str = "") -> Item:
    return Item(name, Media((IMAGES[image],)), question, answer)


POOL = PoolAnswers(
    [
        item("a", 0, "is it red", "yes"),
        item("b", 1, "is it red", "no"),
        item("c", 2, "is it red", "no"),
        item("d", 3, "what shape", "circle"),
        item("e", 4, "what shape", "square"),
        item("f", 5, "what shape is it", "square"),
    ]
)


def test_the_prior_is_the_most_frequent_answer_to_the_same_question() -> None:
    assert POOL.prior(item("q", 9, "is it red")) == ("no",)
    assert POOL.prior(item("q", 9, "what shape")) == ("circle", "square")
    assert POOL.prior(item("q", 9, "is it Red")) == ()


def test_the_same_question_is_its_own_nearest() -> None:
    assert POOL.nearest_question(item("q", 9, "is it red")) == ("no",)
    assert POOL.nearest_question(item("q", 9, "Is it RED?")) == ("no",)
    assert POOL.nearest_question(item("q", 9, "which shape is it")) == ("square",)
    assert POOL.nearest_question(item("q", 9, "combien")) == ()


def test_items_on_the_query_s_own_image_do_not_answer() -> None:
    assert POOL.prior(item("q", 1, "is it red")) == ("no", "yes")
    assert POOL.prior(item("b", 1, "is it red")) == ("no", "yes"), "the query is in the pool"
    assert POOL.nearest_question(item("q", 1, "is it red")) == ("no", "yes")
    # "what shape is it" stands on the query's image alone: the next nearest answers.
    assert POOL.nearest_question(item("q", 5, "what shape is it")) == ("circle", "square")


def test_a_query_without_an_image_excludes_nothing() -> None:
    assert POOL.prior(Item("q", None, "is it red", "")) == ("no",)


def test_pools_whose_questions_say_nothing_are_known() -> None:
    captions = PoolAnswers([item("a", 0, "", "a dog"), item("b", 1, "", "a cat")])
    assert not captions.tells and not captions.differ
    assert POOL.tells and POOL.differ
    one = PoolAnswers([item("a", 0, "is it hateful", "no")])
    assert one.tells and not one.differ
    assert not PoolAnswers([]).tells and not PoolAnswers([]).differ
