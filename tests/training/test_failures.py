"""What ends a run from outside: every process stops, says what to do, and loses nothing saved."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_loop import assert_same_run, metrics_of
from tiny_run import tiny_config, tiny_train

from flamingo.run_directory import RunDirectory
from flamingo.training import batches
from flamingo.training.checkpoint import latest_checkpoint
from flamingo.training.failures import (
    DataWorkerError,
    DeviceMemoryError,
    Failed,
    LostProcessError,
    TrainingError,
    explained,
    until_failure,
)
from flamingo.training.interrupt import SIGNALS, StopRequest
from tests.ports import reserved_port

SCRIPT = Path(__file__).with_name("failing_run.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> RunDirectory:
    """A run of 8 steps in which all goes well."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return tiny_train(tiny_config(tmp_path_factory.mktemp("straight")))[1]


# ---------------------------------------------------------------------------- words

NCCL = (
    "NCCL error in: /torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.27.5\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n{}\n"
)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            DeviceMemoryError,
            "Tried to allocate 2.00 GiB.*gradient_checkpointing=true.*sharding=full.*micro_batches",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            DataWorkerError,
            "data.workers: .*pid 7",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory. Please try to raise your shared "
                "memory limit."
            ),
            DataWorkerError,
            "data.workers: .*pid 7.*/dev/shm.*--shm-size",
        ),
        (
            torch.distributed.DistBackendError(
                NCCL.format("remote process exited or there was a network error", "Socket closed")
            ),
            LostProcessError,
            "another process of this run ended.*remote process exited.*Socket closed",
        ),
        (
            torch.distributed.DistBackendError(
                NCCL.format(
                    "invalid usage",
                    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
                )
            ),
            LostProcessError,
            r"could not be reached \(NCCL error.*Duplicate GPU detected",
        ),
        (
            torch.distributed.DistBackendError(
                NCCL.format("unhandled cuda error", "Cuda failure 2 'out of memory'")
            ),
            DeviceMemoryError,
            "Cuda failure 2 'out of memory'.*gradient_checkpointing=true",
        ),
        (
            torch.AcceleratorError(
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
            ),
            DeviceMemoryError,
            r"\(CUDA error: out of memory\)",
        ),
    ],
)
def test_known_causes_are_told_with_what_to_do(straight, error, kind, words):
    told = explained(error, straight.checkpoints)
    assert type(told) is kind
    with pytest.raises(TrainingError, match=f"(?s){words}.*step_8; the same command continues"):
        raise told


def test_unknown_causes_are_left_as_they_are(tmp_path):
    error = RuntimeError("shape mismatch")
    assert explained(error, tmp_path) is error


def test_without_a_checkpoint_none_is_promised(tmp_path):
    told = explained(torch.OutOfMemoryError("CUDA out of memory."), tmp_path)
    assert "there is no checkpoint yet" in str(told)


def test_the_failure_of_a_step_is_its_last_item():
    def steps():
        yield 1
        raise OSError("gone")

    one, failed = until_failure(steps())
    assert one == 1 and isinstance(failed, Failed) and str(failed.error) == "gone"


# ---------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", SIGNALS)
def test_every_warning_of_a_scheduler_is_a_wish_to_stop(number):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", lambda *_: None)
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.settle(stop.flags()) == number


def test_processes_that_got_no_signal_stop_for_the_one_that_another_got():
    told, other = StopRequest(), StopRequest()
    told.signal = signal.SIGUSR2
    sums = [a + b for a, b in zip(told.flags(), other.flags(), strict=True)]
    assert other.settle(sums) == told.settle(sums) == signal.SIGUSR2
    assert StopRequest().settle([0] * len(SIGNALS)) is None


def test_data_workers_leave_all_of_them_to_the_training_process(monkeypatch):
    left = {}
    monkeypatch.setattr(signal, "signal", left.__setitem__)
    batches._ignore_signals(0)
    assert left == dict.fromkeys(SIGNALS, signal.SIG_IGN)


def test_a_data_worker_that_dies_is_named_and_nothing_is_lost(tmp_path, straight):
    config = tiny_config(tmp_path)
    config.data.workers = 2

    def kill_one(step, model):
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGKILL)
        time.sleep(0.2)
        return {}

    with pytest.raises(DataWorkerError, match="data.workers: .*killed by signal.*step_3"):
        tiny_train(config, callback=kill_one)
    result, run = tiny_train(config)
    assert result.finished
    assert_same_run(run, straight)


