"""Sums over processes.

Gradients are summed by hand, once a step, instead of by DistributedDataParallel: the loss is
already normalised over all processes (a sum is exact where DDP's mean is not), processes may hold
different numbers of sequences and sources that leave some parameters unused, and the frozen
weights need no bookkeeping. Only what trains is sent, in buckets of one type: a few large messages,
and little memory beside the gradients. With sharding FSDP2 sums them
(:mod:`flamingo.training.sharding`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}


BUCKET_ELEMENTS = 2**25
"""Gradients that are sent in one message: 128 MiB of fp32."""


def build_accelerator(timeout_minutes: float) -> Accelerator:
    """This process's place among the others. Each waits ``timeout_minutes`` for them, then fails
    (in a sweep over several processes: those of its first job).

    Raises:
        ValueError: It was launched as one of several and accelerate takes it for one alone.

    Mixed precision is the loop's own matter, and accelerate's setting is shared by the whole
    interpreter: it is off.
    """
    timeout = timedelta(minutes=timeout_minutes)
    accelerator = Accelerator(
        mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)]
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:  # each would write the same run
        raise ValueError(
            f"WORLD_SIZE: expected {accelerator.num_processes}, as many as accelerate found, got "
            f"{launched}; several processes without GPUs need ACCELERATE_USE_CPU=true"
        )
    return accelerator


def leave_processes() -> None:
    """End this process's part among several, after the last of its jobs.

    The jobs of a sweep share one group. To leave it and join anew would go through the same store,
    in which a process that is early finds the addresses of the group before.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_distributed(accelerator: Accelerator) -> None:
    """Raise ``ValueError`` for what accelerate would wrap the model in: DeepSpeed, its FSDP, ..."""
    if accelerator.distributed_type not in _SUPPORTED:
        raise ValueError(
            "accelerate launch: expected one or several plain processes (--multi_gpu or none), got "
            f"{accelerator.distributed_type.value}; to shard the model over them set "
            "training.sharding=full"
        )


def sum_over_processes(values: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum of every process's ``values``, on every process."""
    if accelerator.num_processes == 1:
        return values
    total = accelerator.reduce(values, reduction="sum")
    assert isinstance(total, Tensor)
    return total


def max_over_processes(number: int, accelerator: Accelerator) -> int:
    """The largest of every process's ``number``, on every process."""
    if accelerator.num_processes == 1:
        return number
    every = accelerator.gather(torch.tensor([number], device=accelerator.device))
    assert isinstance(every, Tensor)
    return int(every.max())


@torch.no_grad()
def broadcast_parameters(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Give every process the main process's values."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            value = parameter.detach().to(accelerator.device, copy=True)
            parameter.copy_(broadcast(value))


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Sum gradients over processes. One that no process has stays ``None``, as with one process
    (AdamW skips it; a gradient of zero would still decay it). Sharded ones are sums already."""
    if accelerator.num_processes == 1 or any(isinstance(p, DTensor) for p in parameters):
        return
    device = accelerator.device
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    used = (sum_over_processes(present, accelerator) > 0).tolist()
    chosen = [p for p, u in zip(parameters, used, strict=True) if u]
    for parameter in chosen:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in buckets(chosen):
        gradients = [p.grad for p in bucket if p.grad is not None]
        flat = sum_over_processes(torch.cat([g.flatten() for g in gradients]), accelerator)
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """In order, of one type each, up to :data:`BUCKET_ELEMENTS` (a larger parameter is alone)."""
    bucket: list[nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        full = elements + parameter.numel() > BUCKET_ELEMENTS
        if bucket and (full or parameter.dtype is not bucket[0].dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(parameter)
        elements += parameter.numel()
    if bucket:
        yield bucket
