"""How far runs are, and running them: by stand-ins for ``train.py`` and ``evaluate.py``."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo.ablation import work
from flamingo.ablation.progress import (
    Progress,
    Stage,
    duration,
    progress_of,
    seconds_left,
    step_seconds,
)
from flamingo.ablation.sweep import Sweep, SweepRun, compose_sweep
from flamingo.ablation.work import Outcome, Place, Workers, commands, places
from flamingo.config import RunConfig
from flamingo.run_directory import RunDirectory
from tests.test_runs import save

TRAIN = """
import json, os, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(["train", words["name"], os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
if words["name"].endswith("ajar"):
    print("error: a mistake\\n", file=sys.stderr)
    sys.exit(3)
if "SLOW" in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("waits", flush=True)
    time.sleep(30)
"""
EVALUATE = """
import json, os, sys
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps(["evaluate", *sys.argv[1:]]) + "\\n")
"""


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    overrides = ["evaluation.control_queries=0"]
    return compose_sweep("ablation_gate_init", overrides, seeds=[0])


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    monkeypatch.setattr(work, "EXPERIMENTS", tmp_path)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))


def seen(folder: Path) -> list[list[str | None]]:
    return [json.loads(line) for line in (folder / "seen").read_text().splitlines()]


def test_a_run_that_fails_leaves_the_others_and_is_told_with_its_last_words(
    sweep: Sweep, tmp_path: Path
):
    told: list[Outcome] = []
    failed = Workers(sweep, [{}], tmp_path / "logs").run(sweep.runs, told.append)
    assert [outcome.run.arm for outcome in told] == sweep.arms
    (one,) = failed
    assert one.reason == "train.py ended with status 3: error: a mistake"
    assert one.log.read_text().startswith("$ ") and "gate_init=0.1" in one.log.read_text()
    evaluated = [entry for entry in seen(tmp_path) if entry[0] == "evaluate"]
    assert len(evaluated) == 4
    folder = sweep.runs[0].config.directory
    assert evaluated[0][1:] == [f"run={folder}", "evaluation.control_queries=0"]


def test_runs_are_at_work_at_every_place(sweep: Sweep, tmp_path: Path):
    devices = places(2, {})
    assert devices == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    Workers(sweep, devices, tmp_path / "logs").run(sweep.runs, lambda _: None)
    used = [entry[2] for entry in seen(tmp_path) if entry[0] == "train"]
    assert len(used) == 5 and set(used) == {"0", "1"}


def test_each_place_has_one_run_at_a_time(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While one place is taken by a long run, all others are done at the other place."""
    used: list[str] = []
    others_done = threading.Event()

    def at_work(self: Workers, run: SweepRun, place: Place) -> Outcome:
        used.append(place["CUDA_VISIBLE_DEVICES"])
        if run is sweep.runs[0]:
            assert others_done.wait(60)
        elif len(used) == len(sweep.runs):
            others_done.set()
        return Outcome(run, 0.0, tmp_path)

    monkeypatch.setattr(Workers, "_run", at_work)
    Workers(sweep, places(2, {}), tmp_path / "logs").run(sweep.runs, lambda _: None)
    assert sorted(used.count(device) for device in "01") == [1, 4]


def test_places_are_the_gpus_that_may_be_seen():
    assert places(2, {"CUDA_VISIBLE_DEVICES": "5,7"}) == [
        {"CUDA_VISIBLE_DEVICES": "5"},
        {"CUDA_VISIBLE_DEVICES": "7"},
    ]
    assert places(0, {"CUDA_VISIBLE_DEVICES": ""}) == [{}]


def test_runs_at_once_share_gpus_in_turns_and_cores_evenly():
    assert places(0, {}, at_once=2, cores=5) == [{"OMP_NUM_THREADS": "2"}] * 2
    assert places(0, {}, at_once=4, cores=2) == [{"OMP_NUM_THREADS": "1"}] * 4
    shared = places(2, {"CUDA_VISIBLE_DEVICES": "5,7"}, at_once=3, cores=6)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in shared] == ["5", "7", "5"]
    assert {place["OMP_NUM_THREADS"] for place in shared} == {"2"}


