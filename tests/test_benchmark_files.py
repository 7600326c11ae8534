"""conf/benchmark/ and conf/protocol/: what each file switches on."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from experiments import evaluate
from experiments.evaluate import EvaluateConfig, with_overrides
from flamingo.choices import Condition, Protocol
from flamingo.composition import CONF, compose
from flamingo.config import RunConfig
from flamingo.evaluation_config import EasyVQABenchmarkConfig, EvaluationConfig

SECTIONS = {
    field.name for field in fields(EvaluationConfig) if "BenchmarkConfig" in str(field.type)
}
FILES = sorted(path.stem for path in (CONF / "benchmark").glob("*.yaml"))
SECTION_OF = {name: name for name in FILES} | {"imagenet": "classification"}
RUN = RunConfig(
    name="x", evaluation=EvaluationConfig(easy_vqa=EasyVQABenchmarkConfig(queries=7), shots=[0, 3])
)


def sections(config: EvaluationConfig) -> set[str]:
    return {name for name in SECTIONS if getattr(config, name) is not None}


def texts(values: Any) -> list[str]:
    if isinstance(values, dict):
        return [text for value in values.values() for text in texts(value)]
    return [values] if isinstance(values, str) else []


def test_there_is_a_file_for_every_benchmark_with_a_layout_of_its_own() -> None:
    own = {"folder", "hugging_face"}  # the user's own data
    assert set(SECTION_OF.values()) == SECTIONS - own


def test_the_page_that_the_help_names_lists_every_file() -> None:
    page = "docs/evaluation.md"
    assert page in str(evaluate.__doc__)
    text = (Path(__file__).parents[1] / page).read_text()
    assert [name for name in FILES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_switches_on_its_section_below_the_data_root(name: str) -> None:
    section = SECTION_OF[name]
    overrides = [f"benchmark={name}", "data_root=/somewhere", "run=x"]
    composed = compose(overrides, EvaluateConfig, "evaluate").evaluation
    assert sections(composed) == {section}
    values = asdict(getattr(composed, section))
    paths = [text for text in texts(values) if "/" in text]
    assert all(path.startswith("/somewhere/") for path in paths)
    assert bool(paths) == (name not in ("easy_vqa", "binding"))
    added = with_overrides(RUN, overrides).evaluation
    assert sections(added) == {"easy_vqa", section}, "to the run's own"
    if section != "easy_vqa":
        assert getattr(added, section) == getattr(composed, section)
    assert added.easy_vqa == RUN.evaluation.easy_vqa
    assert added.shots == [0, 3]


def test_several_files_and_what_is_said_itself_comes_last() -> None:
    overrides = [
        "evaluation.vqav2.queries=100",
        "evaluation.easy_vqa=null",
        "benchmark=[vqav2,coco]",
        "protocol=open_flamingo",
        "evaluation.shots=[0,4]",
    ]
    compose([*overrides, "run=x"], EvaluateConfig, "evaluate")
    config = with_overrides(RUN, overrides).evaluation
    assert sections(config) == {"vqav2", "coco"}
    assert config.vqav2 is not None
    assert config.vqav2.queries == 100
    assert config.vqav2.test.image_split == "val2014"
    assert config.vqav2.test.images == "data/coco/val2014", "below the current directory"
    assert config.shots == [0, 4]
    assert config.protocol is Protocol.open_flamingo
    assert config.demonstrations.pool == 2048
    assert Condition.text_only_zero_shot in config.conditions


def test_the_open_flamingo_protocol_is_that_of_its_published_numbers() -> None:
    config = with_overrides(RUN, ["protocol=open_flamingo"]).evaluation
    assert config.shots == [0, 4, 8, 16, 32]
    assert config.easy_vqa == RUN.evaluation.easy_vqa


def test_a_benchmark_of_the_run_can_be_changed_in_part() -> None:
    run = with_overrides(RUN, ["benchmark=vqav2", "data_root=/first"])
    changed = with_overrides(run, ["evaluation.vqav2.queries=5"]).evaluation.vqav2
    assert changed is not None
    assert changed.queries == 5
    assert changed.test.images == "/first/coco/val2014"


def test_an_unknown_file_is_named() -> None:
    with pytest.raises(ValueError, match="benchmark: expected a file of .*, got 'vqav3'"):
        with_overrides(RUN, ["benchmark=vqav3"])
