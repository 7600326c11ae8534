"""The next-token loss, of given logits and without all logits at once.

At training sizes the logits are the largest tensor of a step by far (2,040 positions of a
vocabulary of 49,154 in fp32: 400 MB), and most of their time is memory traffic. By
:func:`weighted_loss` the head, the loss and the way back to the hidden states are done for a few
positions at a time, while their logits are still in the processor's cache; gradients are taken in
the forward pass, each position's weight in the loss being known by then. (The idea of fused linear
cross-entropy, as in Liger Kernel, arXiv:2410.10989, in plain torch.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from flamingo.types import IGNORE_INDEX

LogitsOf = Callable[[Float[Tensor, "some dim"]], Float[Tensor, "some vocabulary"]]

CPU_LOGITS = 2**23
"""Logits at a time on a CPU: 32 MiB in fp32, of the size of its cache."""
GPU_LOGITS = 2**26
"""On a GPU: 256 MiB, rows enough to keep its multiprocessors busy."""


def next_token_loss(
    logits: Float[Tensor, "row token vocabulary"], labels: Int[Tensor, "row token"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of each next token; labels of -100 do not count."""
    if logits.ndim != 3 or logits.shape[1] != labels.shape[1]:
        raise ValueError("labels: expected logits at every position, got a selection of them")
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )


def weighted_loss(
    logits_of: LogitsOf,
    hidden: Float[Tensor, "kept dim"],
    targets: Int[Tensor, " kept"],
    weights: Float[Tensor, " kept"],
    parameters: Sequence[Tensor],
    vocabulary: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, " kept"]]:
    """``sum(weights * losses)``, and the losses, which carry no gradient.

    ``losses`` are each position's cross-entropy in nats; ``logits_of`` gives the logits of some
    rows of ``hidden``. ``parameters``: what ``logits_of`` uses that trains; they and ``hidden``
    get gradients. ``vocabulary`` (the width of the logits) decides how many rows go at a time.
    """
    size = rows_at_a_time(vocabulary, hidden.device)
    if not torch.is_grad_enabled():  # autograd would still ask for the parameters' gradients
        hidden, parameters = hidden.detach(), [parameter.detach() for parameter in parameters]
    return _WeightedLoss.apply(logits_of, targets, weights, size, hidden, *parameters)  # type: ignore[return-value]


def rows_at_a_time(vocabulary: int, device: torch.device) -> int:
    """Positions whose logits exist together."""
    budget = CPU_LOGITS if device.type == "cpu" else GPU_LOGITS
    return max(1, budget // vocabulary)


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_of: LogitsOf,
        targets: Tensor,
        weights: Tensor,
        size: int,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[4:]
        losses = torch.empty(len(hidden), device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if wanted[0] else None
        gradients = [
            torch.zeros_like(p) if want else None
            for p, want in zip(parameters, wanted[1:], strict=True)
        ]
        trained = [p for p, want in zip(parameters, wanted[1:], strict=True) if want]
        sums = [gradient for gradient in gradients if gradient is not None]
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            with torch.enable_grad():
                rows = hidden[part].detach().requires_grad_(wanted[0])
                # A view: trackers of modules (torch's counter of operations) refuse leaves here.
                logits = logits_of(rows.view_as(rows))
                own = F.cross_entropy(logits.float(), targets[part], reduction="none")
            losses[part] = own.detach()
            inputs = [*([rows] if wanted[0] else []), *trained]
            if not inputs:
                continue
            found = list(torch.autograd.grad(own, inputs, weights[part]))
            if hidden_gradient is not None:
                hidden_gradient[part] = found.pop(0)
            for total, gradient in zip(sums, found, strict=True):
                total += gradient
        ctx.gradients = (hidden_gradient, *gradients)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * scale.to(g.dtype) for g in ctx.gradients)
        return (None, None, None, None, *scaled)
