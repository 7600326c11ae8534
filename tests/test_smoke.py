"""The quickstart's path as a user walks it, with real weights and data, in about three minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flamingo.backbones import assets
from flamingo.evaluation_config import EvaluationConfig
from flamingo.runs import Run, load_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STEPS = 12
QUERIES = {"easy_vqa": 8, "twemoji_seen_2_ways": 4, "twemoji_held_out_2_ways": 4}
SHOTS = [0, 1]
"""As ``conf/experiment/smoke.yaml`` says."""


def command(script: str, *overrides: str) -> str:
    """What ``python experiments/<script>.py`` prints; it has to succeed."""
    finished = subprocess.run(
        [sys.executable, f"experiments/{script}.py", *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def train(runs: Path) -> str:
    return command("train", "experiment=smoke", f"runs={runs}")


def evaluate(runs: Path) -> str:
    return command("evaluate", f"run={runs / 'smoke' / 'seed=0'}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def printed(runs) -> tuple[str, str]:
    """What the two commands of ``make quickstart`` print."""
    return train(runs), evaluate(runs)


@pytest.fixture
def run(runs, printed) -> Run:
    return load_run(runs / "smoke" / "seed=0")


def test_both_commands_say_what_they_did(run, printed):
    trained, evaluated = printed
    assert f"finished, {STEPS} steps are done" in trained
    for title in ("easy-VQA", "Emoji, seen concepts, 2 ways", "Emoji, held-out concepts, 2 ways"):
        assert title in evaluated
    assert str(run.directory.report / "index.html") in evaluated


def test_training_leaves_config_provenance_metrics_and_checkpoints(run):
    assert run.config.name == "smoke" and run.directory.finished
    assert run.metrics.index.tolist() == list(range(1, STEPS + 1))
    assert run.metrics["validation/loss"].dropna().index.tolist() == [6, 12]
    assert run.checkpoints == [6, 12]
    (launch,) = run.provenance["launches"]
    assert launch["backbones"]["vision"] and launch["backbones"]["language"]
    assert "torch" in launch["packages"]


def test_every_prediction_is_on_disk(run):
    predictions = run.predictions()
    assert set(predictions["benchmark"]) == set(QUERIES)
    assert set(predictions["condition"]) == {
        condition.value for condition in EvaluationConfig().conditions
    }
    for benchmark, queries in QUERIES.items():
        real = run.predictions(benchmark, "real")
        assert real.groupby("shots").size().to_dict() == dict.fromkeys(SHOTS, queries)
    assert predictions["score"].isin([0.0, 1.0]).all()
    assert predictions["probability"].between(0, 1).all()


def test_results_and_report_show_every_benchmark(run):
    assert [b["name"] for b in run.results["benchmarks"]] == list(QUERIES)
    scores = run.predictions("easy_vqa", "real").groupby("shots")["score"].mean()
    assert scores.to_dict() == {
        row["shots"]: row["mean"]
        for row in run.results["model"]
        if (row["benchmark"], row["condition"], row["group"]) == ("easy_vqa", "real", "all")
    }
    page = (run.directory.report / "index.html").read_text()
    assert "Emoji, held-out concepts, 2 ways" in page and "data:image/jpeg" in page
    with Image.open(run.directory.report / "shots.png") as image:
        assert image.width > 600


def test_the_same_commands_again_say_that_all_is_done_and_change_nothing(runs, run, printed):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert f"finished, {STEPS} steps are done" in train(runs)
    assert "Everything is evaluated already" in evaluate(runs)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_trained_run_answers_questions(run):
    images = assets.easy_vqa_folder() / "test" / "images"
    open_answer = command(
        "ask",
        f"run={run.path}",
        f"image={images / '0.png'}",
        "question=what color is the shape?",
        f"demos={json.dumps([f'{images}/1.png | what color is the shape? | red'])}",
    )
    assert "probability" in open_answer
    ranking = command(
        "ask",
        f"run={run.path}",
        f"image={images / '0.png'}",
        "question=what shape is in the image?",
        "candidates=[circle, rectangle, triangle]",
    )
    probabilities = {line.split()[0]: float(line.split()[1]) for line in ranking.splitlines()}
    assert set(probabilities) == {"circle", "rectangle", "triangle"}
    assert sum(probabilities.values()) == pytest.approx(1, abs=0.002)
