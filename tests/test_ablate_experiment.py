"""experiments/ablate.py as a user runs it, on tiny backbones: done, failed, stopped, continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import ablate
from experiments.ablate import (
    AblateConfig,
    Reporter,
    check_complete,
    check_kept,
    devices_of,
    gathered,
)
from flamingo.ablation.sweep import Sweep, compose_sweep
from flamingo.ablation.work import Outcome, Workers
from flamingo.comparison.sweep import read_results
from flamingo.composition import CONF, compose
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.training.tracking import read_metrics
from tests.fake_slurm import fake_slurm
from tests.tiny_world import save_untrained_run, save_world

ROOT = CONF.parent
SWEEP = """
question: Does it run?
experiment: smoke
reference: as it is
seeds: [0]
arms:
  wide open: [model.cross_attention.gate_init=1.0]
  broken: [data.max_tokens=20] # shorter than any sequence
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = save_world(tmp_path_factory.mktemp("world"))
    (folder / "mine.yaml").write_text(SWEEP)
    return folder


def command(world: Path, *words: str, sweep: str = "mine.yaml") -> list[str]:
    return [
        *(sys.executable, str(ROOT / "experiments" / "ablate.py"), f"experiment={sweep}"),
        *("name=tiny", f"vision.name={world / 'vision'}", f"language.name={world / 'language'}"),
        *("model.cross_attention.layers=[1,3]", "training.precision=fp32", *words),
    ]


