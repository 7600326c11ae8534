"""What resampler and cross-attention share: attention itself, norms and the feed-forwards.

Which kernel their attention runs by is chosen here; the language model's in
:mod:`flamingo.backbones.attention`.
"""

from typing import cast

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flamingo.backbones.attention import products
from flamingo.choices import Activation, Norm


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
        mask = mask | ~sees_any  # a softmax over nothing may be NaN; its result is dropped below
    if query.device.type == "cpu":
        out = products(query, key, value, mask, query.shape[-1] ** -0.5)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out if sees_any is None else out * sees_any.to(out.dtype)


class SquaredReLU(nn.Module):
    """``relu(x) ** 2`` (So et al. 2021), the paper's activation."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.relu(x).square()


def build_norm(kind: Norm, dim: int, eps: float = 1e-5) -> nn.LayerNorm | nn.RMSNorm:
    """A norm over the last ``dim`` channels."""
    match kind:
        case Norm.layer:
            return nn.LayerNorm(dim, eps=eps)
        case Norm.rms:
            return nn.RMSNorm(dim, eps=eps)


def build_activation(kind: Activation) -> nn.Module:
    """The nonlinearity between the linears of a feed-forward."""
    match kind:
        case Activation.squared_relu:
            return SquaredReLU()
        case Activation.gelu:
            return nn.GELU()
        case Activation.relu:
            return nn.ReLU()
        case Activation.silu:
            return nn.SiLU()


class FeedForward(nn.Sequential):
    """Norm, linear to ``width``, activation, linear back; no biases in the linears."""

    def __init__(
        self,
        dim: int,
        width: int,
        activation: Activation,
        norm: Norm = Norm.layer,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(
            build_norm(norm, dim, norm_eps),
            nn.Linear(dim, width, bias=False),
            build_activation(activation),
            nn.Linear(width, dim, bias=False),
        )

    @property
    def norm(self) -> nn.LayerNorm | nn.RMSNorm:
        return cast(nn.LayerNorm | nn.RMSNorm, self[0])

    @property
    def down(self) -> nn.Linear:
        return cast(nn.Linear, self[-1])


class GatedFeedForward(nn.Module):
    """``down(act(gate(y)) * up(y))``, ``y = norm(x)``; no biases in the linears.

    A gated linear unit (Shazeer 2020, arXiv:2002.05202), as in LLaMA and IDEFICS.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        activation: Activation,
        norm: Norm = Norm.layer,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = build_norm(norm, dim, norm_eps)
        self.gate = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)
        self.activation = build_activation(activation)

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        x = self.norm(x)
        return self.down(self.activation(self.gate(x)) * self.up(x))
