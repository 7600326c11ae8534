"""Entry points as they are typed: messages, help, and what leaves no file behind."""

import os
import subprocess
import sys

import pytest
import yaml

from flamingo.command_line import _tell_interrupted, quote_values
from flamingo.composition import CONF
from flamingo.config import EasyVQASourceConfig, RunConfig
from flamingo.evaluation_config import BindingBenchmarkConfig
from flamingo.structured import optional_sections

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

SCRIPT = '''"""Prints the steps.

It's a test: costs 5 $ and a \\\\ backslash.
"""
import signal, sys, weakref
from flamingo.command_line import entry_point
from flamingo.config import RunConfig

class Large: pass
HELD = []

def main(config: RunConfig) -> None:
    print("alive:", sum(ref() is not None for ref in HELD))
    large = Large()
    HELD.append(weakref.ref(large))
    if config.seed == 13:
        raise FileNotFoundError("photos: no such folder")
    if config.seed == 14:
        raise RuntimeError("out of memory")
    if config.seed == 15:
        try:
            raise RuntimeError("out of memory")
        except RuntimeError:
            sys.exit("error: too large")
    if config.seed == 16:
        signal.raise_signal(signal.SIGINT)
    print("steps", config.training.steps, config.data.easy_vqa)

if __name__ == "__main__":
    entry_point(main, interrupted="It goes on.")
'''


@pytest.fixture
def run_script(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "script.py", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(CONF.parent), "PATH": "", **environment},
            capture_output=True,
            text=True,
        )

    return run


def test_an_entry_point_receives_dataclasses_and_leaves_no_files(run_script, tmp_path):
    done = run_script("name=x", "training.steps=200", "data.easy_vqa.pairs=6")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alive: 0\nsteps 200 EasyVQASourceConfig(")
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_an_entry_point_ends_with_a_message_alone_on_a_mistake(run_script):
    for override, message in {
        "training.stps=2": "error: training.stps: unknown configuration key; did you mean",
        "training.warmup_steps=2000": "error: training.warmup_steps: expected",
        "training.steps=abc": "error: training.steps: expected a whole number, got 'abc'\n",
        "experiment=quickstar": f"error: experiment: expected one of {', '.join(EXPERIMENTS)}",
        "training": "error: training: expected key=value, got no '='\n",
    }.items():
        failed = run_script("name=x", override)
        assert failed.returncode == 1
        assert failed.stderr.startswith(message)
        assert "Traceback" not in failed.stderr
        assert "HYDRA" not in failed.stderr


def test_an_entry_point_ends_with_the_message_of_its_task_and_shows_the_place_on_request(
    run_script,
):
    failed = run_script("name=x", "seed=13")
    assert (failed.returncode, failed.stderr) == (1, "error: photos: no such folder\n")
    verbose = run_script("name=x", "seed=13", "hydra.verbose=true")
    assert verbose.stderr.endswith("error: photos: no such folder\n")
    assert "Traceback" in verbose.stdout and "script.py" in verbose.stdout


def test_a_mistake_in_a_sweep_ends_with_a_message_alone(run_script):
    failed = run_script("-m", "name=x", "seed=0,a")
    assert failed.returncode == 1
    assert failed.stderr == "error: seed: expected a whole number, got 'a'\n"


@pytest.mark.parametrize("failing", [13, 14, 15])
def test_a_failed_job_of_a_sweep_leaves_the_others_and_no_memory(run_script, failing):
    done = run_script("-m", "name=x", f"seed=1,{failing},2")
    assert done.returncode == 1
    assert f"error: 1 of the jobs failed: name=x seed={failing}" in done.stderr
    assert done.stdout.count("steps ") == 2
    assert done.stdout.count("alive: 0") == 3, "what a job held is gone when the next one starts"


def test_of_several_processes_one_that_fails_does_not_go_on_to_the_next_job(run_script):
    """The others may be waiting for it in the job that it failed in."""
    done = run_script("-m", "name=x", "seed=1,14,2", WORLD_SIZE="2")
    assert done.returncode != 0
    assert done.stdout.count("steps ") == 1
    assert "RuntimeError: out of memory" in done.stderr


def test_an_interrupted_program_ends_with_a_line_and_a_status_of_its_own(run_script):
    own = run_script("name=x", "seed=16")
    assert (own.returncode, own.stderr) == (130, "\nInterrupted. It goes on.\n")
    sweep = run_script("-m", "name=x", "seed=1,16,2")
    assert (sweep.returncode, sweep.stderr) == (130, "\nInterrupted. It goes on.\n")
    assert sweep.stdout.count("steps ") == 1, "of all jobs"
    other = run_script("name=x", "seed=16", RANK="1", WORLD_SIZE="2")
    assert (other.returncode, other.stderr) == (130, ""), "another process says it"


def test_an_interrupted_program_does_not_speak_for_jobs_that_it_launched(capsys):
    _tell_interrupted("It goes on.", ["name=x", "launcher=slurm"])
    assert capsys.readouterr().err == "\nInterrupted. Jobs that were launched may go on.\n"
    _tell_interrupted("", ["name=launcher"])
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_who_has_seen_enough_of_the_help_is_not_told_of_a_broken_pipe(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "script.py", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CONF.parent), "PATH": ""},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_says_what_the_script_does_and_how_to_override(run_script):
    shown = run_script("--help").stdout
    assert shown.startswith("Prints the steps.")
    assert "It's a test: costs 5 $ and a \\ backslash." in shown
    assert f"experiment: {', '.join(EXPERIMENTS)}" in shown
    assert "data.binding=null" in shown
    sections = yaml.safe_load(shown.partition("Optional sections")[2].partition("\n")[2])
    assert list(sections) == optional_sections(RunConfig)
    assert sections["data.easy_vqa"]["pairs"] == EasyVQASourceConfig().pairs
    assert sections["evaluation.binding"]["ways"] == BindingBenchmarkConfig().ways
    assert sections["evaluation.folder"]["collection"] == "folder"


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        ("runs=[runs/a/seed=0,runs/b/seed=0]", "runs=['runs/a/seed=0','runs/b/seed=0']"),
        ("runs=['a, b']", "runs=['a, b']"),
        ("runs=[]", "runs=[]"),
        ("runs=runs/a/seed=0", "runs=['runs/a/seed=0']"),
        ("runs=a/seed=0,b/seed=0", "runs=['a/seed=0','b/seed=0']"),
        ("runs='a=1'", "runs='a=1'"),
        ("runs=null", "runs=null"),
        ("runs=", "runs="),
        ("runs=choice([a],[b])", "runs=choice([a],[b])"),
        ("question=[is it?]", "question='[is it?]'"),
        ("other=[a=1]", "other=[a=1]"),
    ],
)
def test_lists_of_paths_are_typed_as_they_are(typed: str, passed: str) -> None:
    assert quote_values([typed], ["question"], ["runs"]) == [passed]
