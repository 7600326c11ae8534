"""Corrected p-values against the procedures' own words, published examples and error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flamingo.evaluation.corrections import Correction, benjamini_hochberg, correct, holm

MYOCARDIAL = [0.0344, 0.0001, 0.4262, 0.0019, 0.5719, 0.0004, 0.0201, 1.0, 0.0278, 0.0298, 0.0095,
              0.0459, 0.3240, 0.7590, 0.6528]  # fmt: skip
"""The 15 comparisons of Benjamini & Hochberg 1995, section 4.1, in another order."""


def rejected_by_holm(p_values: list[float], level: float) -> list[bool]:
    """Step down as Holm words it: stop at the first that is above its own level."""
    rejected = [False] * len(p_values)
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - done):
            break
        rejected[index] = True
    return rejected


def rejected_by_benjamini_hochberg(p_values: list[float], level: float) -> list[bool]:
    """All up to the largest ``i`` whose i-th smallest is at most ``i / m`` times the level."""
    ordered = sorted(p_values)
    fitting = [p for i, p in enumerate(ordered, start=1) if p <= i * level / len(ordered)]
    return [p <= max(fitting, default=-1) for p in p_values]


@pytest.mark.parametrize("level", [0.003, 0.01, 0.0500001, 0.1, 0.37, 0.8])
def test_corrected_p_values_reject_what_the_procedures_reject(level: float) -> None:
    draw = np.random.default_rng(0)
    families = [(draw.random(9) ** power).tolist() for power in (1, 3, 8) for _ in range(20)]
    for p_values in [*families, MYOCARDIAL]:
        by_holm = [p <= level for p in holm(p_values)]
        by_share = [p <= level for p in benjamini_hochberg(p_values)]
        assert by_holm == rejected_by_holm(p_values, level)
        assert by_share == rejected_by_benjamini_hochberg(p_values, level)


def test_the_published_example() -> None:
    # "rejects the four hypotheses having p-values less than or equal to 0.013"; Bonferroni three.
    assert sum(p <= 0.05 for p in correct(MYOCARDIAL, Correction.benjamini_hochberg)) == 4
    assert sum(p <= 0.05 for p in correct(MYOCARDIAL, Correction.holm)) == 3
    assert sum(p <= 0.05 for p in correct(MYOCARDIAL, Correction.none)) == 9


def test_literal_corrections_in_the_order_given() -> None:
    # By hand: 4 x 0.01, 3 x 0.02, 2 x 0.04 and 0.045 raised to it; x 4 / rank.
    p_values = [0.04, 0.01, 0.045, 0.02]
    assert holm(p_values) == pytest.approx([0.08, 0.04, 0.08, 0.06])
    assert benjamini_hochberg(p_values) == pytest.approx([0.045, 0.04, 0.045, 0.04])


def test_holm_rejects_a_true_hypothesis_once_in_twenty_families() -> None:
    families = np.random.default_rng(1).random((2_000, 12))
    wrong = np.mean([min(holm(family.tolist())) <= 0.05 for family in families])
    uncorrected = np.mean(families.min(axis=1) <= 0.05)
    assert 0.035 <= wrong <= 0.065
    assert uncorrected > 0.4


def test_one_test_needs_no_correction_and_none_has_none() -> None:
    for correction in Correction:
        assert correct([0.03], correction) == [0.03]
        assert correct([], correction) == []


def test_what_is_no_probability_is_an_error() -> None:
    for value in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"p_values\[1\]: expected a probability"):
            correct([0.5, value], Correction.holm)
