"""Sums of gradients over processes, without processes: what the others send is made up."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from flamingo.training import distributed
from flamingo.training.distributed import broadcast_parameters, sum_gradients


@pytest.fixture
def accelerator() -> Accelerator:
    return create_autospec(Accelerator, instance=True, num_processes=2, device=torch.device("cpu"))


def parameters() -> list[nn.Parameter]:
    """Of two types, of different sizes, one without a gradient."""
    shapes = [(3,), (2, 2), (5,), (1,), (4,)]
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.float32]
    made = [nn.Parameter(torch.zeros(s, dtype=d)) for s, d in zip(shapes, dtypes, strict=True)]
    for number, parameter in enumerate(made[:-1]):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    return made


@pytest.mark.parametrize("bucket", [1, 6, 1000])
def test_gradients_are_summed_in_buckets_of_one_type(monkeypatch, accelerator, bucket):
    sent: list[torch.Tensor] = []

    def double(values, _):
        sent.append(values)
        return 2 * values  # the other process has the same

    monkeypatch.setattr(distributed, "sum_over_processes", double)
    monkeypatch.setattr(distributed, "BUCKET_ELEMENTS", bucket)
    made = parameters()
    sum_gradients(made, accelerator)
    for number, parameter in enumerate(made[:-1]):
        assert parameter.grad is not None and parameter.grad.dtype is parameter.dtype
        assert torch.equal(parameter.grad, torch.full_like(parameter, 2 * (number + 1.0)))
    assert made[-1].grad is None  # no process has one
    sizes = [values.numel() for values in sent[1:]]  # the first says who has gradients
    assert sizes == {1: [3, 4, 5, 1], 6: [3, 4, 5, 1], 1000: [7, 5, 1]}[bucket]


def test_a_gradient_that_only_another_process_has_is_taken_over(monkeypatch, accelerator):
    calls: list[int] = []

    def other(values, _):
        calls.append(1)
        return values + 1 if len(calls) == 1 else values + 3

    monkeypatch.setattr(distributed, "sum_over_processes", other)
    parameter = nn.Parameter(torch.zeros(2))
    sum_gradients([parameter], accelerator)
    assert parameter.grad is not None and parameter.grad.tolist() == [3, 3]


def test_every_process_takes_the_main_one_s_values(monkeypatch, accelerator):
    monkeypatch.setattr(distributed, "broadcast", lambda own: own + 7)
    made = parameters()
    broadcast_parameters(made, accelerator)
    assert all(torch.equal(parameter, torch.full_like(parameter, 7)) for parameter in made)
    accelerator.num_processes = 1  # nobody to ask
    broadcast_parameters(made, accelerator)
    assert made[0].tolist() == [7] * 3


def test_processes_that_would_not_know_of_each_other_are_refused(monkeypatch):
    alone = create_autospec(Accelerator, instance=True, num_processes=1)
    monkeypatch.setattr(distributed, "Accelerator", lambda **_: alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected 1, .*, got 2; .* ACCELERATE_USE_CPU=true"):
        distributed.build_accelerator(1.0)


JOBS = """
from accelerate.utils import gather_object
from flamingo.training.distributed import build_accelerator, leave_processes
for job in range(20):
    accelerator = build_accelerator(1.0)
    every = gather_object([accelerator.process_index])
    print(f"job {job}: {every}\\n", end="", flush=True)
leave_processes()
"""


@pytest.mark.slow
def test_the_jobs_of_a_sweep_join_their_processes_one_after_the_other(tmp_path):
    script = tmp_path / "jobs.py"
    script.write_text(JOBS)
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(script)),
        ],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    expected = [f"job {job}: [0, 1]" for job in range(20) for _ in range(2)]
    assert sorted(ended.stdout.split("\n")[:-1]) == sorted(expected)
