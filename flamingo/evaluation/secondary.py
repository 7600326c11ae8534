"""What else is reported of a point beside its own metric, from the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from flamingo.choices import Metric
from flamingo.evaluation import influence
from flamingo.evaluation.metrics.calibration import expected_calibration_error, reliability
from flamingo.evaluation.metrics.caption import bleu_4, rouge_l
from flamingo.evaluation.metrics.naming import vqa_modes
from flamingo.evaluation.metrics.scores import POSITIVE, item_scores
from flamingo.evaluation.points import (
    Draw,
    Point,
    Row,
    Scored,
    in_range,
    labels,
    over_draws,
    positive,
    scored,
    summary,
)

SECONDARY_LABELS = {
    "accuracy": "accuracy",
    "precision": "precision of yes",
    "recall": "recall of yes",
    "f1": "F1 of yes",
    "yes_ratio": "yes-ratio",
    "roc_auc": "ROC-AUC",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "vqa_accuracy": "VQA accuracy, official normalisation",
    "vqa_accuracy_always": "VQA accuracy, always normalised",
    "ok_vqa_accuracy": "OK-VQA accuracy, official normalisation",
    "ok_vqa_accuracy_always": "OK-VQA accuracy, always normalised",
    "ece": "expected calibration error",
}


def secondary(point: Point, places: Sequence[int]) -> Row:
    """Metrics by name, each with ``mean`` and, where it is cheap, its interval.

    Captions: BLEU-4 and ROUGE-L. Yes or no: accuracy, precision, recall, F1, yes-ratio, ROC-AUC.
    VQA: both modes of normalisation. All whose scores are shares: ECE, over all draws together.
    """
    metric = point.benchmark.task.metric
    found: Row = {}
    if metric is Metric.cider:
        return _captions(point, places)
    if yes_or_no(point):
        found |= _decisions(point, places)
    for mode in vqa_modes(metric).values():
        draws = [Scored(_rescored(draw, mode, places), ()) for draw in point.draws]
        found[mode.value] = _brief(summary(mode, draws, _clusters(point, places), ()))
    found["ece"] = {"mean": expected_calibration_error(*_confidences(point, places))}
    return found


def calibration_bins(point: Point, places: Sequence[int]) -> list[Row]:
    """The reliability diagram, all draws together; none for a metric that is no share."""
    if point.benchmark.task.metric is Metric.cider:
        return []
    return [asdict(found) for found in reliability(*_confidences(point, places))]


def yes_or_no(point: Point) -> bool:
    """Whether every query has two candidates, of which one is :data:`POSITIVE`."""
    return all(
        len(p.candidates) == 2 and POSITIVE in p.candidates
        for draw in point.draws
        for p in draw.predictions
    )


def _captions(point: Point, places: Sequence[int]) -> Row:
    clusters = _clusters(point, places)
    bleu, rouge = [], []
    for draw in point.draws:
        answers = {str(i): draw.predictions[i].answer for i in places}
        references = {str(i): draw.cell.episodes[i].references for i in places}
        bleu.append(bleu_4(answers, references)[0])
        _, by_image = rouge_l(answers, references)
        rouge.append(Scored([by_image[name] for name in answers], ()))
    return {
        "bleu_4": {"mean": sum(bleu) / len(bleu)},
        # A mean of shares, as exact match is.
        "rouge_l": _brief(summary(Metric.exact_match, rouge, clusters, ())),
    }


def _decisions(point: Point, places: Sequence[int]) -> Row:
    """Of yes against no; the answer that is likelier is what the model says."""
    clusters = _clusters(point, places)
    right = np.array(labels(point, places), dtype=float)
    found: dict[str, list[influence.Influence]] = {}
    for draw in point.draws:
        said = np.array([float(draw.predictions[i].answer == POSITIVE) for i in places])
        every, hits = np.ones_like(said), said * right
        own = {
            "accuracy": influence.ratio((said == right).astype(float), every),
            "precision": influence.ratio(hits, said),
            "recall": influence.ratio(hits, right),
            "f1": influence.ratio(2 * hits, said + right),
            "yes_ratio": influence.ratio(said, every),
            "roc_auc": influence.roc_auc(
                np.array([positive(draw.predictions[i]) for i in places]),
                [bool(label) for label in right],
            ),
        }
        for name, value in own.items():
            found.setdefault(name, []).append(value)
    return {
        name: _brief(in_range(over_draws(values, clusters), share=True))
        for name, values in found.items()
    }


def _rescored(draw: Draw, metric: Metric, places: Sequence[int]) -> list[float]:
    answers = [draw.predictions[i].answer for i in places]
    return item_scores(metric, answers, [draw.cell.episodes[i].references for i in places])


def _confidences(point: Point, places: Sequence[int]) -> tuple[list[float], list[float]]:
    """Probability and score of each answer of each draw."""
    confidences = [draw.predictions[i].probability for draw in point.draws for i in places]
    return confidences, [score for draw in scored(point, places) for score in draw.scores]


def _clusters(point: Point, places: Sequence[int]) -> list[str]:
    return [point.draws[0].clusters[i] for i in places]


def _brief(numbers: Row) -> Row:
    return {name: numbers[name] for name in ("mean", "standard_error", "low", "high")}
