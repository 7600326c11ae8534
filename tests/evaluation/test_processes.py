"""One evaluation on several processes: the same predictions, each once, killed or not.

The quick tests run them as threads, the slow ones as what they are.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from flamingo.composition import CONF
from flamingo.evaluation import processes as module
from flamingo.evaluation import runner
from flamingo.evaluation.processes import ALONE, OtherProcessEnded, Processes, launched

from . import tiny
from .tiny_evaluation import answers, predict

ROOT = CONF.parent
SCRIPT = Path(__file__).with_name("tiny_evaluation.py")


def in_threads(count: int, call) -> list:
    """What each of ``count`` processes returns from ``call(process)``."""
    barrier = threading.Barrier(count)
    results: dict[int, object] = {}

    def run(index: int) -> None:
        try:
            results[index] = call(Processes(index, count, lambda: (barrier.wait(), None)[1]))
        except BaseException:
            barrier.abort()
            raise

    threads = [
        threading.Thread(target=run, args=(index,), name=str(index)) for index in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count, "a process failed"
    return [results[index] for index in range(count)]


def keys(folder: Path) -> list[str]:
    """Of all whole lines of all logs."""
    lines = [
        (file.parent.name, file.stem, json.loads(line)["key"])
        for file in sorted(folder.rglob("*.jsonl"))
        for line in file.read_bytes().split(b"\n")[:-1]
    ]
    return sorted("/".join(line) for line in lines)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, predict(folder)


@pytest.mark.parametrize(("count", "batch_size"), [(2, 4), (3, 7)])
def test_any_number_of_processes_predicts_the_same_each_once(
    alone, tmp_path, capsys, count: int, batch_size: int
) -> None:
    folder, outcome = alone
    models = [tiny.model() for _ in range(count)]  # one by one: they draw from one generator
    together = in_threads(
        count, lambda own: predict(tmp_path, own, models[own.index], batch_size=batch_size)
    )
    assert keys(tmp_path) == keys(folder)
    assert len(set(keys(tmp_path))) == len(keys(tmp_path))
    for each in together:
        assert answers(each) == answers(outcome)
        likely = answers(each, "probability")
        assert likely == pytest.approx(answers(outcome, "probability"), abs=1e-5)
        assert each.new == outcome.new
    shown = capsys.readouterr().err
    assert f"{outcome.new}/{outcome.new}" in shown, "the bar counts the predictions of all"


def test_interrupted_on_two_they_go_on_on_three(alone, tmp_path) -> None:
    folder, outcome = alone
    generator = random.Random(0)
    kept = 0
    for file in folder.rglob("*.jsonl"):
        torn = tmp_path / file.relative_to(folder)
        torn.parent.mkdir(exist_ok=True)
        content = file.read_bytes()[: generator.randrange(file.stat().st_size)]
        kept += content.count(b"\n")
        torn.write_bytes(content)
    assert 0 < kept < outcome.new
    models = [tiny.model() for _ in range(3)]
    together = in_threads(3, lambda own: predict(tmp_path, own, models[own.index]))
    assert [each.new for each in together] == [outcome.new - kept] * 3
    assert keys(tmp_path) == keys(folder)
    assert answers(together[0]) == answers(outcome)


def test_nothing_is_appended_before_all_have_seen_what_is_missing(tmp_path, monkeypatch) -> None:
    plan_cells = runner.plan_cells

    def slow(*arguments, **options):
        if threading.current_thread().name == "1":
            time.sleep(0.6)  # the other could have predicted its whole share
        return plan_cells(*arguments, **options)

    monkeypatch.setattr(runner, "plan_cells", slow)
    models = [tiny.model() for _ in range(2)]
    together = in_threads(2, lambda own: predict(tmp_path, own, models[own.index], queries=2))
    assert together[0].new == together[1].new == len(keys(tmp_path)) == len(set(keys(tmp_path)))


def test_the_main_process_goes_first() -> None:
    order: list[int] = []

    def call(processes: Processes) -> None:
        with processes.main_first():
            if processes.main:
                time.sleep(0.05)
            order.append(processes.index)

    in_threads(3, call)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_started_by_itself_a_process_is_alone(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launched() == ALONE
    with ALONE.main_first():
        ALONE.wait()


def test_processes_with_gpus_wait_for_one_another_without_them(monkeypatch) -> None:
    """NCCL would notice none that ends, and needs a GPU of the process's number."""
    asked: dict[str, object] = {}
    current: list[int] = []

    class State:
        num_processes, process_index, local_process_index = 16, 13, 5

        def __init__(self, **options: object) -> None:
            asked.update(options)

        def destroy_process_group(self) -> None: ...

    monkeypatch.setattr(module, "PartialState", State)
    monkeypatch.setattr(module.atexit, "register", lambda call: None)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    processes = launched()
    assert (processes.index, processes.count) == (13, 16)
    assert asked["cpu"] is True and "backend" not in asked
    assert current == [1]

    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        processes.wait()  # of this group's only process
    finally:
        torch.distributed.destroy_process_group()


