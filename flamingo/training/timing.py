"""How fast a run is: throughput, waiting for data, use of the devices, memory.

None of it is part of a checkpoint, and all of it differs between two equal runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from flamingo.training.tracking import MEMORY_PREFIX, TIMING_PREFIX
from flamingo.types import Batch

GIB = 2**30


@dataclass(frozen=True)
class Utilisation:
    """What model FLOPs utilisation is reckoned with (``flamingo.planning.utilisation`` makes it).

    MFU (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B) is the operations that a step
    needs, over those that the devices could have done meanwhile.
    """

    flops: Callable[[Batch], int]
    """Operations that forward and backward pass of a micro-batch need: of real tokens and media,
    without padding, and without what gradient checkpointing computes a second time."""
    peak: float | None
    """Operations a second that one device can do; None: not known, and no MFU is logged."""


@dataclass
class Work:
    """What was done since the last log entry, and the time it took."""

    steps: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of these that this process waited for its data."""
    flops: int = 0
    """Of this process."""

    def add(
        self,
        *,
        tokens: int,
        padded_tokens: int,
        images: int,
        seconds: float,
        waited: float,
        flops: int = 0,
    ) -> None:
        """A step: tokens and images over all processes, the rest of this one."""
        self.steps += 1
        self.tokens += tokens
        self.padded_tokens += padded_tokens
        self.images += images
        self.seconds += seconds
        self.waited += waited
        self.flops += flops

    def throughput(self) -> dict[str, float]:
        """``time/...``, as far as one process knows it."""
        seconds, steps = max(self.seconds, 1e-9), max(self.steps, 1)
        return {
            f"{TIMING_PREFIX}tokens_per_second": self.tokens / seconds,
            # Real tokens of those computed. It differs with the number of processes.
            f"{TIMING_PREFIX}token_efficiency": self.tokens / max(self.padded_tokens, 1),
            f"{TIMING_PREFIX}images_per_second": self.images / seconds,
            f"{TIMING_PREFIX}step_seconds": self.seconds / steps,
            f"{TIMING_PREFIX}data_seconds": self.waited / steps,
            f"{TIMING_PREFIX}data_share": self.waited / seconds,
            f"{TIMING_PREFIX}unix": time.time(),
        }


class Timing:
    """Collects the work of steps; :meth:`flush` returns its numbers and starts anew."""

    def __init__(self, accelerator: Accelerator, utilisation: Utilisation | None) -> None:
        self._accelerator, self._utilisation = accelerator, utilisation
        self.work = Work()

    def flops(self, batches: Sequence[Batch]) -> int:
        """Operations that micro-batches need; 0 where nobody says."""
        return 0 if self._utilisation is None else sum(map(self._utilisation.flops, batches))

    def bar(self) -> dict[str, str]:
        """The progress bar's numbers, as this process sees them; waiting only where it matters."""
        numbers = self.work.throughput()
        shown = {
            "tok/s": f"{numbers[f'{TIMING_PREFIX}tokens_per_second']:.0f}",
            "img/s": f"{numbers[f'{TIMING_PREFIX}images_per_second']:.1f}",
        }
        share = numbers[f"{TIMING_PREFIX}data_share"]
        return shown | ({"waits": f"{share:.0%}"} if share > 0.1 else {})

    def flush(self) -> dict[str, float]:
        """The numbers of all processes together; each of them must call it.

        The wait for data is that of the process that waited longest: the others waited for it.
        """
        own = {"work": asdict(self.work), "memory": peak_memory(self._accelerator.device)}
        every = gather_object([own])
        total = Work(**every[0]["work"])
        total.waited = max(part["work"]["waited"] for part in every)
        total.flops = sum(part["work"]["flops"] for part in every)
        memory = [part["memory"] for part in every if part["memory"] is not None]
        self.work = Work()
        numbers = total.throughput() | self._rates(total)
        return numbers | ({f"{MEMORY_PREFIX}peak_gib": max(memory) / GIB} if memory else {})

    def _rates(self, total: Work) -> dict[str, float]:
        """Operations a second, over all devices, and their share of the devices' peak."""
        if self._utilisation is None or not total.seconds:
            return {}
        rate, peak = total.flops / total.seconds, self._utilisation.peak
        rates = {f"{TIMING_PREFIX}tflops_per_second": rate / 1e12}
        if peak is not None:
            rates[f"{TIMING_PREFIX}mfu"] = rate / (peak * self._accelerator.num_processes)
        return rates


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use: on CUDA of tensors since the last call, on CPU of the process since its
    start; None where the system does not tell."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource  # of Unix alone

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