def test_a_signal_stops_what_is_at_work_and_begins_nothing_more(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLOW", "yes")
    workers = Workers(sweep, [{}], tmp_path / "logs")

    def stop() -> None:
        log = tmp_path / "logs" / "quickstart-seed=0.log"
        while not (log.exists() and "waits" in log.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    began = time.monotonic()
    failed = workers.run(sweep.runs, lambda _: None)
    assert time.monotonic() - began < 25  # a job takes 30
    assert workers.stopped == signal.SIGTERM
    assert len(failed) == 5 and all(outcome.stopped for outcome in failed)
    assert [entry[0] for entry in seen(tmp_path)] == ["train"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_words_of_a_launcher_go_to_both_commands(sweep: Sweep):
    slurm = ["launcher=slurm", "hydra.launcher.partition=gpu"]
    for command in commands(sweep, sweep.runs[1], slurm):
        assert command[-2:] == slurm


def test_how_runs_are_evaluated_is_told_to_evaluation_alone(sweep: Sweep):
    # Training would write it into the config.yaml of new runs, and not of those that are there.
    training, evaluation = commands(sweep, sweep.runs[1])
    assert not [word for word in training if word.startswith("evaluation.")]
    assert "experiment=quickstart" in training and "seed=0" in training
    assert evaluation[-1] == "evaluation.control_queries=0"


# ---------------------------------------------------------------------------- progress


def results(config: RunConfig, **changes) -> str:
    from flamingo.structured import plain

    evaluation = {k: v for k, v in plain(config)["evaluation"].items() if k != "batch_size"}
    settings = {"evaluation": evaluation | changes}
    timing = {"seconds": 50.0}
    return json.dumps({"step": config.training.steps, "settings": settings, "timing": timing})


def test_a_run_goes_from_not_begun_to_finished(tmp_path: Path):
    config = compose_sweep("ablation_media", runs=str(tmp_path), seeds=[0]).runs[0].config
    config = replace(config, training=replace(config.training, steps=40))
    assert progress_of(config) == Progress(Stage.waiting, 0, None, None)
    directory = RunDirectory.open(config)
    directory.metrics.write_text(
        "".join(
            json.dumps({"step": step, "time/unix": unix}) + "\n"
            for step, unix in ((10, 100.0), (20, 120.0), (30, 9000.0), (40, 9020.0))
        )
    )
    assert progress_of(config).words == "begun, step 0"
    save(directory, 20)
    assert progress_of(config) == Progress(Stage.begun, 20, 2.0, None)
    save(directory, 40)
    assert progress_of(config).stage is Stage.trained
    directory.results.write_text(results(config).replace('"step": 40', '"step": 20'))
    assert progress_of(config).stage is Stage.trained, "what is evaluated is an earlier step"
    directory.results.write_text(results(config))
    assert progress_of(config) == Progress(Stage.finished, 40, 2.0, 50.0)
    asked = ["evaluation.control_queries=7"]
    assert progress_of(config, asked).words == "trained, evaluated with another control_queries"
    directory.results.write_text(results(config, control_queries=7))
    assert progress_of(config, asked).stage is Stage.finished
    older = json.loads(results(config))
    del older["settings"]["evaluation"]["vqav2"]  # a benchmark of its future
    directory.results.write_text(json.dumps(older))
    assert progress_of(config).stage is Stage.finished
    other = replace(config, training=replace(config.training, lr=1.0))
    with pytest.raises(ValueError, match="expected its own config"):
        progress_of(other)


def test_the_rest_takes_as_long_as_the_runs_of_its_arm_did(sweep: Sweep):
    def at(stage: Stage, step: int, speed: float | None, evaluation: float | None) -> Progress:
        return Progress(stage, step, speed, evaluation)

    runs = sweep.runs[:2] * 2
    waiting = at(Stage.waiting, 0, None, None)
    assert seconds_left([(run, waiting) for run in runs]) is None
    states = [
        at(Stage.finished, 1000, 1.0, 100.0),
        at(Stage.begun, 250, 3.0, None),
        waiting,
        waiting,
    ]
    # 750 steps of 3 s, 1,000 of its arm's 1 s and 1,000 of its arm's 3 s, and 3 evaluations.
    first, second, third = 750 * 3.0 + 100.0, 1000 * 1.0 + 100.0, 1000 * 3.0 + 100.0
    left = list(zip(runs, states, strict=True))
    assert seconds_left(left) == first + second + third
    # The third goes where the second was; a run is never divided.
    assert seconds_left(left, at_once=2) == second + third
    assert seconds_left(left, at_once=12) == third


def test_a_place_more_than_there_are_runs_makes_none_faster(sweep: Sweep):
    waiting = Progress(Stage.waiting, 0, 2.0, None)
    one = [(sweep.runs[0], waiting)]
    assert seconds_left(one, at_once=2) == seconds_left(one) == 2000.0
    assert seconds_left(one * 3, at_once=2) == 4000.0
    assert seconds_left(one * 9, at_once=8) == 4000.0


def test_without_entries_there_is_no_speed(tmp_path: Path):
    assert step_seconds(tmp_path / "metrics.jsonl") is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "unknown"),
        (12.3, "12 s"),
        (300.0, "5 min"),
        (3599.0, "1 h 00 min"),
        (11100.0, "3 h 05 min"),
    ],
)
def test_durations_are_told_as_readers_say_them(seconds: float | None, told: str):
    assert duration(seconds) == told
