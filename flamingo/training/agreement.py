"""What all processes know of a step before anyone starts it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor

from flamingo.training.batches import Step
from flamingo.training.distributed import sum_over_processes
from flamingo.training.failures import Failed
from flamingo.training.interrupt import StopRequest


@dataclass(frozen=True, slots=True)
class Agreed:
    """The same on every process: sums over all of them."""

    learned: Int[Tensor, " source"]
    """Learned tokens of each source."""
    tokens: int
    padded_tokens: int
    images: int
    signal: int | None
    """The signal to stop for."""
    failed: bool
    """Whether any process has no step."""


def agree(part: Step | Failed, stop: StopRequest, sources: int, accelerator: Accelerator) -> Agreed:
    """Every process's part put together; each must call it."""
    own = [0] * (sources + 3)
    if isinstance(part, Step):
        own = [*part.learned.tolist(), part.tokens, part.padded_tokens, part.images]
    failed = isinstance(part, Failed)
    numbers = torch.tensor([*own, int(failed), *stop.flags()], device=accelerator.device)
    sums = sum_over_processes(numbers, accelerator).tolist()
    tokens, padded, images, failures, *flags = sums[sources:]
    learned = torch.tensor(sums[:sources], device=accelerator.device)
    return Agreed(learned, tokens, padded, images, stop.settle(flags), failures > 0)
