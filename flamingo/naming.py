"""What results are called in tables and pictures: metrics, conditions, baselines."""

from __future__ import annotations

from dataclasses import dataclass

from flamingo.choices import Condition, Metric

ALL = "all"
"""Group of the cells over all queries."""
CONDITION_LABELS = {condition.value: condition.label for condition in Condition} | {
    "centroid": "nearest centroid (ceiling)",
    "prior": "best answer to the question alone",
    "nearest_question": "answer of the nearest question",
    "majority": "majority of demonstrations",
    "last": "last demonstration",
    "chance": "chance",
}


Column = tuple[int, int]
"""Where a number stands among those of other shots: 0 for the text-only "0-shot" and 1 for all
others, then the shots."""


def shot_column(condition: Condition, shots: int) -> Column:
    """The text-only "0-shot" never stands beside a true 0-shot."""
    return (int(condition is not Condition.text_only_zero_shot), shots)


def column_title(place: Column) -> str:
    """``text-only “0”``, ``0``, ``4``."""
    return str(place[1]) if place[0] else "text-only “0”"


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