def environment(world: Path, **more: str) -> dict[str, str]:
    own = {"FLAMINGO_CACHE": str(world / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"} | more


def start(
    world: Path, *words: str, sweep: str = "mine.yaml", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(world, *words, sweep=sweep),
        env=environment(world, **more),
        cwd=world,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_sweep_is_run_compared_and_passed_over_when_it_is_finished(world: Path) -> None:
    done = start(world, "runs=done")
    assert done.returncode == 1, done.stderr
    assert "wide open  model.cross_attention.gate_init=1.0" in done.stdout
    assert "3 runs of 12 steps, 0 finished; 1 at a time" in done.stdout
    assert "[1/3] as it is, seed 0: finished in " in done.stdout
    assert "[3/3] broken, seed 0: FAILED after " in done.stdout
    assert "data.max_tokens" in done.stdout, "the reason stands beside it"
    assert "error: 1 of the runs failed, the others are done: broken, seed 0: " in done.stderr
    assert "| easy-VQA | wide open (1) |" in done.stdout

    results = read_results(world / "experiments" / "results" / "mine-tiny.json")
    assert [arm["name"] for arm in results["arms"]] == ["as it is", "wide open"]
    assert results["arms"][1]["changes"] == {"model.cross_attention.gate_init": [0.5, 1.0]}
    assert results["steps"] == 12 and results["commit"] is not None
    path = world / "done" / "tiny-wide_open" / "seed=0"
    for row in load_run(path).results["model"]:
        if (row["condition"], row["group"]) == ("real", "all"):
            (cell,) = (
                cell
                for cell in results["cells"]
                if (cell["arm"], cell["benchmark"], cell["shots"])
                == ("wide open", row["benchmark"], row["shots"])
            )
            assert cell["mean"] == pytest.approx(row["mean"], abs=1e-6)
            assert (cell["low"], cell["high"]) == pytest.approx((row["low"], row["high"]), abs=1e-6)
    files = {file.name for file in (world / "done/.sweeps/mine-tiny/comparison").iterdir()}
    assert {"scores.md", "differences.tex", "forest.png", "forest.svg", "results.json"} <= files

    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    again = start(world, "runs=done")
    assert again.returncode == 1
    assert "3 runs of 12 steps, 2 finished" in again.stdout
    assert "[1/1] broken, seed 0: FAILED" in again.stdout
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


@pytest.mark.slow
def test_a_sweep_that_is_stopped_is_continued_by_the_same_command(world: Path) -> None:
    words = (
        "runs=stopped",
        "results=of_60_steps",
        "training.steps=60",
        "training.checkpoint_every=1000",
    )
    process = subprocess.Popen(
        command(world, *words),
        env=environment(world),
        cwd=world,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = world / "stopped" / "tiny" / "seed=0"
    while len(read_metrics(folder / "metrics.jsonl")) < 3:
        time.sleep(0.05)
        assert process.poll() is None, process.stderr and process.stderr.read()
    process.send_signal(signal.SIGTERM)
    said, error = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert said.endswith("Stopped. The same command continues.\n")
    assert not (world / "stopped" / "tiny-wide_open").exists()
    (step,) = load_run(folder).checkpoints
    assert 3 <= step < 60

    planned = start(world, *words, "dry_run=true")
    assert f"seed 0 begun, step {step}" in planned.stdout and planned.returncode == 0
    start(world, *words)
    first, second = load_run(folder).provenance["launches"]
    assert (first["from_step"], second["from_step"]) == (0, step)
    results = json.loads((world / "of_60_steps/mine-tiny.json").read_text())
    assert results["steps"] == 60


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_slurm_jobs_and_passed_over_when_they_are_finished(
    world: Path, tmp_path: Path
) -> None:
    sound = tmp_path / "sound.yaml"
    sound.write_text(SWEEP.partition("  broken")[0])
    words = (
        "runs=launched",
        f"results={tmp_path}",
        "launcher=slurm",
        "hydra.launcher.partition=gpu",
    )
    cluster = fake_slurm(tmp_path / "cluster")
    done = start(world, *words, sweep=str(sound), **cluster)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 runs of 12 steps, 0 finished; 2 at a time" in done.stdout
    assert "| easy-VQA | wide open (1) |" in done.stdout
    jobs = sorted(tmp_path.glob("cluster/*/job.sh"))
    assert len(jobs) == 4, "training and evaluation of two runs"
    assert all("#SBATCH --partition=gpu\n" in job.read_text() for job in jobs)
    trained = {
        launch["slurm_job"]
        for name in ("tiny", "tiny-wide_open")
        for launch in load_run(world / "launched" / name / "seed=0").provenance["launches"]
    }
    assert len(trained) == 2 and trained < {job.parent.name for job in jobs}

    again = start(world, *words, sweep=str(sound), **cluster)
    assert again.returncode == 0, again.stderr
    assert "2 runs of 12 steps, 2 finished" in again.stdout
    assert sorted(tmp_path.glob("cluster/*/job.sh")) == jobs


@pytest.mark.slow
def test_an_evaluation_is_launched_as_training_is(world: Path, monkeypatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(world / "cache"))
    sections = ("evaluation.easy_vqa.queries=4", "evaluation.shots=[0,1]")
    run = save_untrained_run(world, "launched", *sections, "evaluation.binding=null")
    script = str(ROOT / "experiments" / "evaluate.py")
    done = subprocess.run(
        [sys.executable, script, f"run={run}", "launcher=local", "evaluation.shots=[0]"],
        env=environment(world),
        cwd=world,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert load_run(run).results["settings"]["evaluation"]["shots"] == [0]
    assert list((run / ".sweeps").glob("*/*_log.out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.stepz=3"], "did you mean training.steps?"),
        (["seed=3"], "seed: expected none (a sweep gives each run its own; seeds=[...] are"),
        (["hydra.launcher.partition=gpu"], "launch: expected launcher=slurm"),
    ],
)
def test_a_mistake_ends_with_its_message_alone(world: Path, words: list[str], message: str) -> None:
    before = sorted(world.rglob("*"))  # what the sweeps of other tests left
    done = start(world, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ({"question": "Another?"}, r"would be lost: question Another\?"),
        ({"steps": 7}, "would be lost: steps 7"),
        ({"seeds": [0, 1, 2, 3]}, "would be lost: seeds 3"),
        ({"arm": "a third"}, "would be lost: arms a third"),
    ],
)
def test_results_of_another_sweep_are_not_overwritten(tmp_path: Path, lost: dict, message: str):
    sweep = compose_sweep("ablation_media")
    arms = [lost.get("arm", "all images"), "last image"]
    kept = {
        "sweep": "ablation_media",
        "question": lost.get("question", sweep.config.question),
        "reference": "last image",
        "steps": lost.get("steps", 1000),
        "arms": [{"name": arm, "seeds": lost.get("seeds", [0, 1, 2])} for arm in arms],
        "cells": [],
        "differences": [],
    }
    path = tmp_path / "ablation_media.json"
    check_kept(path, sweep)
    path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=message):
        check_kept(path, sweep)
    path.write_text(
        json.dumps(kept | {"question": sweep.config.question, "steps": 1000, "arms": []})
    )
    check_kept(path, sweep)


def test_results_do_not_lose_a_seed_that_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"

    def results(**seeds: list[int]) -> dict:
        told = {name: "" for name in ("sweep", "question", "steps", "reference")}
        arms = [{"name": name, "seeds": own} for name, own in seeds.items()]
        return told | {"arms": arms, "cells": [], "differences": []}

    check_complete(path, results(mine=[0]))
    path.write_text(json.dumps(results(mine=[0, 1], theirs=[0])))
    check_complete(path, results(mine=[0, 1, 2], theirs=[0], others=[0]))
    with pytest.raises(ValueError, match="left as it is: mine, seed 1; theirs, seed 0$"):
        check_complete(path, results(mine=[0]))


def test_runs_that_would_be_evaluated_otherwise_are_refused_before_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> list:
        raise AssertionError("a run was started")

    monkeypatch.setattr(Workers, "run", started)
    sweep = compose_sweep("ablation_media", runs=str(tmp_path), seeds=[0])
    reference, arm = (run.config for run in sweep.runs)
    RunDirectory.open(reference)
    other = replace(arm.evaluation, control_queries=0, shots=[0, 1])
    RunDirectory.open(replace(arm, evaluation=other))

    def told(*words: str) -> None:
        own = replace(sweep, overrides=words)
        monkeypatch.setattr(ablate, "compose_sweep", lambda *_, **__: own)
        ablate.main(AblateConfig(sweep="ablation_media", results=str(tmp_path)))

    with pytest.raises(ValueError) as raised:
        told()
    assert str(raised.value).startswith(f"{arm.directory}: expected to be evaluated as")
    assert "got another evaluation.shots, evaluation.control_queries (" in str(raised.value)
    typed = ("evaluation.shots=[0,1,2,4,8]", "evaluation.control_queries=100")
    assert str(raised.value).endswith(f"For all of them type: {' '.join(typed)}")
    for words in (typed, ("evaluation.shots=[0]", "evaluation.control_queries=0")):
        with pytest.raises(AssertionError, match="a run was started"):
            told(*words)


@pytest.fixture(scope="module")
def media() -> Sweep:
    return compose_sweep("ablation_media", runs="nowhere", seeds=[0])


@pytest.mark.parametrize("launch", [[], ["launcher=slurm"]])
def test_who_stops_waiting_for_jobs_is_told_that_they_go_on(
    media: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, launch: list[str]
) -> None:
    def stopped(self: Workers, *_: object) -> list:
        self.stopped = signal.SIGINT
        return []

    monkeypatch.setattr(Workers, "run", stopped)
    monkeypatch.setattr(ablate, "compose_sweep", lambda *_, **__: media)
    with pytest.raises(SystemExit) as ended:
        ablate.main(AblateConfig(sweep="ablation_media", results=str(tmp_path), launch=launch))
    assert ended.value.code == 130
    said = capsys.readouterr().out.splitlines()[-1]
    assert ("Jobs that were launched go on" in said) is bool(launch)
    assert said.startswith("Stopped waiting." if launch else "Stopped. The same command continues")


def test_runs_that_failed_are_no_time_left(media: Sweep, tmp_path: Path, capsys) -> None:
    told: list[int] = []
    reporter = Reporter(media, count=3, at_once=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "seconds_left", lambda runs, _: told.append(len(runs)))
        for reason in (None, "a mistake"):
            reporter(Outcome(media.runs[1], 1.0, tmp_path / "log", reason))
    assert told == [len(media.runs), len(media.runs) - 1]
    assert "FAILED after 1 s: a mistake" in capsys.readouterr().out


# ---------------------------------------------------------------------------- the command line


def test_what_is_not_its_own_is_told_to_the_runs() -> None:
    typed = ["experiment=a", "seeds=[0,1]", "data.x='y'", "model.layers=[1,2]", "--cfg", "job"]
    assert gathered(typed) == [
        *("sweep=a", "seeds=[0,1]", "--cfg", "job"),
        r"overrides=['data.x=\'y\'','model.layers=[1,2]']",
    ]
    assert gathered(["experiment=a", "hydra.verbose=true"]) == ["sweep=a", "hydra.verbose=true"]
    found = compose(gathered(typed)[:2] + gathered(typed)[-1:], AblateConfig, "ablate")
    assert found.overrides == ["data.x='y'", "model.layers=[1,2]"]
    with pytest.raises(ValueError, match="overrides: expected all of them inside or none"):
        gathered(["overrides=[a=1]", "training.lr=1"])


@pytest.mark.parametrize(("on_the_cpu", "places"), [("true", 1), ("false", 8)])
def test_gpus_have_a_run_each_unless_runs_are_to_be_on_the_cpu(monkeypatch, on_the_cpu, places):
    monkeypatch.setenv("ACCELERATE_USE_CPU", on_the_cpu)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    config = compose(["sweep=a"], AblateConfig, "ablate")
    assert len(devices_of(config, 12)) == places


def test_a_launcher_and_its_settings_go_to_each_run_and_all_start_at_once() -> None:
    typed = ["experiment=a", "launcher=slurm", "hydra.launcher.partition=gpu", "training.lr=1"]
    config = compose(gathered(typed), AblateConfig, "ablate")
    assert config.launch == ["launcher=slurm", "hydra.launcher.partition=gpu"]
    assert config.overrides == ["training.lr=1"]
    assert len(devices_of(config, 12)) == 12
    with pytest.raises(ValueError, match="at_once: expected none beside launch"):
        compose([*gathered(typed), "at_once=2"], AblateConfig, "ablate")
    with pytest.raises(ValueError, match="at_once: expected >= 1, got 0"):
        compose(["sweep=a", "at_once=0"], AblateConfig, "ablate")
    with pytest.raises(ValueError, match="launch: expected launcher=slurm"):
        compose(gathered(["experiment=a", "launcher=local"]), AblateConfig, "ablate")
