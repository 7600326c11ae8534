"""Gradient norms by group of parameters: which part of the model is moving, and which is not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flamingo.model.sharded import whole


def gradient_group(name: str) -> str:
    """The group of a trainable parameter, by its name.

    ``resampler``, ``cross_attention/attention``, ``cross_attention/feed_forward``, ``gates``,
    ``new_tokens``, and ``language_model`` (an adapter in it): the first word of the name, but that
    the gated blocks (``cross_attention.<layer>.<branch>...``) are told apart by branch.
    """
    part, *rest = name.split(".")
    if part != "cross_attention":
        return part
    return "gates" if rest[1].endswith("_gate") else f"{part}/{rest[1]}"


@torch.no_grad()
def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The 2-norm of the gradients of each group that has any; their squares add up to the whole's.

    Of sharded parameters (DTensor) the norm is that of all shards: every process takes part.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            groups.setdefault(gradient_group(name), []).append(parameter.grad)
    if not groups:
        return {}
    norms = [whole(nn.utils.get_total_norm(gradients)) for gradients in groups.values()]
    return dict(zip(groups, torch.stack(norms).tolist(), strict=True))  # one wait for the device
