"""The default callback of the loop: the loss on sequences that training never sees."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from flamingo.data.mixture import UNSEEN
from flamingo.training.batches import Steps, StepSource, to_device
from flamingo.training.distributed import sum_over_processes
from flamingo.training.loss import batch_loss_sums, combine


class ValidationLoss:
    """``callback(step, model)``: mean token loss of each source over ``batches`` unseen steps.

    A source without unseen sequences (a stream without held-out shards) has none.
    """

    def __init__(
        self, mixture: StepSource, steps: Steps, accelerator: Accelerator, batches: int
    ) -> None:
        self._mixture, self._steps = mixture, steps
        self._accelerator, self._batches = accelerator, batches

    @torch.no_grad()
    def __call__(self, step: int, model: nn.Module) -> dict[str, float]:
        device = self._accelerator.device
        names = self._mixture.names
        sums = torch.zeros(len(names), device=device)
        counts = torch.zeros(len(names), dtype=torch.long, device=device)
        for part in self._steps.iterate(range(UNSEEN, UNSEEN + self._batches), workers=0):
            counts += part.learned.to(device)
            for batch in part.micro_batches:
                sums += batch_loss_sums(model, to_device(batch, device), len(names))
        sums = sum_over_processes(sums, self._accelerator)
        counts = sum_over_processes(counts, self._accelerator)
        means = sums / counts.clamp(min=1)
        metrics = {"validation/loss": combine(sums, counts, self._mixture.loss_weights).item()}
        return metrics | {
            f"validation/loss/{n}": m
            for n, m, c in zip(names, means.tolist(), counts, strict=True)
            if c
        }
