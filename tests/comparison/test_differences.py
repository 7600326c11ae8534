"""Numbers of single arms and of pairs, against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flamingo.choices import Condition, Metric
from flamingo.comparison.arms import make_arms
from flamingo.comparison.differences import Draws, differences, paired
from flamingo.comparison.estimates import measured
from flamingo.comparison.rates import rates
from flamingo.comparison.samples import Sample, read_samples
from flamingo.evaluation.corrections import Correction

from .written import answers, predicted, write_run

REAL = ("bench", "real")
FEW = Draws(1_000, 1_000)


def sample(runs: Path, name: str, *lists, metric: Metric = Metric.exact_match, seeds: int = 1):
    run = write_run(runs, name, {REAL: list(lists)}, metrics={"bench": metric}, seeds=seeds)
    (arm,) = make_arms([run], [Condition.real])
    return read_samples(arm, arm.benchmarks["bench"])


def memes(runs: Path, name: str, yes: list[float]) -> list[Sample]:
    """Probabilities of yes; the first half of the memes are hateful."""
    own = []
    for i, probability in enumerate(yes):
        said = "yes" if probability > 0.5 else "no"
        sure = probability if said == "yes" else 1 - probability
        target = "yes" if i < len(yes) // 2 else "no"
        own.append(predicted(i, said, target, candidates=["no", "yes"], probability=round(sure, 6)))
    return sample(runs, name, own, metric=Metric.roc_auc)


def test_the_exact_test_is_mcnemar_s(tmp_path: Path) -> None:
    # b right where a is wrong 4 times, never the other way round: p = 2 / 2^4.
    pairs = paired(
        sample(tmp_path, "a", answers("11110000")), sample(tmp_path, "b", answers("11111111"))
    )
    (found,) = differences(pairs, Correction.none, draws=FEW)
    assert found.value == pytest.approx(0.5)
    assert found.permutation_p == found.corrected == pytest.approx(0.125)
    assert found.low < 0.5 < found.high
    # Differences are four ones and four zeros: SE = sqrt(8 / 7 * 8 * 0.25 / 64).
    error = math.sqrt(8 / 7 * 8 * 0.25 / 64)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    assert (found.n, found.clusters) == (8, 8)


def test_queries_of_one_image_are_exchanged_together(tmp_path: Path) -> None:
    pairs = paired(
        sample(tmp_path, "a", answers("0000", image=1) + answers("00000000")[4:]),
        sample(tmp_path, "b", answers("1111", image=1) + answers("00000000")[4:]),
    )
    (found,) = differences(pairs, Correction.none, draws=FEW)
    assert found.permutation_p == 1, "a single image moves: its two signs are as extreme"
    assert found.clusters == 5


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (Correction.none, [0.125, 0.5]),
        (Correction.holm, [0.25, 0.5]),
        (Correction.benjamini_hochberg, [0.25, 0.5]),
    ],
)
def test_p_values_are_corrected_over_all_tests(
    tmp_path: Path, correction: Correction, expected: list[float]
) -> None:
    zero, four = answers("11110000"), answers("11111100", shots=4)
    best = [answers("11111111"), answers("11111111", shots=4)]
    pairs = paired(sample(tmp_path, "a", zero, four), sample(tmp_path, "b", *best))
    found = differences(pairs, correction, draws=FEW)
    assert [row.corrected for row in found] == pytest.approx(expected)


def test_draws_are_averaged_before_pairing(tmp_path: Path) -> None:
    one = [*answers("1100", shots=4), *answers("1000", shots=4, seed=1)]
    pairs = paired(
        sample(tmp_path, "a", one, seeds=2), sample(tmp_path, "b", answers("1111", shots=4))
    )
    (found,) = differences(pairs, Correction.none, draws=FEW)
    # Per query 0, 1/2, 1, 1; the one that does not differ is set aside: p = 2 / 2^3.
    assert found.value == pytest.approx(0.625)
    assert found.permutation_p == pytest.approx(0.25)


def test_equal_arms_have_nothing_to_detect(tmp_path: Path) -> None:
    pairs = paired(sample(tmp_path, "a", answers("110")), sample(tmp_path, "b", answers("110")))
    (found,) = differences(pairs, Correction.holm, draws=FEW)
    assert (found.value, found.permutation_p) == (0, 1)
    assert math.isnan(found.detectable)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_roc_auc_is_compared_as_a_whole(tmp_path: Path) -> None:
    # a: 3 of the 4 pairs (hateful, not) are in order; b: all.
    first = memes(tmp_path, "a", [0.9, 0.3, 0.4, 0.1])
    second = memes(tmp_path, "b", [0.9, 0.8, 0.4, 0.1])
    (found,) = differences(paired(first, second), Correction.none, draws=FEW)
    assert found.value == pytest.approx(1 - 0.75)
    # Only meme 1 differs, and its exchange turns the sign alone: all arrangements are as extreme.
    assert found.permutation_p == 1
    assert found.bootstrap_p > 0.05


def test_predictions_are_exchanged_meme_by_meme(tmp_path: Path) -> None:
    # a has every pair in the wrong order, b in the right one: of the 16 exchanges only none and all
    # leave them as far apart.
    first = memes(tmp_path, "a", [0.2, 0.3, 0.8, 0.9])
    second = memes(tmp_path, "b", [0.95, 0.85, 0.15, 0.05])
    (found,) = differences(paired(first, second), Correction.none, draws=FEW)
    assert (found.value, found.permutation_p) == (1.0, 2 / 16)


def test_an_undefined_metric_is_not_tested(tmp_path: Path) -> None:
    own = [predicted(i, "yes", "yes", candidates=["no", "yes"]) for i in range(3)]
    pairs = paired(
        sample(tmp_path, "a", own, metric=Metric.roc_auc),
        sample(tmp_path, "b", own, metric=Metric.roc_auc),
    )
    assert differences(pairs, Correction.holm, draws=FEW) == []
    assert math.isnan(measured(pairs[0][0])[0].mean)


# ---------------------------------------------------------------------------- single arms


def test_a_mean_has_its_interval_for_all_and_by_group(tmp_path: Path) -> None:
    (own,) = sample(tmp_path, "a", answers("1101"))
    every, even, odd = measured(own)
    assert (every.group, every.mean, every.n) == ("all", 0.75, 4)
    # Variance of the mean: 4 / 3 * (3 * 0.0625 + 0.5625) / 16.
    assert every.standard_error == pytest.approx(math.sqrt(4 / 3 * 0.75 / 16))
    assert (even.group, even.mean) == ("even", 0.5)
    assert (odd.group, odd.mean) == ("odd", 1.0)
    assert odd.low < 1 == odd.high


def test_answers_about_one_image_are_no_independent_evidence(tmp_path: Path) -> None:
    pairs = [predicted(i, "yes" if i < 2 else "no", "yes", image=i // 2) for i in range(4)]
    (own,) = sample(tmp_path, "a", pairs)
    every = measured(own)[0]
    # Residuals add up to 1 and -1 for the two images: 2 / 1 * (1 + 1) / 4^2 = 0.25.
    assert (every.n, every.clusters, every.standard_error) == (4, 2, pytest.approx(0.5))


def test_an_interval_over_draws_stays_among_possible_values(tmp_path: Path) -> None:
    two = [*answers("1100", shots=4), *answers("1110", shots=4, seed=1)]
    (own,) = sample(tmp_path, "a", two, seeds=2)
    every = measured(own)[0]
    assert every.mean == pytest.approx(0.625)
    assert every.draws == 2
    assert 0 <= every.low < every.high <= 1


def test_roc_auc_of_one_arm(tmp_path: Path) -> None:
    (own,) = memes(tmp_path, "a", [0.9, 0.3, 0.4, 0.1])
    assert measured(own)[0].mean == pytest.approx(0.75)


# ---------------------------------------------------------------------------- biases


def test_biases_are_those_that_apply(tmp_path: Path) -> None:
    (first,) = memes(tmp_path, "a", [0.9, 0.8, 0.7, 0.1])
    (second,) = memes(tmp_path, "b", [0.9, 0.2, 0.3, 0.1])
    found = rates(second, first)
    assert found is not None and found.yes and found.right_yes and found.flips
    assert (found.yes.mean, found.right_yes.mean) == (0.25, 0.5)
    assert found.flips.mean == 0.5
    # Confidences 0.9, 0.8, 0.7, 0.9, right: yes, no, yes, yes; a bin for each confidence.
    assert found.calibration == pytest.approx((2 * 0.1 + 0.8 + 0.3) / 4)


def test_open_answers_have_no_yes_ratio_and_no_calibration(tmp_path: Path) -> None:
    (own,) = sample(tmp_path, "a", answers("110", target="cat"))
    assert rates(own, None) is None
