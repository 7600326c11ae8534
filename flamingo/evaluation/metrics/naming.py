"""How reports speak of a metric, and when two answers are the same to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flamingo.choices import Metric
from flamingo.evaluation.metrics.stemming import stem_answer
from flamingo.evaluation.metrics.tokenization import tokenize
from flamingo.evaluation.metrics.vqa import Mode, normalize_answer


@dataclass(frozen=True, slots=True)
class Naming:
    """``unit`` is that of 100 times the value, as published. ``share``: the value is in [0, 1].

    ``normalization``: when answers are normalised before they are compared, for readers.
    """

    name: str
    unit: str
    share: bool
    normalization: str

    @property
    def scale(self) -> str:
        """``accuracy, %`` or ``CIDEr-D x 100``."""
        return f"{self.name}, %" if self.unit == "%" else f"{self.name} {self.unit}"


OFFICIAL = "official (only where the annotators' answers differ)"
ALWAYS = "always (as OpenFlamingo does)"
CASE = "lower case, no surrounding space"


def naming(metric: Metric) -> Naming:
    """The words for ``metric``."""
    match metric:
        case Metric.exact_match:
            return Naming("accuracy", "%", True, CASE)
        case Metric.relaxed_match:
            return Naming("relaxed accuracy", "%", True, f"{CASE}; numbers may be 5 % off")
        case Metric.vqa_accuracy:
            return Naming("VQA accuracy", "%", True, OFFICIAL)
        case Metric.vqa_accuracy_always:
            return Naming("VQA accuracy (always)", "%", True, ALWAYS)
        case Metric.ok_vqa_accuracy:
            return Naming("OK-VQA accuracy", "%", True, f"stemmed, then {OFFICIAL}")
        case Metric.ok_vqa_accuracy_always:
            return Naming("OK-VQA accuracy (always)", "%", True, f"stemmed, then {ALWAYS}")
        case Metric.cider:
            return Naming("CIDEr-D", "× 100", False, "PTB tokens in lower case, no punctuation")
        case Metric.roc_auc:
            return Naming("ROC-AUC", "× 100", True, "none (ranked by the probability of yes)")


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
