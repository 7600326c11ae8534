"""What a run computes and moves, counted while it runs: FLOPs, bytes, and memory at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from flamingo.benchmarking.timing import Run

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
aten = torch.ops.aten
MOVE_NOTHING = (aten._unsafe_view,)
"""A view that torch does not call one: the last step of a product with a matrix."""
READ_A_PART = (aten.embedding, aten.index, aten.index_select, aten.gather)
"""Of their first argument as much as their result has, where their indices say."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one call, by unit as the seconds are."""

    flops: float
    bytes: float
    """Read and written by all operations, as if nothing stayed in a cache between two of them. A
    fused kernel is one operation: what it keeps to itself is not among them."""


class _Counter(TorchDispatchMode):
    """Sums the FLOPs of operations, and the bytes that they read and write.

    torch's ``FlopCounterMode`` has the same formulas, but also follows modules by hooks, which fail
    in models that are run without gradients here and with them there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        self.bytes += _moved(func, args, kwargs, result)
        return result


def _moved(func: Any, args: Sequence[Any], kwargs: Any, result: Any) -> int:
    """Bytes of all tensors that an operation takes and gives, but for views."""
    if func.is_view or func.overloadpacket in MOVE_NOTHING:
        return 0
    if func.overloadpacket in READ_A_PART:
        args = (result, *args[1:])
    tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def count(run: Run) -> Counted:
    """FLOPs by torch's formulas and the bytes moved, of one call; it is called twice.

    For the FLOPs attention runs as plain matrix products: torch has no formula for its fused kernel
    on a CPU. For the bytes it runs as it does when it is timed.
    """
    with sdpa_kernel(SDPBackend.MATH):
        products = _counted(run)
    return Counted(products.flops / run.units, _counted(run).bytes / run.units)


def _counted(run: Run) -> _Counter:
    state = run.prepare()
    with _Counter() as counter:
        run.call(state)
    return counter


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Bytes that a call needs at its peak beyond what was there before it.

    On a GPU what torch's allocator gave out; on Linux the resident memory of the process, which
    holds what the allocator keeps back (two equal calls may differ by some MiB); else None.
    """
    state = run.prepare()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run.call(state)
        return torch.cuda.max_memory_allocated(device) - before
    if not _forgets_peak():
        return None
    before = _status("VmRSS")
    run.call(state)
    return max(0, _status("VmHWM") - before)


def _forgets_peak() -> bool:
    """Give free memory back to the system and start a new peak. False where that is not Linux."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
    except (OSError, AttributeError):
        return False
    return STATUS.exists()


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS}: expected a line {name}, found none")
