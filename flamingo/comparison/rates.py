"""Biases that predictions tell by themselves: leaning to yes, changing answers, being too sure.

What depends on the demonstrations' answers (copying the last one) is in an evaluation's own report,
not here. The blank-image gap is the paired difference of two arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flamingo.choices import Metric
from flamingo.comparison.samples import Sample
from flamingo.evaluation.bias import flip_rate, plain
from flamingo.evaluation.metrics.calibration import expected_calibration_error
from flamingo.evaluation.statistics import Estimate, estimate

YES_NO = {"yes", "no"}


@dataclass(frozen=True, slots=True)
class Rates:
    """Of the first draw of demonstrations; None where a rate does not apply.

    ``yes``: share of yes among the answers, where every right answer is yes or no; ``right_yes``
    that among the right ones. ``flips``: how often the answer is another than the reference arm's
    to the same query. ``calibration``: the expected calibration error of ranked candidates.
    """

    sample: Sample
    yes: Estimate | None
    right_yes: Estimate | None
    flips: Estimate | None
    calibration: float | None


def rates(sample: Sample, reference: Sample | None) -> Rates | None:
    """Of ``sample``, and against the ``reference`` on the same queries; None if none applies."""
    own = sample.draws[0]
    answers = [prediction.answer for prediction in own]
    targets = [plain(prediction.target) for prediction in own]
    binary = set(targets) <= YES_NO
    found = Rates(
        sample=sample,
        yes=_share(answers, sample.clusters) if binary else None,
        right_yes=_share(targets, sample.clusters) if binary else None,
        flips=_flips(sample, reference),
        calibration=_calibration(sample),
    )
    nothing = (found.yes, found.flips, found.calibration) == (None, None, None)
    return None if nothing else found


def _share(answers: Sequence[str], clusters: Sequence[str]) -> Estimate:
    return estimate([float(plain(answer) == "yes") for answer in answers], clusters)


def _flips(sample: Sample, reference: Sample | None) -> Estimate | None:
    if reference is None:
        return None
    first = {prediction.query: prediction.answer for prediction in reference.draws[0]}
    shared = [p for p in sample.draws[0] if p.query in first]
    before = [first[prediction.query] for prediction in shared]
    now = [prediction.answer for prediction in shared]
    return flip_rate(before, now, [prediction.cluster for prediction in shared])


def _calibration(sample: Sample) -> float | None:
    ranked = all(prediction.candidates for prediction in sample.draws[0])
    if not ranked or sample.facts.metric is Metric.cider:
        return None
    confidences = [prediction.probability for prediction in sample.draws[0]]
    return expected_calibration_error(confidences, sample.scores[0].tolist())