def test_a_broken_source_stops_after_a_checkpoint_of_all_that_was_trained(
    tmp_path, straight, monkeypatch
):
    from flamingo.training.batches import Steps

    item = Steps.__getitem__

    def broken(self, index):
        if index == 4:
            raise ValueError("source short: no such shard")
        return item(self, index)

    config = tiny_config(tmp_path)
    monkeypatch.setattr(Steps, "__getitem__", broken)
    with pytest.raises(ValueError, match="no such shard"):
        tiny_train(config)
    last = latest_checkpoint(RunDirectory(config.directory, config).checkpoints)
    assert last is not None and last.step == 4
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert_same_run(tiny_train(config)[1], straight)


def test_metrics_that_find_no_space_leave_the_checkpoints_intact(tmp_path, straight, monkeypatch):
    from flamingo.training.tracking import MetricsFile

    append = MetricsFile.append

    def full(self, entry):
        if entry["step"] == 6:
            self._file.close()
            self._file = open("/dev/full", "a")  # noqa: SIM115 (refuses every byte)
        append(self, entry)

    config = tiny_config(tmp_path)
    monkeypatch.setattr(MetricsFile, "append", full)
    with pytest.raises(OSError, match="No space left on device while appending to .*metrics.jsonl"):
        tiny_train(config)
    monkeypatch.setattr(MetricsFile, "append", append)
    assert_same_run(tiny_train(config)[1], straight)


# ---------------------------------------------------------------------------- two processes


def two(folder: Path, what: str, process: int) -> list[tuple[int, str]]:
    """Status and errors of both processes, without a launcher that would end one for the other."""
    with reserved_port() as port:
        return _two(folder, what, process, port)


def _two(folder: Path, what: str, process: int, port: int) -> list[tuple[int, str]]:
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), what, str(process)],
            env={
                **os.environ,
                **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = {}
    try:
        for rank in (1 - process, process):  # the one in which it happens may never end
            errors[rank] = started[rank].communicate(timeout=300)[1]
            if what == "freeze":
                started[process].kill()
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, errors[rank]) for rank, one in enumerate(started)]


def assert_continues(folder: Path, straight: RunDirectory, from_step: int) -> None:
    """Two processes finish from the checkpoint of ``from_step``, as if nothing had happened."""
    config = tiny_config(folder)
    run = RunDirectory(config.directory, config)
    last = latest_checkpoint(run.checkpoints)
    assert last is not None and last.step == from_step
    assert [status for status, _ in two(folder, "nothing", 0)] == [0, 0]
    for one, other in zip(metrics_of(run), metrics_of(straight), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_process_stops_both_alike(tmp_path, straight):
    ended = two(tmp_path, "nan", 1)
    for status, errors in ended:
        assert status == 1
        assert "NonFiniteLossError: training step 5: expected a finite loss" in errors
        assert "step_3" in errors
    assert_continues(tmp_path, straight, from_step=3)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_killed_process_is_missed_by_the_other(tmp_path, straight, process):
    began = time.monotonic()
    ended = two(tmp_path, "kill", process)
    assert time.monotonic() - began < 240
    assert ended[process][0] == -signal.SIGKILL
    status, errors = ended[1 - process]
    assert status == 1
    assert "LostProcessError: another process of this run ended" in errors
    assert "step_3; the same command continues" in errors
    assert_continues(tmp_path, straight, from_step=3)


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_as_long_as_the_config_says(tmp_path, straight):
    began = time.monotonic()
    status, errors = two(tmp_path, "freeze", 1)[0]
    assert 6 < time.monotonic() - began < 240  # timeout_minutes=0.1
    assert status == 1
    assert "LostProcessError: another process of this run ended, was not heard of" in errors
    assert_continues(tmp_path, straight, from_step=3)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(tmp_path, straight):
    assert [status for status, _ in two(tmp_path, "usr1", 1)] == [128 + signal.SIGUSR1] * 2
    assert_continues(tmp_path, straight, from_step=5)


@pytest.mark.slow
def test_data_that_fail_on_one_process_stop_both_with_a_checkpoint(tmp_path, straight):
    (status, errors), (other, others) = two(tmp_path, "data", 1)[::-1]
    assert (status, other) == (1, 1)
    assert "ValueError: source short: no such shard" in errors
    assert "OtherProcessError: another process has no data" in others
    assert_continues(tmp_path, straight, from_step=4)


@pytest.mark.slow
def test_a_full_disk_of_the_main_process_stops_both(tmp_path, straight):
    (status, errors), (other, others) = two(tmp_path, "disk", 0)
    assert (status, other) == (1, 1)
    assert "No space left on device" in errors
    assert "OtherProcessError: the main process could not go on" in others
    assert_continues(tmp_path, straight, from_step=6)
