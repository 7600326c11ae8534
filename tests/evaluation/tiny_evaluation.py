"""A whole evaluation at tiny size: imported by the tests, and run by them as processes.

``python tiny_evaluation.py <folder> [fail] [wait=<count>]`` predicts into ``<folder>/predictions``,
on as many processes as it was launched on. ``fail``: process 1 cannot load its model. ``wait``:
after so many predictions of its own each process waits to be killed.
"""

import os
import sys
import time
from pathlib import Path

import torch

from flamingo.evaluation.predictions import Prediction, PredictionFile
from flamingo.evaluation.processes import ALONE, OtherProcessEnded, Processes, launched
from flamingo.evaluation.runner import Loaded, Outcome, run_benchmarks
from flamingo.evaluation_config import EvaluationConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from tests.evaluation import tiny


def predict(
    folder: Path,
    processes: Processes = ALONE,
    model: FlamingoForConditionalGeneration | None = None,
    queries: int = 6,
    failing: bool = False,
    **settings,
) -> Outcome:
    def load(images) -> Loaded:
        if failing:
            raise ValueError("no such model")
        return Loaded(model or tiny.model(), tiny.load_media(), torch.float32)

    return run_benchmarks(
        [tiny.binding(queries=queries), tiny.binding(ways=3, queries=queries, shots=(1,))],
        EvaluationConfig(**{"batch_size": 4, **settings}),
        tiny.tokenizer(),
        folder,
        model_id="m",
        precision="float32",
        load=load,
        processes=processes,
    )


def answers(outcome: Outcome, name: str = "answer") -> dict[tuple, str | float]:
    return {
        (cell.benchmark.name, cell.shots, cell.condition, p.query): getattr(p, name)
        for cell, predictions in outcome.cells
        for p in predictions
    }


def wait_after(count: int) -> None:
    append, written = PredictionFile.append, 0

    def counted(self: PredictionFile, predictions: list[Prediction]) -> None:
        nonlocal written
        append(self, predictions)
        written += len(predictions)
        if written >= count:
            time.sleep(600)

    PredictionFile.append = counted


if __name__ == "__main__":
    processes = launched()
    folder = Path(sys.argv[1])
    (folder / f"pid{processes.index}").write_text(str(os.getpid()))
    failing = "fail" in sys.argv and processes.index == 1
    for argument in sys.argv[2:]:
        if argument.startswith("wait="):
            wait_after(int(argument.removeprefix("wait=")))
    try:
        predict(folder / "predictions", processes, queries=60, failing=failing)
    except OtherProcessEnded:
        sys.exit(f"process {processes.index}: another one ended")
