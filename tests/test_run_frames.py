"""Several runs as one table: what differs, and what came of it."""

import json

import pandas as pd
import pytest

from flamingo.choices import Condition
from flamingo.config import ModelConfig, ResamplerConfig, TrainingConfig
from flamingo.run_directory import RunDirectory
from flamingo.run_frames import frame, metrics, scores
from flamingo.runs import CELL, FACTS, NUMBERS, Run, load_run
from tests.written_runs import config, save


def opened(folder, *, seed: int = 0, depth: int = 1) -> RunDirectory:
    model = ModelConfig(resampler=ResamplerConfig(depth=depth))
    return RunDirectory.open(
        config(folder, seed=seed, model=model, training=TrainingConfig(steps=200))
    )


def log(directory: RunDirectory, *lines: dict) -> None:
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(condition: str, shots: int, mean: float, group: str = "all", **more) -> dict:
    where = {"benchmark": "vqa", "condition": condition, "shots": shots, "group": group}
    about = {"standard_error": 0.1, "low": mean - 0.2, "high": mean + 0.2, "n": 9, "clusters": 8}
    return where | {"mean": mean, **about, "seeds": 1, "probability": 0.5} | more


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    """One that is done, one that is going on, one that has just been started."""
    done, going_on, begun = (
        opened(tmp_path, seed=2, depth=3),
        opened(tmp_path, seed=1),
        opened(tmp_path),
    )
    save(done, 200)
    log(done, {"step": 100, "train/loss": 3.0, "validation/loss": 4.0}, {"step": 200, "x": 1.5})
    results = {
        "benchmarks": [{"name": "vqa", "metric": "exact_match", "unit": "demos", "chance": 0.25}],
        "model": [
            row("real", 0, 0.5),
            row("real", 4, 0.75),
            row("real", 4, 0.9, "colour"),
            row("blank_query", 4, 0.25),
        ],
        "baselines": [row("majority", 4, 0.3)],
        "differences": [row("real - blank_query", 4, 0.5)],
    }
    done.results.write_text(json.dumps(results))
    log(going_on, {"step": 10, "train/loss": 5.0}, {"step": 20, "train/loss": 4.5})
    with going_on.metrics.open("a") as file:
        file.write('{"step": 30, "tra')
    return [load_run(directory.path) for directory in (done, going_on, begun)]


def test_results_of_a_run_come_as_rows_with_their_intervals(runs):
    table = runs[0].scores()
    assert list(table.columns) == [*CELL, *NUMBERS, *FACTS]
    assert table[["condition", "shots", "mean"]].to_numpy().tolist() == [
        ["real", 0, 0.5],
        ["real", 4, 0.75],
        ["blank_query", 4, 0.25],
    ]
    assert set(table["metric"]) == {"exact_match"} and set(table["chance"]) == {0.25}
    assert runs[0].scores("colour")["mean"].tolist() == [0.9]
    assert len(runs[0].scores(None)) == 4
    assert runs[0].baselines()["condition"].tolist() == ["majority"]
    assert runs[0].differences()["high"].tolist() == [0.7]
    with pytest.raises(ValueError, match="expected the results of an evaluation"):
        runs[1].scores()


def test_an_interval_that_is_not_known_is_no_number_in_a_column_of_numbers(runs):
    results = json.loads(runs[0].directory.results.read_text())
    unknown = {"standard_error": None, "low": None, "high": None}
    results["differences"] = [row("real - blank_query", 4, 0.0, **unknown)]
    runs[0].directory.results.write_text(json.dumps(results))
    table = runs[0].differences()
    assert table["mean"].tolist() == [0] and table["low"].isna().all()
    assert table["low"].dtype == table["high"].dtype == float


def test_a_group_that_no_query_is_of_is_refused(runs):
    message = r"group: expected one of all, colour, got 'color'; did you mean colour\?"
    for table in (runs[0].scores, runs[0].baselines, runs[0].differences):
        with pytest.raises(ValueError, match=message):
            table("color")
    assert runs[0].differences("colour").empty
    with pytest.raises(ValueError, match=message):
        scores(runs, "color")
    assert scores(runs, "colour")["mean"].tolist() == [0.9]
    runs[0].directory.results.write_text('{"model": []}')
    assert runs[0].scores("colour").empty


def test_a_row_a_run_of_what_differs_and_what_came_of_it(runs):
    table = frame(runs, metrics=["train/loss", "validation/loss"])
    expected = pd.DataFrame(
        {
            "name": ["mine"] * 3,
            "seed": [2, 1, 0],
            "model.resampler.depth": [3, 1, 1],
            "step": [200, 20, 0],
            "finished": [True, False, False],
            "train/loss": [3.0, 4.5, None],
            "validation/loss": [4.0, None, None],
            "vqa, 0 shots": [0.5, None, None],
            "vqa, 4 shots": [0.75, None, None],
        },
        index=pd.Index([str(run.path) for run in runs], name="run"),
    )
    pd.testing.assert_frame_equal(table, expected)
    blank = frame(runs, metrics=[], condition=Condition.blank_query)
    assert blank["vqa, 4 shots"].tolist()[0] == 0.25 and "vqa, 0 shots" not in blank


def test_one_run_twice_has_a_row_each_time(runs):
    assert frame([runs[0], runs[0]])["vqa, 4 shots"].tolist() == [0.75, 0.75]


def test_results_and_metrics_of_all_stand_below_each_other(runs):
    both = scores([runs[1], runs[0]])
    assert both["run"].tolist() == [str(runs[0].path)] * 3
    assert both["model.resampler.depth"].tolist() == [3] * 3
    assert both["low"].tolist() == pytest.approx([0.3, 0.55, 0.05])
    logged = metrics(runs)
    assert logged["step"].tolist() == [100, 200, 10, 20]
    assert logged["seed"].tolist() == [2, 2, 1, 1]
    assert logged["train/loss"].dropna().tolist() == [3.0, 5.0, 4.5]


def test_of_no_run_there_are_no_rows(runs):
    assert frame([]).empty and scores([]).empty and metrics(runs[2:]).empty
