"""Detectable effects against published sizes, closed forms and simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flamingo.evaluation.power import (
    design_effect,
    minimum_detectable_effect,
    sensitivity,
)
from flamingo.evaluation.statistics import Z95, paired_difference


def test_a_difference_of_three_points_takes_969_questions() -> None:
    # Miller 2024, section 5: a paired difference of variance 1/9, level 5 %, power 80 %.
    effects = [minimum_detectable_effect(math.sqrt(1 / 9 / n)) for n in (968, 969)]
    assert effects[0] > 0.03 >= effects[1]


def test_the_multipliers_are_those_of_the_tables() -> None:
    # z: 1.960 + 0.842, 1.645 + 0.842, 1.960 + 1.282; t with 10 degrees of freedom for few clusters.
    assert minimum_detectable_effect(1.0) == pytest.approx(2.80, abs=0.005)
    assert minimum_detectable_effect(1.0, alpha=0.1) == pytest.approx(2.49, abs=0.005)
    assert minimum_detectable_effect(1.0, power=0.9) == pytest.approx(3.24, abs=0.005)
    few = minimum_detectable_effect(1.0, degrees_of_freedom=10.0)
    assert few == pytest.approx(2.228139 + 0.879058, abs=1e-5)


def test_copies_of_a_query_are_worth_one() -> None:
    scores = np.random.default_rng(0).random(30)
    images = np.arange(30).repeat(4).tolist()
    # In closed form (m G - 1) / (G - 1) for m copies of G independent queries.
    expected = (4 * 30 - 1) / (30 - 1)
    assert design_effect(scores.repeat(4).tolist(), images) == pytest.approx(expected)
    assert design_effect(scores.tolist(), range(30)) == pytest.approx(1.0)


def test_the_design_effect_is_that_of_kish() -> None:
    draw = np.random.default_rng(1)
    effects = []
    for _ in range(40):
        # Correlation 0.25 within an image of five: 1 + 4 x 0.25 = 2.
        scores = draw.normal(0, 0.5, size=100).repeat(5) + draw.normal(0, math.sqrt(0.75), size=500)
        effects.append(design_effect(scores.tolist(), np.arange(100).repeat(5).tolist()))
    assert np.mean(effects) == pytest.approx(2.0, rel=0.04)


def found(draw: np.random.Generator, effect: float, images: list[int]) -> tuple[bool, bool]:
    """Whether z-tests find ``effect`` between two runs on the same and on other queries."""
    count = len(set(images))
    each = len(images) // count

    def run(shared: np.ndarray, shift: float) -> np.ndarray:
        own = draw.normal(0, 0.15, size=count).repeat(each) + draw.normal(0, 0.3, size=len(images))
        return shared + own + shift

    shared, other = (
        draw.normal(0, 0.2, size=count).repeat(each) + draw.normal(0, 0.2, size=len(images))
        for _ in range(2)
    )
    first, second, apart = run(shared, effect), run(shared, 0.0), run(other, 0.0)
    results = [
        paired_difference(first.tolist(), against.tolist(), images) for against in (second, apart)
    ]
    return results[0].low > 0, results[1].low > 0


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    draw = np.random.default_rng(0)
    images = np.arange(60).repeat(4).tolist()
    # True variances of the mean: of an image's own effects over 60, of a query's over 240.
    paired = math.sqrt(2 * (0.15**2 / 60 + 0.3**2 / 240))
    unpaired = math.sqrt(paired**2 + 2 * (0.2**2 / 60 + 0.2**2 / 240))
    for place, error in enumerate((paired, unpaired)):
        effect = minimum_detectable_effect(error)
        power = np.mean([found(draw, effect, images)[place] for _ in range(400)])
        assert power == pytest.approx(0.8, abs=0.06)


def test_a_pilot_tells_what_runs_like_it_can_show() -> None:
    draw = np.random.default_rng(0)
    shared = draw.normal(0, 0.3, size=400).repeat(3)
    first, second = (shared + draw.normal(0, 0.2, size=1200) for _ in range(2))
    images = np.arange(400).repeat(3).tolist()
    pilot = sensitivity(first.tolist(), second.tolist(), images)
    assert pilot.correlation == pytest.approx(0.09 / 0.13, abs=0.03)
    assert pilot.design_effect == pytest.approx(1.0, abs=0.15)
    multiplier = minimum_detectable_effect(1.0)
    assert pilot.paired == pytest.approx(multiplier * math.sqrt(2 * 0.04 / 1200), rel=0.07)
    more = sensitivity(first.tolist(), second.tolist(), images, n=4800)
    assert more.paired == pytest.approx(pilot.paired / 2)
    assert (pilot.n, more.n) == (1200, 4800)


def test_the_detectable_effect_of_a_z_test_at_half_power_is_its_critical_value() -> None:
    assert minimum_detectable_effect(0.01, power=0.5) == pytest.approx(0.01 * Z95)


def test_equal_scores_have_no_design_effect_or_correlation() -> None:
    result = sensitivity([1.0, 1.0], [1.0, 1.0], "ab")
    assert result.paired == 0.0
    assert math.isnan(result.design_effect)
    assert math.isnan(result.correlation)


def test_impossible_demands_are_errors() -> None:
    with pytest.raises(ValueError, match="alpha: expected between 0 and 1, got 0"):
        minimum_detectable_effect(1.0, alpha=0.0)
    with pytest.raises(ValueError, match=r"power: expected between alpha \(0.05\) and 1, got 0.01"):
        minimum_detectable_effect(1.0, power=0.01)
    with pytest.raises(ValueError, match="standard_error: expected at least 0, got nan"):
        minimum_detectable_effect(math.nan)
