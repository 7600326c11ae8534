"""What the documentation tells to type is understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments.evaluate import with_overrides
from flamingo.composition import CONF
from flamingo.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
FINDINGS = [
    [word for word in shlex.split(command) if "..." not in word]
    for command in re.findall(r"`\$E ([^`]*)`", EVALUATION)
]


def test_every_finding_has_a_command() -> None:
    table = EVALUATION.split("## Published findings")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(FINDINGS) >= 9


@pytest.mark.parametrize("overrides", FINDINGS, ids=" ".join)
def test_a_finding_s_command_is_a_valid_evaluation(overrides: list[str]) -> None:
    config = RunConfig(name="run")
    assert with_overrides(config, overrides) != config


def test_every_benchmark_file_is_told_of() -> None:
    files = {path.stem for path in (CONF / "benchmark").glob("*.yaml")}
    told = set(re.findall(r"`(\w+)`", EVALUATION.split("## Protocols")[0]))
    assert files <= told


def test_every_option_of_evaluation_in_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"evaluate\.py (run=(?:\\\n|[^\n`])*)", readme)
    assert commands
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        overrides = [word for word in words if word.startswith(("evaluation.", "protocol="))]
        with_overrides(RunConfig(name="run"), [w for w in overrides if "PATH/" not in w])
