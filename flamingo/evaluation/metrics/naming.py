"""Which metrics belong together, and when two answers are the same to one."""

from __future__ import annotations

from collections.abc import Callable

from flamingo.choices import Metric
from flamingo.evaluation.metrics.stemming import stem_answer
from flamingo.evaluation.metrics.tokenization import tokenize
from flamingo.evaluation.metrics.vqa import Mode, normalize_answer


def vqa_modes(metric: Metric) -> dict[Mode, Metric]:
    """The metric in both modes of normalisation, its own among them; empty where there are none."""
    plain = {Mode.official: Metric.vqa_accuracy, Mode.always: Metric.vqa_accuracy_always}
    stemmed = {Mode.official: Metric.ok_vqa_accuracy, Mode.always: Metric.ok_vqa_accuracy_always}
    return next((modes for modes in (plain, stemmed) if metric in modes.values()), {})


def canonical(metric: Metric) -> Callable[[str], str]:
    """The form in which two answers are the same if the metric does not tell them apart.

    For counting copies: VQA answers always normalised (the official mode looks at references too),
    captions by their tokens, all others up to case and surrounding space.
    """
    match metric:
        case Metric.vqa_accuracy | Metric.vqa_accuracy_always:
            return normalize_answer
        case Metric.ok_vqa_accuracy | Metric.ok_vqa_accuracy_always:
            return lambda text: normalize_answer(stem_answer(text))
        case Metric.cider:
            return lambda text: " ".join(tokenize(text))
        case Metric.exact_match | Metric.relaxed_match | Metric.roc_auc:
            return lambda text: text.strip().lower()
