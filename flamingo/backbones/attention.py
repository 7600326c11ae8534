"""Attention by plain matrix products, and an attention of language models that uses it.

On CPUs torch's fused kernel is slow where few tokens ask: a language model's step of one token
spent a third of its time there, and half of it behind 32 demonstrations (LOG.md). The products read
grouped keys and values as they lie in the cache, without a copy for each query head.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_or_products"
"""transformers' name of :func:`attend`."""
FEW = 16
"""Tokens a row up to which the products are faster, measured at 200 to 1,000 cached tokens."""


def products(
    query: Float[Tensor, "row head query dim_head"],
    key: Float[Tensor, "row group key dim_head"],
    value: Float[Tensor, "row group key dim_head"],
    mask: Bool[Tensor, "#row 1 query key"] | Float[Tensor, "#row 1 query key"] | None,
    scale: float,
) -> Float[Tensor, "row head query dim_head"]:
    """Scaled dot-product attention; consecutive heads share the keys and values of a group.

    ``mask`` is True where a token sees, or is added to the scores. The softmax is in fp32. A query
    that sees nothing gets the mean of all values.
    """
    rows, heads, tokens, _ = query.shape
    groups = key.shape[1]
    together = (query * scale).reshape(rows, groups, heads // groups * tokens, -1)
    scores = together @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.view(rows, heads, tokens, -1)
        if mask.dtype is torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
        scores = scores.view(rows, groups, heads // groups * tokens, -1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).view(rows, heads, tokens, -1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers' ``sdpa``; by :func:`products` on CPUs where few tokens ask.

    A function of transformers' ``AttentionInterface``: query, key and value are (row, head, token,
    channel), what is returned is (row, token, head, channel).
    """
    asked = query.shape[2]
    # With several tokens and no mask it is the kernel that knows who sees whom.
    known = asked == 1 if attention_mask is None else attention_mask.shape[1] == 1
    special = dropout or any(others.get(name) is not None for name in ("position_bias", "cache"))
    if query.device.type != "cpu" or asked > FEW or not known or special or "softcap" in others:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = products(query, key, value, attention_mask, scale)
    return out.transpose(1, 2).contiguous(), None


def choose_attention(language_model: PreTrainedModel) -> PreTrainedModel:
    """Let ``language_model`` use :func:`attend` where it would use ``sdpa`` and can.

    Left as they are: families with attention of their own (Falcon, MPT, BLOOM, GPT-J), and a
    kernel that was asked for by name.
    """
    config = language_model.config.get_text_config()
    if language_model._supports_attention_backend and config._attn_implementation == "sdpa":
        language_model.set_attn_implementation(NAME)
    return language_model


def choose_training_attention(language_model: PreTrainedModel, device: torch.device) -> None:
    """Let ``language_model`` train by plain products on a CPU; elsewhere it stays as it is.

    At the lengths trained there they beat the fused kernel, whose bf16 backward took 18 % of a
    step.
    """
    if device.type == "cpu":
        language_model.set_attn_implementation("eager")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
