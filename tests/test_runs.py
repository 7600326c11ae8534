"""Reopening runs: by their path, wherever they are and however far they are."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from flamingo.run_directory import RunDirectory
from flamingo.run_episodes import COLUMNS
from flamingo.runs import find, load_run
from tests.written_runs import config, save


@pytest.fixture
def moved(tmp_path):
    """A run with something in every place, copied to where its config does not say."""
    run = RunDirectory.open(config(tmp_path / "there"))
    save(run, 10)
    save(run, 9)
    lines = [{"step": 5, "train/loss": 2.0}, {"step": 10, "train/loss": 1.0, "validation/loss": 3}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for benchmark, condition in (("easy_vqa", "shots=0"), ("binding/2", "shots=4")):
        folder = run.predictions / benchmark
        folder.mkdir(parents=True)
        lines = '{"key": "a", "query": "q1", "score": 1.0}\n{"key'
        (folder / f"{condition}.jsonl").write_text(lines)
    run.results.write_text('{"step": 10, "settings": {"evaluation": {}}}')
    shutil.copytree(run.path, tmp_path / "here")
    shutil.rmtree(tmp_path / "there")
    return load_run(tmp_path / "here")


def test_a_copied_run_opens_with_all_it_holds(moved):
    assert moved.config.data.easy_vqa.pairs == 3
    assert moved.checkpoints == [9, 10]
    assert moved.checkpoint().step == 10 and moved.checkpoint(9).step == 9
    assert moved.metrics["train/loss"].to_dict() == {5: 2.0, 10: 1.0}
    assert moved.metrics["validation/loss"].isna().tolist() == [True, False]
    assert moved.results["step"] == 10


def test_predictions_come_as_one_table_labelled_by_benchmark_and_condition(moved):
    expected = pd.DataFrame(
        {
            "benchmark": ["binding/2", "easy_vqa"],
            "condition": ["shots=4", "shots=0"],
            "key": ["a", "a"],
            "query": ["q1", "q1"],
            "score": [1.0, 1.0],
        }
    )
    pd.testing.assert_frame_equal(moved.predictions(), expected)
    assert moved.predictions("easy_vqa")["condition"].tolist() == ["shots=0"]
    assert moved.predictions("easy_vqa", "shots=4").empty


def test_only_the_predictions_behind_the_results_with_their_seeds(moved):
    log = moved.directory.predictions_of("easy_vqa", "real")
    rows = [{"key": key, "score": score} for key, score in (("old", 0), ("a", 1), ("b", 2))]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="cells.jsonl: expected the keys"):
        moved.predictions(counted=True)
    where = {"benchmark": "easy_vqa", "condition": "real", "shots": 4}
    cells = [{**where, "seed": 5, "keys": ["b", "a"]}, {**where, "seed": 3, "keys": ["b", "b"]}]
    cells.append({**where, "benchmark": "other", "seed": 3, "keys": ["c"]})
    moved.directory.cells.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    found = moved.predictions("easy_vqa", "real", counted=True)
    assert found["key"].tolist() == ["b", "a", "b", "b"]
    assert found["score"].tolist() == [2, 1, 2, 2]
    assert found["seed"].tolist() == [5, 5, 3, 3]
    assert set(found["condition"]) == {"real"}
    assert moved.predictions("easy_vqa", "blank_query", counted=True).empty
    with pytest.raises(ValueError, match=r"other/real.jsonl: expected a prediction of key 'c'"):
        moved.predictions(counted=True)


def test_a_prediction_that_was_judged_again_is_one_row(moved):
    log = moved.directory.predictions_of("easy_vqa", "real")
    rows = [("a", 0, "colour"), ("b", 1, "colour"), ("a", 1, "shape")]
    log.write_text(
        "".join(json.dumps({"key": k, "score": s, "group": g}) + "\n" for k, s, g in rows)
    )
    found = moved.predictions("easy_vqa", "real")
    assert found["key"].tolist() == ["a", "b"]
    assert found["score"].tolist() == [1, 1] and found["group"].tolist() == ["shape", "colour"]


def test_what_is_not_there_is_named(tmp_path, moved):
    with pytest.raises(ValueError, match="expected a checkpoint of step 11, got .9, 10."):
        moved.checkpoint(11)
    with pytest.raises(ValueError, match="config.yaml: expected a run's configuration"):
        load_run(tmp_path / "nowhere")
    moved.directory.results.unlink()
    with pytest.raises(ValueError, match="expected the results of an evaluation"):
        _ = moved.results


def test_a_benchmark_or_condition_that_is_not_there_is_refused_with_the_nearest(moved):
    message = r"benchmark: expected one of binding/2, easy_vqa, got 'easy_vqaa'; did you mean easy_"
    for read in (moved.predictions, moved.episodes):
        with pytest.raises(ValueError, match=message):
            read("easy_vqaa")
        with pytest.raises(ValueError, match="condition: .* got 'shots=3'; did you mean shots="):
            read("easy_vqa", "shots=3")
    assert moved.predictions("easy_vqa", "blank_query").empty  # there is such a condition
    shutil.rmtree(moved.directory.predictions)
    assert moved.predictions("easy_vqaa", "shots=3").empty  # who knows what will come


def test_a_misspelt_path_is_answered_with_the_run_nearest_to_it(tmp_path, monkeypatch):
    RunDirectory.open(config(tmp_path / "runs", seed=0))
    RunDirectory.open(config(tmp_path / "runs", seed=1))
    monkeypatch.chdir(tmp_path)
    for misspelt, meant in (
        ("runs/mien/seed=1", "runs/mine/seed=1"),
        ("rusn/mine/seed=1", "runs/mine/seed=1"),
        ("runs/mein", "runs/mine/seed=0"),
        (tmp_path / "runs" / "mien" / "seed=0", tmp_path / "runs" / "mine" / "seed=0"),
    ):
        with pytest.raises(ValueError) as told:
            load_run(misspelt)
        assert str(told.value).endswith(f"found no such file; did you mean {meant}?")
    with pytest.raises(ValueError, match="did you mean runs/mine/seed="):
        load_run("runs/mine/seed=7")
    with pytest.raises(ValueError, match="found no such file$"):
        load_run("runs/otherwise/seed=0")


def test_a_run_is_shown_in_a_line(moved):
    assert repr(moved) == f"<Run {moved.path}: step 10 of 1000, not finished, evaluated>"


def test_an_unreadable_config_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x\ntraining: {no_such_field: 1}\n")
    with pytest.raises(ValueError, match=r"config.yaml: .*no_such_field"):
        load_run(tmp_path)


@pytest.mark.parametrize("module", ["flamingo.runs", "flamingo.build"])
def test_who_opens_or_builds_models_has_registered_them_with_transformers(module):
    code = f"import {module}; from transformers import AutoConfig; AutoConfig.for_model('flamingo')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_named_without_its_seed_says_which_there_are(tmp_path):
    run = RunDirectory.open(config(tmp_path, seed=3))
    with pytest.raises(ValueError, match=r"found no such file, but one in each of \['seed=3'\]"):
        load_run(run.path.parent)
    with pytest.raises(ValueError, match="found no such file$"):
        load_run(tmp_path)


# ---------------------------------------------------------------------------- going on, copied


def test_a_run_that_has_only_begun_opens_with_nothing_in_it(tmp_path):
    run = load_run(RunDirectory.open(config(tmp_path)).path)
    assert run.metrics.empty and run.checkpoints == [] and run.predictions().empty
    assert list(run.episodes().columns) == list(COLUMNS)
    assert not run.finished and not run.evaluated
    with pytest.raises(ValueError, match="expected a checkpoint, got none"):
        run.model()


def test_a_line_that_is_being_written_is_left_out_until_it_is_whole(moved):
    metrics = moved.directory.metrics
    whole = metrics.read_text()
    metrics.write_text(whole + '{"step": 15, "train/l')
    assert list(moved.metrics.index) == [5, 10]
    metrics.write_text(whole + '{"step": 15, "train/loss": 0.5}\n')
    assert moved.metrics["train/loss"].iloc[-1] == 0.5


def test_a_file_that_was_copied_by_half_is_named(moved):
    moved.directory.results.write_text('{"step": 10, ')
    with pytest.raises(ValueError, match=r"results.json: expected a whole JSON file"):
        _ = moved.results
    with pytest.raises(ValueError, match=r"easy_vqa, shots=0: expected a prediction, got"):
        moved.directory.results.unlink()
        moved.episodes("easy_vqa")


def test_reading_writes_nothing(moved):
    def tree():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in moved.path.rglob("*")}

    before = tree()
    _ = moved.metrics, moved.checkpoints, moved.results, moved.finished
    moved.predictions()
    moved.images()
    find(root=moved.path)
    assert tree() == before
