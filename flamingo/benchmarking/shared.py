"""What contenders share: decoding step by step with a cache, and gradients to step on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flamingo.benchmarking.timing import Run


def no_grad(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``call`` without gradients, as every contender answers."""

    @functools.wraps(call)
    def without(state: Any) -> Any:
        with torch.no_grad():
            return call(state)

    return without


def decode_run(
    read: Callable[[], Any],
    step: Callable[..., Any],
    ids: Int[Tensor, "row token"],
    new_tokens: int,
) -> Run:
    """``new_tokens`` greedy tokens, one at a time, behind prompts that ``read`` (untimed) reads.

    ``read`` returns an output with ``logits`` and ``past_key_values``, ``step`` is the model.
    """

    def call(output: Any) -> Tensor:
        said = []
        mask = torch.ones_like(ids)
        for _ in range(new_tokens):
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            output = step(
                input_ids=token,
                attention_mask=mask,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            said.append(token)
        return torch.cat(said, dim=1)

    return Run(no_grad(call), prepare=lambda: no_grad(lambda _: read())(None), units=new_tokens)


def fill_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Zeros, where there is no gradient."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def likelihoods(
    logits: Float[Tensor, "row token vocabulary"], ids: tuple[int, ...]
) -> Float[Tensor, " row"]:
    """Summed log-likelihood of ``ids`` under logits at the positions before each of them."""
    chosen = torch.tensor(ids, device=logits.device).expand(len(logits), -1)[..., None]
    return logits.float().log_softmax(dim=-1).gather(-1, chosen).sum(dim=(1, 2))