def test_only_a_lost_connection_is_the_end_of_another_process(monkeypatch) -> None:
    class State:
        num_processes, process_index, local_process_index = 2, 1, 1

        def __init__(self, **_: object) -> None: ...

        def destroy_process_group(self) -> None: ...

    def fail(error: Exception) -> None:
        def barrier(**_: object) -> None:
            raise error

        monkeypatch.setattr(torch.distributed, "barrier", barrier)

    monkeypatch.setattr(module, "PartialState", State)
    monkeypatch.setattr(module.atexit, "register", lambda call: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    processes = launched()
    fail(RuntimeError("[/src/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"))
    with pytest.raises(OtherProcessEnded, match="closed by peer"):
        processes.wait()
    fail(torch.distributed.DistNetworkError("failed to recv, got 0 bytes"))
    with pytest.raises(OtherProcessEnded, match="got 0 bytes"):
        processes.wait()
    fail(RuntimeError("CUDA error: invalid device ordinal"))
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        processes.wait()


# ---------------------------------------------------------------------------- as processes


def start(folder: Path, count: int, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)),
            *("--standalone", "--no_python", sys.executable, str(SCRIPT), str(folder), *arguments),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, count: int, *arguments: str) -> tuple[int, str]:
    process = start(folder, count, *arguments)
    _, told = process.communicate(timeout=300)
    return process.returncode, told


@pytest.mark.slow
def test_killed_at_any_moment_they_go_on_on_another_number(tmp_path) -> None:
    predict(tmp_path / "straight", queries=60)
    expected = keys(tmp_path / "straight")
    logs = tmp_path / "predictions"
    # Where this process is late, they wait: before the next share, and before the end.
    for share, most in ((0.1, 0.1), (0.6, 0.35)):
        process = start(tmp_path, 2, f"wait={int(most * len(expected))}")
        while len(keys(logs)) < share * len(expected):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        for number in range(2):
            os.kill(int((tmp_path / f"pid{number}").read_text()), signal.SIGKILL)
        process.communicate(timeout=240)
        assert process.returncode != 0
        assert len(keys(logs)) < len(expected), "killed too late"
        assert len(set(keys(logs))) == len(keys(logs))
    for count in (1, 3):
        before = keys(logs)
        code, told = finish(tmp_path, count)
        assert code == 0, told
        assert keys(logs) == expected
        if count == 1:
            assert f"/{len(expected) - len(before)}" in told, "only what was missing"
            victim = next(logs.rglob("real.jsonl"))
            victim.write_bytes(victim.read_bytes()[:-700])
    straight, resumed = predict(tmp_path / "straight", queries=60), predict(logs, queries=60)
    assert resumed.new == 0
    assert answers(resumed) == answers(straight)


@pytest.mark.slow
def test_an_error_of_one_ends_all_with_its_message(tmp_path) -> None:
    started = time.monotonic()
    code, told = finish(tmp_path, 2, "fail")
    assert code != 0
    assert "ValueError: no such model" in told
    assert time.monotonic() - started < 240
    assert not (tmp_path / "predictions").exists() or len(keys(tmp_path / "predictions")) > 0
