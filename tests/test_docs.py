"""What the documentation tells to type is understood."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import datasets
import pytest
from PIL import Image

from experiments.evaluate import with_overrides
from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.ablation.sweep import SWEEPS, compose_sweep, load_sweep
from flamingo.backbones.language import load_tokenizer
from flamingo.choices import Condition
from flamingo.composition import CONF, compose
from flamingo.config import (
    CrossAttentionConfig,
    LanguageConfig,
    ResamplerConfig,
    RunConfig,
    VisionConfig,
)
from flamingo.evaluation.benchmarks.build_datasets import dataset_benchmarks
from flamingo.evaluation.benchmarks.dataset import DatasetBenchmark
from flamingo.model.processor import prepare_tokenizer
from flamingo.run_selection import fits, wanted
from flamingo.testing import save_tiny_language_model
from tests.tiny_world import save_vision_encoder

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
FINDINGS = [
    [word for word in shlex.split(command) if "..." not in word]
    for command in re.findall(r"`evaluate ([^`]*)`", EVALUATION)
]


def test_every_finding_has_a_command() -> None:
    table = EVALUATION.split("## Published findings")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(FINDINGS) >= 9


@pytest.mark.parametrize("overrides", FINDINGS, ids=" ".join)
def test_a_finding_s_command_is_a_valid_evaluation(overrides: list[str]) -> None:
    config = RunConfig(name="run")
    assert with_overrides(config, overrides) != config


def test_every_condition_is_told_of_once() -> None:
    table = EVALUATION.split("\n## Conditions")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(condition.value for condition in Condition)


@pytest.mark.parametrize("listed", [False, True], ids=["texts", "lists of texts"])
def test_a_folder_of_one_s_own_is_read_as_the_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    section = EVALUATION.split("\n### Questions and images of your own")[1].split("\n## ")[0]
    (line,) = re.findall(r"```json\n(.*)\n```", section)
    (command,) = re.findall(r"```bash\n(.*)\n```", section)
    row = json.loads(line)
    answers = {"red": [row["answers"]], "blue": ["blue", "navy"] if listed else ["blue"]}
    for split, colours in (("train", ["red"]), ("validation", ["blue", "red"])):
        folder = tmp_path / "my_vqa" / split
        folder.mkdir(parents=True)
        lines = []
        for number, colour in enumerate(colours, start=1):
            Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
            told = answers[colour] if listed else answers[colour][0]
            lines.append(json.dumps(row | {"file_name": f"{number}.png", "answers": told}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    config = with_overrides(RunConfig(name="run"), shlex.split(command)[2:])
    (benchmark,) = dataset_benchmarks(config.evaluation, Path, None)
    assert benchmark.name == "my_vqa"
    assert isinstance(benchmark, DatasetBenchmark)
    (shown,) = benchmark.offered
    assert (shown.question, list(shown.answers)) == (row["question"], answers["red"])
    by_answer = {example.answers[0]: example for example in benchmark.examples}
    assert list(by_answer["blue"].answers) == answers["blue"]
    assert by_answer["blue"].images[0].open().getpixel((0, 0)) == (0, 0, 255)
    assert by_answer["red"].images[0].open().getpixel((0, 0)) == (255, 0, 0)


def test_every_benchmark_file_is_told_of() -> None:
    files = {path.stem for path in (CONF / "benchmark").glob("*.yaml")}
    told = set(re.findall(r"`(\w+)`", EVALUATION.split("## Protocols")[0]))
    assert files <= told


def test_every_sweep_is_told_of_with_its_question() -> None:
    text = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    for path in SWEEPS.glob("*.yaml"):
        assert f"| `{path.stem}` | {load_sweep(path.stem).question} |" in text


def test_the_sweep_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(code)
    sweep = compose_sweep(str(tmp_path / "mine.yaml"), seeds=[0])
    assert len(sweep.arms) == 4
    changed = sweep.changes("lr 4e-4, 2 layers")
    assert changed["model.cross_attention.layers"] == ([6, 10, 14, 18, 22, 26], [6, 18])


def test_the_runs_that_the_documentation_looks_for_are_the_quickstart_s() -> None:
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    (asked,) = re.findall(r"find\((\{.*\}), seed", text)
    assert fits(compose(["experiment=quickstart"]), wanted(ast.literal_eval(asked), {}))


@pytest.mark.parametrize("page", ["README.md", "docs/interop.md"])
def test_every_option_of_evaluation_on_a_page_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    commands = re.findall(r"evaluate\.py (run=(?:\\\n|[^\n`])*)", text)
    assert commands
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        overrides = [word for word in words if word.startswith(("evaluation.", "protocol="))]
        with_overrides(RunConfig(name="run"), [w for w in overrides if "PATH/" not in w])


def test_the_readme_s_code_for_the_hub_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## On the Hugging Face hub")[1].split("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    language, vision = save_tiny_language_model(tmp_path / "lm"), tmp_path / "vision"
    model = FlamingoForConditionalGeneration.from_backbones(
        VisionConfig(name=str(save_vision_encoder(vision))),
        str(language),
        resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
        cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=8),
    )
    assert model.vision_encoder is not None
    tokenizer = prepare_tokenizer(load_tokenizer(LanguageConfig(name=str(language))), 512)
    for part in (model, FlamingoProcessor(model.vision_encoder.image_processor, tokenizer)):
        part.save_pretrained(tmp_path / "published")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.count("generated_text") == 2
