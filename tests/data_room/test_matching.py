"""The assignment of images to sentences, against all assignments there are."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from flamingo.data.matching import best_assignment


def greatest_sum(weights: np.ndarray) -> float:
    rows, columns = weights.shape
    if rows > columns:
        return greatest_sum(weights.T)
    return max(
        sum(weights[row, column] for row, column in enumerate(chosen))
        for chosen in permutations(range(columns), rows)
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 3), (4, 6), (6, 4), (5, 5)])
def test_no_assignment_has_a_greater_sum(shape):
    generator = np.random.default_rng(0)
    for trial in range(20):
        weights = generator.normal(size=shape)
        if trial % 2:
            weights = np.round(weights)  # ties
        columns = best_assignment(weights.tolist())
        taken = [column for column in columns if column is not None]
        assert len(columns) == shape[0] and len(set(taken)) == len(taken) == min(shape)
        total = sum(
            weights[row, column] for row, column in enumerate(columns) if column is not None
        )
        assert total == pytest.approx(greatest_sum(weights))


def test_the_best_sentence_of_two_images_goes_to_the_one_that_loses_more():
    assert best_assignment([[0.9, 0.8], [0.9, 0.1]]) == [1, 0]
    assert best_assignment([[0.5], [0.6]]) == [None, 0]
    assert best_assignment([]) == []
