"""Medians, ratios and their intervals on numbers that can be checked by hand."""

import pytest

from flamingo.benchmarking.numbers import Spread, paired_ratio


def test_quartiles_lie_among_the_rounds():
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(1.0, 2.0, 3.0, 4.0, 5)


def test_one_round_is_its_own_spread():
    assert Spread.of([2.5]) == Spread(2.5, 2.5, 2.5, 2.5, 1)


def test_ratios_are_taken_round_by_round():
    # Both grow tenfold in the second half; a ratio of medians would hide that they keep pace.
    ratio = paired_ratio([2.0, 4.0, 20.0, 40.0], [1.0, 2.0, 10.0, 20.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_a_run_with_fewer_rounds_is_paired_with_the_first():
    assert paired_ratio([3.0], [1.0, 100.0]).median == 3.0


@pytest.mark.parametrize(
    ("rounds", "dropped", "coverage"),
    [(5, 0, 1 - 2 / 32), (6, 0, 1 - 2 / 64), (9, 1, 1 - 20 / 512), (12, 2, 1 - 158 / 4096)],
)
def test_the_interval_is_that_of_the_binomial_of_signs(rounds, dropped, coverage):
    ratio = paired_ratio([float(n) for n in range(1, rounds + 1)], [1.0] * rounds)
    assert (ratio.low, ratio.high) == (1.0 + dropped, float(rounds - dropped))
    assert ratio.coverage == pytest.approx(coverage)


def test_no_round_in_common_is_an_error():
    with pytest.raises(ValueError, match="expected a common round"):
        paired_ratio([], [1.0])
    with pytest.raises(ValueError, match="at least one round"):
        Spread.of([])
