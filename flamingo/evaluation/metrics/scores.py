"""What answers are worth under a metric: one score a query, whose mean is reported.

Also the means themselves, with the interval that suits the metric.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int

from flamingo.choices import Metric
from flamingo.evaluation.metrics.caption import Consensus, cider_d
from flamingo.evaluation.metrics.classification import exact_match, relaxed_match, roc_auc
from flamingo.evaluation.metrics.stemming import stem_answer
from flamingo.evaluation.metrics.vqa import Mode, vqa_accuracy
from flamingo.evaluation.resampling import bootstrap_metric
from flamingo.evaluation.statistics import Estimate, estimate, mean_estimate

POSITIVE = "yes"
"""The answer whose probability :attr:`Metric.roc_auc` orders by."""


def item_score(metric: Metric, answer: str, references: Sequence[str]) -> float | None:
    """The score of one answer, best reference first; None if it depends on all answers together.

    All are in [0, 1] but CIDEr, which only :func:`item_scores` gives. VQA accuracies take the
    annotators' answers, all others the best of the references. Raises ``ValueError`` without
    references.
    """
    if not references:
        raise ValueError("references: expected at least one, got none")
    match metric:
        case Metric.exact_match | Metric.roc_auc:
            return max(exact_match(answer, reference) for reference in references)
        case Metric.relaxed_match:
            return max(relaxed_match(answer, reference) for reference in references)
        case Metric.vqa_accuracy:
            return vqa_accuracy(answer, references, Mode.official)
        case Metric.vqa_accuracy_always:
            return vqa_accuracy(answer, references, Mode.always)
        case Metric.ok_vqa_accuracy | Metric.ok_vqa_accuracy_always:
            official = metric is Metric.ok_vqa_accuracy
            stems = [stem_answer(reference) for reference in references]
            return vqa_accuracy(
                stem_answer(answer), stems, Mode.official if official else Mode.always
            )
        case Metric.cider:
            return None


def item_scores(
    metric: Metric, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """One score an answer. CIDEr's idf is that of all ``references`` given here.

    Raises ``ValueError`` for unequal lengths, and for an answer without references.
    """
    if len(answers) != len(references):
        raise ValueError(
            f"references: expected some for each of {len(answers)} answers, got {len(references)}"
        )
    if metric is Metric.cider:
        numbered = {str(i): answer for i, answer in enumerate(answers)}
        _, scores = cider_d(numbered, {str(i): own for i, own in enumerate(references)})
        return [scores[name] for name in numbered]
    scores = [item_score(metric, a, own) for a, own in zip(answers, references, strict=True)]
    return [score for score in scores if score is not None]


def right(metric: Metric, score: float) -> bool:
    """Whether an answer of this score is shown as right: at least a half; a CIDEr of at least 1."""
    return score >= (1.0 if metric is Metric.cider else 0.5)


def expected_scores(
    metric: Metric, guesses: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> list[float]:
    """What a uniform choice among each query's ``guesses`` is worth: 0 where there is no guess.

    Raises ``ValueError`` for unequal lengths, and for a query without references.
    """
    if len(guesses) != len(references):
        raise ValueError(
            f"references: expected some for each of {len(guesses)} guesses, got {len(references)}"
        )
    if metric is Metric.cider:
        consensus = Consensus({str(i): own for i, own in enumerate(references)})
        worth = [[consensus.score(str(i), guess) for guess in own] for i, own in enumerate(guesses)]
    else:
        worth = [
            [item_score(metric, guess, known) or 0.0 for guess in own]
            for own, known in zip(guesses, references, strict=True)
        ]
    return [sum(own) / len(own) if own else 0.0 for own in worth]


def measure(
    metric: Metric,
    scores: Sequence[float],
    clusters: Sequence[Hashable],
    positive: Sequence[float],
    labels: Sequence[int],
) -> Estimate:
    """The metric of a set of answers with its 95 % interval, clustered by image.

    ``scores`` are those of :func:`item_scores`; ``positive`` (the probability of
    :data:`POSITIVE`) and ``labels`` (1 where it is right) matter to ROC-AUC alone, whose interval
    is a percentile bootstrap over images; NaN if there are not both kinds of labels.
    """
    match metric:
        case Metric.cider:
            return mean_estimate(scores, clusters)
        case Metric.roc_auc:
            return _roc_auc(clusters, positive, labels)
        case _:
            return estimate(scores, clusters)


def _roc_auc(
    clusters: Sequence[Hashable], positive: Sequence[float], labels: Sequence[int]
) -> Estimate:
    n, groups = len(labels), len(set(clusters))
    if len(set(labels)) < 2:
        nan = float("nan")
        return Estimate(nan, nan, nan, nan, n, groups)

    def metric(queries: Int[np.ndarray, " query"]) -> float:
        own = [labels[i] for i in queries]
        if len(set(own)) < 2:
            return float("nan")
        return roc_auc([positive[i] for i in queries], own)

    found = bootstrap_metric(metric, clusters)
    return Estimate(found.value, found.standard_error, found.low, found.high, n, groups)
