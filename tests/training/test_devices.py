"""Two processes train as one, with whole copies of the model and with shares of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from several_runs import RUNS, generated, train_named

from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.run_directory import RunDirectory
from flamingo.training.checkpoint import Checkpoint, latest_checkpoint
from flamingo.training.tracking import VARYING, read_metrics

SCRIPT = Path(__file__).with_name("several_runs.py")
ROOT = SCRIPT.parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ACCELERATE_USE_CPU", "true")
        yield


def launch(processes: int, *arguments: str, cpu: bool = True) -> None:
    """``several_runs.py`` in several processes, as ``accelerate launch`` starts them."""
    device = {"ACCELERATE_USE_CPU": str(cpu).lower()}
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nproc_per_node", str(processes), "--standalone"),
            *("--no_python", sys.executable, str(SCRIPT), *arguments),
        ],
        env={**os.environ, **device, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> Path:
    """Every run, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    launch(2, str(folder), *RUNS)
    return folder


def directory_of(name: str, folder: Path) -> RunDirectory:
    config = RUNS[name].config(folder / name)
    return RunDirectory(config.directory, config)


def numbers_of(run: RunDirectory) -> list[dict]:
    """All metrics but timings."""
    entries = [
        {k: v for k, v in entry.items() if not k.startswith(VARYING)}
        for entry in read_metrics(run.metrics)
    ]
    assert entries
    return entries


def assert_same_numbers(one: RunDirectory, other: RunDirectory, rel: float = 1e-5) -> None:
    for a, b in zip(numbers_of(one), numbers_of(other), strict=True):
        # A gain is the difference of two losses of about 7 nats, each as exact as ``rel``.
        gains = [name for name in b if "/image_gain/" in name]
        for name in gains:
            assert a.pop(name) == pytest.approx(b.pop(name), abs=10 * rel)
        assert a == pytest.approx(b, rel=rel, abs=rel / 10)


def newest(run: RunDirectory) -> Checkpoint:
    checkpoint = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return checkpoint


def weights_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(newest(run).path / "model.safetensors")


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(tmp_path, by_two, name):
    _, alone = train_named(name, tmp_path)
    two = directory_of(name, by_two)
    assert_same_numbers(two, alone, rel=2e-2 if "bf16" in name else 1e-5)
    expected, actual = weights_of(alone), weights_of(two)
    assert {n: t.shape for n, t in actual.items()} == {n: t.shape for n, t in expected.items()}
    if "bf16" not in name:
        # Adam's first steps have the size of the rate whatever the gradient's is, so the rounding
        # of a tiny gradient is seen in a weight; it is none that the losses notice.
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4)
    own, other = (state["torch"] for state in newest(two).state()["random"])
    assert not torch.equal(own, other)


def test_what_no_step_has_media_for_is_left_as_it_is(by_two):
    run = RUNS["sharded, only text"]
    model, *_ = run.parts(run.config(by_two))
    trained = weights_of(directory_of("sharded, only text", by_two))
    unread = [n for n in trained if n.startswith("resampler") or ".attention" in n]
    assert any("to_kv" in n for n in unread) and any("attention_gate" in n for n in unread)
    started = model.state_dict()
    assert all(torch.equal(trained[name], started[name]) for name in unread)
    assert not all(torch.equal(trained[name], started[name]) for name in trained)


def test_each_process_holds_its_share_between_steps(by_two):
    seen = [json.loads((by_two / f"{process}.json").read_text()) for process in range(2)]
    for name, whole in seen[0]["whole"].items():
        shares = [one["held"][name] for one in seen]
        if name.startswith("vision_encoder"):
            assert shares == [whole, whole]
        else:
            assert sum(shares) == whole and shares[0] <= (whole + 64) // 2 + 32


def test_a_sharded_model_generates_as_a_whole_one(by_two):
    """The second process goes on for three tokens after the first has its own."""
    folder = newest(directory_of("sharded", by_two)).path
    run = RUNS["sharded"]
    untrained, *_ = run.parts(run.config(by_two))
    model = FlamingoForConditionalGeneration.from_pretrained(
        folder,
        language_model=untrained.language_model,
        vision_encoder=untrained.vision_encoder,
    )
    for process in range(2):
        seen = json.loads((by_two / f"{process}.json").read_text())
        assert seen["generated"] == generated(model, process)
        assert len(seen["generated"]) == 3 + 4 + 3 * process
        assert seen["gates"] == pytest.approx(model.gates(), rel=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(tmp_path):
    launch(1, str(tmp_path / "one"), *RUNS, cpu=False)
    launch(2, str(tmp_path / "two"), *RUNS, cpu=False)
    for name in RUNS:
        one, two = (directory_of(name, tmp_path / folder) for folder in ("one", "two"))
        assert_same_numbers(two, one, rel=2e-2 if "bf16" in name else 1e-3)


# ---------------------------------------------------------------------------- resuming


def half_of(run: RunDirectory, folder: Path) -> Path:
    """A copy of ``run`` as it was after step 3, below ``folder`` under the same name."""
    name = run.path.parents[1].name
    shutil.copytree(run.path.parents[1], folder / name)
    copy = directory_of(name, folder)
    shutil.rmtree(copy.checkpoints / "step_6")
    assert newest(copy).step == 3
    return folder


def test_a_checkpoint_continues_with_any_number_of_processes_and_any_sharding(tmp_path, by_two):
    alone = {n: train_named(n, tmp_path / "alone")[1] for n in ("whole", "sharded", "whole, tied")}
    # From shares in two processes: to one, and to whole copies in two.
    half_of(directory_of("sharded", by_two), tmp_path / "one")
    assert train_named("sharded", tmp_path / "one")[0].finished
    half_of(directory_of("sharded", by_two), tmp_path / "unsharded")
    launch(2, str(tmp_path / "unsharded"), "sharded", "sharding=none")
    # To shares in two and in three processes, of which some hold nothing of a small weight: from
    # whole copies in two, and from one.
    half_of(directory_of("whole", by_two), tmp_path / "more")
    half_of(alone["whole, tied"], tmp_path / "more")
    launch(3, str(tmp_path / "more"), "whole", "whole, tied", "sharding=full")

    for folder, names in (
        ("one", ["sharded"]),
        ("unsharded", ["sharded"]),
        ("more", ["whole", "whole, tied"]),
    ):
        for name in names:
            assert_same_numbers(directory_of(name, tmp_path / folder), alone[name])


def test_a_checkpoint_does_not_tell_who_wrote_it(tmp_path, by_two):
    _, alone = train_named("sharded", tmp_path)
    expected = newest(alone).state()["optimizer"]
    for name in ("whole", "sharded"):
        state = newest(directory_of(name, by_two)).state()["optimizer"]
        assert state["param_groups"] == expected["param_groups"]
        assert state["state"].keys() == expected["state"].keys()
        for index, own in expected["state"].items():
            for key, value in own.items():
                found = state["state"][index][key]
                assert type(found) is torch.Tensor
                torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-6)
