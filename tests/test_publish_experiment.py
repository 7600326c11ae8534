"""experiments/publish.py: a run's model in a folder of its own, under a card with its results."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText, AutoProcessor

from experiments import evaluate
from experiments.publish import PublishConfig
from flamingo.command_line import quote_values
from flamingo.composition import CONF, compose
from flamingo.model.card import is_generated
from flamingo.publication import card_results, data_words, publish
from flamingo.runs import load_run
from flamingo.testing import draw
from tests.tiny_world import save_untrained_run, save_world

ROOT = CONF.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """A run that was trained for no step at all, evaluated at step 7, saved at 7 and 9."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAMINGO_CACHE", str(world / "cache"))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        path = save_untrained_run(
            world,
            "tiny",
            "training.lr=3e-4",
            "data.easy_vqa.sequences=3",
            "data.binding.loss_weight=0.5",
            "evaluation.shots=[0,1]",
            "evaluation.conditions=[real]",
            "evaluation.easy_vqa.queries=4",
            steps=(7, 9),
        )
        evaluate.evaluate(load_run(path), step=7)
    return path


def test_what_is_published_loads_by_itself_and_says_the_same(run: Path, tmp_path: Path):
    said = publish(load_run(run), tmp_path / "out", step=7, include_backbones=True)
    assert said == f"{tmp_path / 'out'}: the model of step 7, its processor and a card"
    model, processor = load_run(run).model(7)
    published = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    its = AutoProcessor.from_pretrained(tmp_path / "out")
    prompt = ("<image>what shape is in the image?", [draw("red", "circle", 0)])
    assert published.config.language_fingerprint == model.config.language_fingerprint
    with torch.no_grad():
        assert torch.equal(published(**its(*prompt)).logits, model(**processor(*prompt)).logits)


def test_the_card_has_the_run_s_results_and_data(run: Path, tmp_path: Path):
    publish(load_run(run), tmp_path / "out", step=7, license="apache-2.0")
    text = (tmp_path / "out" / "README.md").read_text()
    assert is_generated(text)
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    results = load_run(run).results
    rows = [r for r in results["model"] if r["group"] == "all" and r["condition"] == "real"]
    ((index,),) = [[entry for entry in card.data.to_dict()["model-index"]]]
    (easy,) = index["results"]
    assert easy["dataset"] == {"type": "easy_vqa", "name": "easy-VQA"}
    assert [(m["value"], m["name"]) for m in easy["metrics"]] == [
        (round(100 * row["mean"], 1), f"accuracy, %; demonstrations: {row['shots']}")
        for row in rows
    ]
    assert re.search(r"\| easy-VQA: accuracy, % +\|", text)
    assert "- easy-VQA: `<image>{question} {answer}<|endofchunk|>`" in text
    assert "Trained for 7 steps (seed 0, learning rate 0.0003)." in text
    assert "- easy vqa: 3 sequences a step (loss weight 1.0, pairs 4" in text
    assert "- binding: 8 sequences a step (loss weight 0.5, collection twemoji" in text
    assert str(tmp_path) not in text and str(run) not in text


def test_results_of_another_step_are_left_out_and_told_of(run: Path, tmp_path: Path):
    said = publish(load_run(run), tmp_path / "out")
    assert "the model of step 9" in said and "the run is not evaluated at step 9" in said
    assert "Not evaluated yet." in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_with_something_in_it_is_refused(run: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="to: expected a new or empty folder"):
        publish(load_run(run), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="to: expected a new or empty folder"):
        publish(load_run(run), tmp_path / "mine.txt")


def test_it_is_uploaded_once_with_its_card(run: Path, tmp_path: Path, monkeypatch):
    uploaded = []

    def upload(folder: Path, repo: str, **options: object) -> str:
        names = {path.name for path in folder.iterdir()}
        uploaded.append((repo, options, names))
        assert "# me/tiny" in (folder / "README.md").read_text()
        return "https://huggingface.co/me/tiny/commit/1"

    monkeypatch.setattr("flamingo.publication.upload", upload)
    monkeypatch.setattr("flamingo.publication.check_login", lambda repo: None)
    with pytest.raises(ValueError, match=r"include_backbones: expected true .* vision\.name="):
        publish(load_run(run), tmp_path / "out", push_to="me/tiny")
    assert not (tmp_path / "out").exists()
    said = publish(
        load_run(run), tmp_path / "out", push_to="me/tiny", private=True, include_backbones=True
    )
    assert said.endswith("Uploaded: https://huggingface.co/me/tiny/commit/1")
    ((repo, options, names),) = uploaded
    assert (repo, options) == ("me/tiny", {"private": True})
    assert {"README.md", "model.safetensors", "tokenizer.json", "config.json"} <= names


