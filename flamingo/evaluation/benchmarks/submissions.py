"""From predictions to the file that a benchmark's server scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flamingo.evaluation.benchmarks.base import Submission
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.metrics.scores import POSITIVE
from flamingo.evaluation.predictions import Prediction


def of_answers(
    write: Callable[[Path, Sequence[Example], Mapping[str, str]], None], test: Sequence[Example]
) -> Submission:
    """JSON of the answers, in the order of ``test``.

    Where only some questions were asked the file holds them alone.
    """

    def submit(path: Path, predictions: Sequence[Prediction]) -> Path:
        answers = {_id(prediction): prediction.answer for prediction in predictions}
        path = path.with_name(f"{path.name}.json")
        write(path, [example for example in test if example.id in answers], answers)
        return path

    return submit


def of_probabilities(
    write: Callable[[Path, Sequence[Example], Mapping[str, float]], None], test: Sequence[Example]
) -> Submission:
    """CSV of the probability of yes, of two candidates, in the order of ``test``."""

    def submit(path: Path, predictions: Sequence[Prediction]) -> Path:
        values = {
            _id(p): p.probability if p.answer == POSITIVE else 1 - p.probability
            for p in predictions
        }
        path = path.with_name(f"{path.name}.csv")
        write(path, [example for example in test if example.id in values], values)
        return path

    return submit


def _id(prediction: Prediction) -> str:
    return prediction.query.removeprefix("test/")
