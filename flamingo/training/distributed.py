"""Sums over processes.

Gradients are summed by hand, once a step, instead of by DistributedDataParallel: the loss is
already normalised over all processes (a sum is exact where DDP's mean is not), processes may hold
different numbers of sequences and sources that leave some parameters unused, and the frozen
weights need no bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn

_SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}


def check_distributed(accelerator: Accelerator) -> None:
    """Raise ``ValueError`` for sharded training, which this loop does not do."""
    if accelerator.distributed_type not in _SUPPORTED:
        raise ValueError(
            "accelerate launch: expected plain data parallelism (one or several processes), got "
            f"{accelerator.distributed_type.value}"
        )


def sum_over_processes(values: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum of every process's ``values``, on every process."""
    if accelerator.num_processes == 1:
        return values
    total = accelerator.reduce(values, reduction="sum")
    assert isinstance(total, Tensor)
    return total


@torch.no_grad()
def broadcast_parameters(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Give every process the main process's values."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            parameter.copy_(broadcast(parameter.detach().clone()))


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Sum gradients over processes. One that no process has stays ``None``, as with one process
    (AdamW skips it; a gradient of zero would still decay it)."""
    if accelerator.num_processes == 1:
        return
    device = accelerator.device
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
    used = (sum_over_processes(present, accelerator) > 0).tolist()
    chosen = [p for p, u in zip(parameters, used, strict=True) if u]
    if not chosen:
        return
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in chosen]
    flat = sum_over_processes(torch.cat([g.flatten() for g in own]), accelerator)
    for parameter, part in zip(chosen, flat.split([p.numel() for p in chosen]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