def test_a_hub_that_cannot_be_reached_is_told_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch
):
    def nobody(self: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", nobody)
    with pytest.raises(ValueError, match="push_to: .* reached, and a login .* no route"):
        publish(load_run(run), tmp_path / "out", push_to="me/tiny", include_backbones=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_others_cannot_load_is_told(run: Path, tmp_path: Path):
    said = publish(load_run(run), tmp_path / "out")
    assert "Others cannot load it: vision.name=" in said
    assert "Others" not in publish(load_run(run), tmp_path / "whole", include_backbones=True)


def test_a_language_model_that_was_trained_is_no_folder_that_others_lack(
    world: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("FLAMINGO_CACHE", str(world / "cache"))
    path = save_untrained_run(world, "trained", "language.train=full")
    said = publish(load_run(path), tmp_path / "out")
    assert f"vision.name={world / 'vision'} is a folder" in said
    assert "language.name" not in said
    monkeypatch.setattr("flamingo.publication.check_login", lambda repo: None)
    with pytest.raises(ValueError, match=r"got false: vision\.name=\S+ is a folder"):
        publish(load_run(path), tmp_path / "pushed", push_to="me/tiny")


def test_the_quickstart_s_results_become_a_table_and_an_index():
    """A results.json of several benchmarks: every shot count of undisturbed prompts, no control."""
    benchmark = {"metric": "exact_match", "unit": "demonstrations", "prompt": "<image>{question}"}
    results = {
        "benchmarks": [
            benchmark | {"name": "a", "title": "A"},
            benchmark | {"name": "b", "title": "B", "metric": "cider", "unit": "demonstrations"},
        ],
        "model": [
            {"benchmark": name, "shots": shots, "condition": condition, "group": group,
             "mean": mean, "standard_error": 0.01, "low": 0.1, "high": 0.9}
            for name, shots, condition, group, mean in [
                ("a", 0, "real", "all", 0.5), ("a", 4, "real", "all", 0.75),
                ("a", 4, "blank_query", "all", 0.25), ("a", 4, "real", "colour", 0.9),
                ("b", 4, "real", "all", 1.0421), ("b", 8, "real", "all", None),
            ]
        ],
        "baselines": [],
    }  # fmt: skip
    card = card_results(results)
    assert [(s.dataset_name, s.metric_name, s.metric_value, s.task_type) for s in card.scores] == [
        ("A", "accuracy, %; demonstrations: 0", 50.0, "visual-question-answering"),
        ("A", "accuracy, %; demonstrations: 4", 75.0, "visual-question-answering"),
        ("B", "CIDEr-D × 100; demonstrations: 4", 104.2, "image-to-text"),
    ]
    assert "query image blanked" in card.text  # controls stand in the table


def test_paths_of_a_machine_do_not_reach_the_card():
    config = compose(
        ["name=x", "data.binding.collection=folder", "data.binding.path=/home/me/photos"]
    )
    assert "path photos" in data_words(config, 5) and "/home" not in data_words(config, 5)


def test_a_card_says_which_sources_a_step_reads_and_a_prompt_whole() -> None:
    own = ["name=x", "data.easy_vqa.sequences=8", "data.binding.sequences=3"]
    both = data_words(compose(own), 5)
    in_turn = data_words(compose([*own, "data.mixing=round_robin"]), 5)
    assert "Each step reads:\n\n- easy vqa: 8" in both
    assert in_turn == both.replace("reads:", "reads one of these, in turn:")
    vqa = ["format=textvqa", "questions=/a/q.json", "images=/a/images", "sequences=2"]
    prompt = "data.vqa.prompt='{question} Answer yes/no:'"
    source = [*(f"data.vqa.{word}" for word in vqa), prompt, "data.cache_features=false"]
    alone = compose(["name=x", *source, "data.mixing=round_robin"])
    told = data_words(alone, 5)
    assert "prompt {question} Answer yes/no:" in told and "/a" not in told
    assert "Each step reads:" in told, "one source has no turns"


def test_the_command_line_is_understood():
    typed = ["run=runs/quickstart/seed=0", "to=published", "push_to=user/name", "private=true"]
    config = compose(quote_values(typed, ["run", "to", "push_to"]), PublishConfig, "publish")
    assert (config.run, config.push_to, config.private) == (
        "runs/quickstart/seed=0", "user/name", True
    )  # fmt: skip
    with pytest.raises(ValueError, match="private: expected push_to="):
        compose(["run=x", "to=y", "private=true"], PublishConfig, "publish")


@pytest.mark.slow
def test_the_script_publishes_and_its_help_says_what_it_does(run: Path, tmp_path: Path):
    script = str(ROOT / "experiments" / "publish.py")

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    told = start("--help")
    assert told.returncode == 0 and "python experiments/publish.py run=" in told.stdout
    done = start(f"run={run}", f"to={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "flamingo"
    again = start(f"run={run}", f"to={tmp_path / 'out'}")
    assert again.returncode == 1 and again.stderr.startswith("error: to: expected a new or empty")


def test_a_converted_run_says_where_its_model_is_from(run: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "conversion.json").write_text('{"source": "/models/OpenFlamingo/checkpoint.pt"}')
    publish(load_run(copy), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Converted from `/models/OpenFlamingo/checkpoint.pt`, whose authors tell" in card
    assert "Trained for" not in card
