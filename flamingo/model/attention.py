"""The two pieces that resampler and cross-attention share: attention itself and the feed-forward.

Which attention kernel runs is chosen here and nowhere else.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flamingo.choices import Activation


def attend(
    query: Float[Tensor, "row head query dim_head"],
    key: Float[Tensor, "row head key dim_head"],
    value: Float[Tensor, "row head key dim_head"],
    mask: Bool[Tensor, "row 1 query key"] | None = None,
) -> Float[Tensor, "row head query dim_head"]:
    """Scaled dot-product attention; a query whose mask is all False gets zeros.

    On CPU plain matrix products beat torch's fused kernel at these sizes (its bf16 backward took
    a quarter of a training step); elsewhere the fused kernel runs.
    """
    sees_any = None
    if mask is not None:
        sees_any = mask.any(dim=-1, keepdim=True)
        mask = mask | ~sees_any  # a softmax over nothing would be NaN; its result is dropped below
    if query.device.type == "cpu":
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        out = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out if sees_any is None else out * sees_any.to(out.dtype)


class SquaredReLU(nn.Module):
    """``relu(x) ** 2`` (So et al. 2021), the paper's activation."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.relu(x).square()


class FeedForward(nn.Sequential):
    """LayerNorm, linear to ``mult * dim``, activation, linear back; no biases in the linears."""

    def __init__(self, dim: int, mult: int, activation: Activation) -> None:
        match activation:
            case Activation.squared_relu:
                nonlinearity: nn.Module = SquaredReLU()
            case Activation.gelu:
                nonlinearity = nn.GELU()
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, mult * dim, bias=False),
            nonlinearity,
            nn.Linear(mult * dim, dim, bias=False),
        )
