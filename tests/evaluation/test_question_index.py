"""Nearest questions against a dense tf-idf product, question by question."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest

from flamingo.evaluation.question_index import QuestionIndex

WORDS = "what is the colour of a red dog cat on in table shape big small how many are there".split()


def questions(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    made = (" ".join(draw.choices(WORDS, k=draw.randint(1, 7))) + "?" for _ in range(count))
    return list(dict.fromkeys(made))


def dense_cosines(known: list[str], question: str) -> np.ndarray:
    """Of bags of words as rows of a matrix, with scikit-learn's smoothed idf written out."""
    bags = [re.findall(r"\w+", text.lower()) for text in known]
    words = sorted({word for bag in bags for word in bag})
    counts = np.array([[bag.count(word) for word in words] for bag in bags], dtype=float)
    frequency = (counts > 0).sum(axis=0)
    idf = np.array([math.log((1 + len(known)) / (1 + f)) + 1 for f in frequency])
    asked = re.findall(r"\w+", question.lower())
    query = np.array([asked.count(word) for word in words]) * idf
    rows = counts * idf
    norms = np.linalg.norm(rows, axis=1) * max(np.linalg.norm(query), 1e-300)
    return rows @ query / norms


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_are_those_of_an_exhaustive_search(seed: int) -> None:
    known = questions(400, seed)
    index = QuestionIndex(known)
    for question in questions(100, seed + 100):
        cosines = dense_cosines(known, question)
        expected = np.flatnonzero(cosines > cosines.max() - 1e-9).tolist()
        assert index.nearest(question) == expected


@pytest.mark.parametrize("seed", range(3))
def test_what_is_barred_is_as_if_it_were_not_there_but_for_the_idf(seed: int) -> None:
    known = questions(200, seed)
    index = QuestionIndex(known)
    for question in known[:60]:
        cosines = dense_cosines(known, question)
        barred = frozenset(np.argsort(-cosines)[:3].tolist())
        cosines[list(barred)] = -1
        expected = np.flatnonzero(cosines > cosines.max() - 1e-9).tolist()
        assert index.nearest(question, barred) == expected


def test_rare_words_count_more_than_common_ones() -> None:
    index = QuestionIndex(["what is the dog", "what is the cat", "what is the man", "dog zebra"])
    assert index.nearest("what zebra") == [3]


def test_case_punctuation_and_order_do_not_count_and_ties_are_all_given() -> None:
    index = QuestionIndex(["Is it red?", "red: is it", "blue"])
    assert index.nearest("IT IS RED") == [0, 1]


def test_unknown_words_are_like_nothing() -> None:
    index = QuestionIndex(["is it red", "?"])
    assert index.nearest("quelle couleur") == []
    assert index.nearest("?") == []
    assert index.nearest("red", frozenset({0})) == []
    with pytest.raises(ValueError, match="questions: expected at least one"):
        QuestionIndex([])
