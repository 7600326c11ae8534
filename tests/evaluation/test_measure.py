"""Another evaluation of a run, for a look: the run stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flamingo.choices import Condition
from flamingo.evaluation_config import BindingBenchmarkConfig, EvaluationConfig
from flamingo.evaluation_run import Measurement, measure
from flamingo.runs import Run, load_run
from tests.tiny_world import save_untrained_run, save_world

BINDING = BindingBenchmarkConfig(ways=[2], queries=4, views=3)
EVALUATION = EvaluationConfig(
    shots=[1], conditions=[Condition.real, Condition.blank_query], binding=BINDING
)
NAME = "twemoji_seen_2_ways"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def tiny_assets(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(world / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    return load_run(save_untrained_run(world, "tiny", "model.cross_attention.gate_init=1.0"))


def closed(model) -> None:
    for block in model.cross_attention.values():
        block.attention_gate.zero_()
        block.feed_forward_gate.zero_()


def probabilities(measured: Measurement) -> list[float]:
    return [p.probability for _, predictions in measured.outcome.cells for p in predictions]


def test_the_run_stays_as_it_is_and_a_change_is_not_taken_for_the_model(run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    plain = measure(run, EVALUATION, tmp_path)
    # Seen and held-out concepts, real and blank, 4 queries each.
    assert plain.outcome.new == 16 and len(plain.results["benchmarks"]) == 2
    assert {row["condition"] for row in plain.results["model"]} == {"real", "blank_query"}
    without = measure(run, EVALUATION, tmp_path, change=closed, changed="closed")
    assert without.outcome.new == 16
    assert probabilities(without) != probabilities(plain)
    # With closed gates a blank image is as good as any.
    halves = [own for cell, own in without.outcome.cells if cell.benchmark.name == NAME]
    real, blank = ([p.probability for p in own] for own in halves[:2])
    assert real == pytest.approx(blank, abs=1e-6)
    again = measure(run, EVALUATION, tmp_path)
    assert again.outcome.new == 0 and probabilities(again) == probabilities(plain)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_scores_are_those_of_the_predictions_by_query(run, tmp_path):
    measured = measure(run, EVALUATION, tmp_path)
    scores = measured.scores(NAME, 1, Condition.blank_query)
    ((_, predictions),) = [
        (cell, own)
        for cell, own in measured.outcome.cells
        if (cell.benchmark.name, cell.condition) == (NAME, Condition.blank_query)
    ]
    assert scores["score"].to_dict() == {p.query: p.score for p in predictions}
    assert scores["cluster"].to_dict() == {p.query: p.cluster for p in predictions}
    with pytest.raises(ValueError, match=r"expected one of .*blank_query.*, got .*3, 'real'"):
        measured.scores(NAME, 3)


def test_a_change_without_a_name_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="changed: expected a name"):
        measure(run, EVALUATION, tmp_path, change=closed)
    assert not list(tmp_path.iterdir())
