"""experiments/compare.py on runs of tiny backbones that experiments/evaluate.py evaluated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from experiments import compare, evaluate
from flamingo.ablation.sweep import SweepRun, compose_sweep
from flamingo.choices import Condition
from flamingo.comparison.sweep import SweepArm, compare_sweep, results_text
from flamingo.composition import CONF, compose
from flamingo.evaluation.corrections import Correction
from flamingo.evaluation_config import recorded
from flamingo.runs import load_run
from tests.comparison.written import answers, write_run
from tests.tiny_world import save_untrained_run, save_world
from tests.written_runs import save

ROOT = CONF.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


def evaluated(world: Path, name: str, gate: float) -> Path:
    """A run that was trained for no step at all, evaluated on a few queries."""
    path = save_untrained_run(
        world,
        name,
        f"model.cross_attention.gate_init={gate}",
        "evaluation.shots=[0,2]",
        "evaluation.easy_vqa.queries=6",
        "evaluation.demonstrations.seeds=[0,1]",
        "evaluation.binding.queries=5",
        "evaluation.binding.ways=[2]",
        "evaluation.binding.views=3",
    )
    evaluate.evaluate(load_run(path))
    return path


@pytest.fixture(scope="module")
def runs(world: Path) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAMINGO_CACHE", str(world / "cache"))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return [evaluated(world, "one", 1.0), evaluated(world, "two", 0.2)]


@pytest.fixture(autouse=True)
def tiny_assets(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(world / "cache"))


def config(runs: list[Path], out: Path, **settings) -> compare.CompareConfig:
    return compare.CompareConfig(
        runs=[str(run) for run in runs], out=str(out), draws=200, **settings
    )


def test_published_models_without_a_number_to_compare_with_are_refused(
    runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="published: expected models with numbers on .*easy_vqa"):
        compare.compare(config(runs, tmp_path / "out", published=["OpenFlamingo-3B"]), "")
    assert not (tmp_path / "out").exists()


def test_its_numbers_are_those_of_the_evaluations(runs: list[Path], tmp_path: Path) -> None:
    conditions = [Condition.real, Condition.blank_query]
    said = compare.compare(config(runs, tmp_path / "out", conditions=conditions), "python ...")
    assert said.endswith(f"Page: {tmp_path / 'out' / 'index.html'}")
    found = pd.read_csv(tmp_path / "out" / "shots.csv").set_index(
        ["arm", "benchmark", "condition", "shots"]
    )
    expected = 0
    for run, name in zip(runs, ("one", "two"), strict=True):
        for row in load_run(run).results["model"]:
            if row["condition"] in ("real", "blank_query") and row["group"] == "all":
                arm = f"{name}, seed 0" + (
                    ": query image blanked" if row["condition"] == "blank_query" else ""
                )
                own = found.loc[(arm, row["benchmark"], row["condition"], row["shots"])]
                assert own["mean"] == pytest.approx(row["mean"])
                assert own["low"] == pytest.approx(max(0, row["low"]))
                assert own["draws"] == row["seeds"]
                expected += 1
    assert expected == len(found) == 2 * 3 * 2 * 2
    differences = pd.read_csv(tmp_path / "out" / "differences.csv")
    assert set(differences["tests"]) == {3 * 3 * 2}


def test_the_page_shows_the_images_of_queries_and_demonstrations(
    runs: list[Path], tmp_path: Path
) -> None:
    compare.compare(config(runs, tmp_path / "out"), "python ...")
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', html, re.S)
    assert found is not None
    data = json.loads(found.group(1))
    assert {cell["benchmark"] for cell in data["cells"]} == {
        "easy-VQA",
        "Emoji, seen concepts, 2 ways",
        "Emoji, held-out concepts, 2 ways",
    }
    examples = [example for cell in data["cells"] for example in cell["examples"]]
    shown = {example["image"] for example in examples} | {
        demonstration["image"]
        for example in examples
        for answer in example["answers"]
        for demonstration in answer["demonstrations"]
    }
    assert len(examples) == 6 * 2 + 5 * 2 * 2
    assert None not in shown
    for name in shown:
        assert Image.open(tmp_path / "out" / name).format == "JPEG"
    assert len(list((tmp_path / "out" / "images").iterdir())) == len(shown)


def test_without_the_data_images_are_named_and_it_is_said(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "empty"))
    compare.compare(config(runs, tmp_path / "out"), "python ...")
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "are named, not shown" in html
    assert "expected the data set easy_vqa, found none" in html
    assert not (tmp_path / "out" / "images").exists()
    assert not (tmp_path / "empty").exists(), "nothing is fetched for pictures"


def test_nothing_is_written_before_everything_is_checked(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="published: expected some of"):
        compare.compare(config(runs, tmp_path / "out", published=["GPT"]), "")
    with pytest.raises(ValueError, match="reference: expected one of"):
        compare.compare(config(runs, tmp_path / "out", reference="nobody"), "")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- sweeps


def test_the_results_of_a_sweep_are_written_as_tables_and_a_plot(
    runs: list[Path], tmp_path: Path
) -> None:
    arms = [SweepArm(path.parent.name, [load_run(path)]) for path in runs]
    (tmp_path / "s.json").write_text(results_text(compare_sweep("s", "Which?", arms)))
    out = tmp_path / "out"
    settings = compare.CompareConfig(sweep=str(tmp_path / "s.json"), out=str(out))
    said = compare.compare_arms(str(tmp_path / "s.json"), settings)
    assert said.startswith("Which? ") and said.endswith(f"Files: {out}")
    assert Image.open(out / "forest.png").format == "PNG"
    found = pd.read_csv(out / "scores.csv").set_index(["arm", "benchmark", "shots"])
    for path in runs:
        for row in load_run(path).results["model"]:
            if (row["condition"], row["group"]) == ("real", "all"):
                own = found.loc[(path.parent.name, row["benchmark"], row["shots"])]
                assert own["mean"] == pytest.approx(row["mean"], abs=1e-6)
    assert (out / "results.json").read_text() == (tmp_path / "s.json").read_text()


def test_runs_or_a_sweep_are_compared_and_not_both() -> None:
    for given in ({}, {"runs": ["a"], "sweep": "b"}):
        with pytest.raises(ValueError, match="runs, sweep: expected exactly one of them"):
            compare.CompareConfig(out="x", **given)


@pytest.mark.parametrize(
    ("compared", "key", "value"),
    [
        ({"sweep": "s"}, "benchmarks", ["easy_vqa"]),
        ({"sweep": "s"}, "correction", Correction.none),
        ({"sweep": "s"}, "conditions", [Condition.blank_query]),
        ({"sweep": "s"}, "published", []),
        ({"sweep": "s"}, "pictures", False),
        ({"runs": ["a"]}, "seeds", [0]),
        ({"runs": ["a"]}, "root", "elsewhere"),
        ({"runs": ["a"]}, "overrides", ["training.steps=7"]),
        ({"sweep": "s.json"}, "overrides", ["training.steps=7"]),
        ({"sweep": "s.json"}, "name", "short"),
    ],
)
def test_a_key_that_would_be_passed_over_is_refused(compared, key, value) -> None:
    with pytest.raises(ValueError, match=f"{key}: expected none with"):
        compare.CompareConfig(out="x", **compared, **{key: value})


def test_a_sweep_that_is_not_there_is_told_by_the_key_and_the_nearest(tmp_path: Path) -> None:
    settings = compare.CompareConfig(sweep="ablation_medai", out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"^sweep: expected one of .*did you mean ablation_media"):
        compare.compare_arms("ablation_medai", settings)
    assert not (tmp_path / "out").exists()


def test_a_sweep_without_finished_runs_is_named(tmp_path: Path) -> None:
    name = "ablation_media"
    settings = compare.CompareConfig(sweep=name, out=str(tmp_path / "out"), root=str(tmp_path))
    with pytest.raises(ValueError, match="ablation_media: expected an arm with a finished seed"):
        compare.compare_arms(name, settings)


def finished(run: SweepRun, right: str, **evaluation) -> None:
    """A run of a sweep as it is when ``train.py`` and ``evaluate.py`` are done with it."""
    asked = recorded(replace(run.config.evaluation, **evaluation))
    own = {f.name: getattr(run.config, f.name) for f in fields(run.config)}
    runs, name = own.pop("runs"), own.pop("name")
    cells = {("bench", "real"): [answers(right)]}
    made = write_run(Path(runs), name, cells, config=own, settings={"evaluation": asked})
    save(made.directory, 7)


def test_a_sweep_is_compared_with_the_words_it_was_run_with(tmp_path: Path) -> None:
    told = ["training.steps=7", "training.warmup_steps=0", "evaluation.control_queries=0"]
    # As training alone was told: how runs are evaluated does not stand in their config.yaml.
    trained = {"runs": str(tmp_path / "r"), "run_name": "short", "seeds": [0]}
    sweep = compose_sweep("ablation_media", told[:2], **trained)
    for run, right in zip(sweep.runs, ("1101", "0001"), strict=True):
        finished(run, right, control_queries=0)

    def compared(*words: str) -> str:
        typed = ["sweep=ablation_media", "name=short", "seeds=[0]", f"root={tmp_path / 'r'}"]
        arguments = compare.gathered([*typed, f"out={tmp_path / 'out'}", *words])
        settings = compose(arguments, compare.CompareConfig, "compare")
        return compare.compare_arms("ablation_media", settings)

    assert "| BENCH | all images (1) | 25.0" in compared(*told)
    (one, other) = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]
    assert one["overrides"] == told and other["overrides"][-3:] == told
    with pytest.raises(ValueError, match="trained, evaluated with another control_queries"):
        compared(*told[:2])
    with pytest.raises(ValueError, match="expected its own config"):
        compared("training.steps=8", *told[1:])


def test_what_is_told_to_runs_is_told_beside_sweep_alone() -> None:
    typed = ["runs=[a]", "out=x", "training.steps=7"]
    assert compare.gathered(typed) == typed
    with pytest.raises(ValueError, match=r"training.steps: unknown .* of this program"):
        compose(typed, compare.CompareConfig, "compare")


# ---------------------------------------------------------------------------- command line


def start(world: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "FLAMINGO_CACHE": str(world / "cache"),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *arguments]
    return subprocess.run(command, env=environment, cwd=world, capture_output=True, text=True)


@pytest.mark.slow
def test_it_runs_from_the_command_line(world: Path, runs: list[Path], tmp_path: Path) -> None:
    given = f"runs=[{','.join(map(str, runs))}]"
    done = start(world, given, f"out={tmp_path / 'out'}", "draws=200", "published=[]")
    assert done.returncode == 0, done.stderr
    assert "| easy-VQA | one, seed 0 |" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=[nowhere]", "out=x"], "nowhere/config.yaml: expected a run's configuration"),
        (["runs=[nowhere]"], "out: expected a value"),
        (["runs=[a]", "out=x", "condition=[real]"], "did you mean conditions?"),
    ],
)
def test_a_mistake_ends_with_its_message_alone(
    world: Path, arguments: list[str], message: str
) -> None:
    done = start(world, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_help_says_what_it_does(world: Path) -> None:
    done = start(world, "--help")
    assert done.returncode == 0
    assert "python experiments/compare.py runs=" in done.stdout
    assert "out: ???" in done.stdout
