"""What ``experiments/demo.py`` says, in one line, where there is nothing that it could serve."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from experiments.demo import DemoConfig, main
from flamingo.composition import compose
from flamingo.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
NO_RUN = "nowhere/config.yaml: expected a run's configuration, found no such file"
NO_CHECKPOINT = "runs/new/seed=0/checkpoints: expected a checkpoint, got none"
NO_GRADIO = "demo: expected the package gradio, got none installed"
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: make install")


@pytest.fixture
def new_run(tmp_path: Path) -> Path:
    """A run that was never trained: it has its configuration alone."""
    return RunDirectory.open(compose(["name=new", f"runs={tmp_path / 'runs'}"])).path


@needs_gradio
def test_a_run_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=NO_RUN):
        main(DemoConfig(run="nowhere"))


@needs_gradio
def test_a_run_without_a_checkpoint_is_named(new_run: Path) -> None:
    with pytest.raises(ValueError, match=NO_CHECKPOINT):
        main(DemoConfig(run=str(new_run)))
    with pytest.raises(ValueError, match="expected a checkpoint of step 5, got none"):
        main(DemoConfig(run=str(new_run), step=5))


def test_without_gradio_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    with pytest.raises(ValueError) as raised:
        main(DemoConfig(run="nowhere"))
    said = str(raised.value)
    assert said.startswith(NO_GRADIO)
    assert "pip install -e '.[demo]'" in said and "make install" in said
    assert "\n" not in said
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert re.search(r'^demo = \["gradio', extras, re.MULTILINE), "the extra is still called so"
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"port": 0}, "port: expected a number from 1 to 65535, got 0"),
        ({"alternatives": 0}, "alternatives: expected >= 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected >= 1, got 0"),
        ({"host": " "}, "host: expected an address, got ' '"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoConfig(run="r", **setting)


WITHOUT_GRADIO = "import runpy, sys; sys.modules['gradio'] = None; del sys.argv[0]; "
"""In front of a command: as if gradio were not installed."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "run", "message"),
    [
        pytest.param("", "nowhere", NO_RUN, marks=needs_gradio),
        pytest.param("", "runs/new/seed=0", NO_CHECKPOINT, marks=needs_gradio),
        (WITHOUT_GRADIO, "nowhere", NO_GRADIO),
    ],
)
def test_the_command_ends_with_one_line(
    tmp_path: Path, new_run: Path, before: str, run: str, message: str
) -> None:
    script = str(ROOT / "experiments" / "demo.py")
    code = f"{before}runpy.run_path(sys.argv[0], run_name='__main__')"
    begin = ["-c", code, script] if before else [script]
    done = subprocess.run(
        [sys.executable, *begin, f"run={run}"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
