"""Fewer tokens of an image: its patch grid averaged to a coarser one."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class PooledGrid(nn.Module):
    """``tokens[i, j] = mean over the cells of the patch grid that lie in (i, j)``.

    Adaptive average pooling of a ``height x width`` grid to ``side x side``; where ``side`` does
    not divide it, neighbouring means share cells. Tokens in front of the grid (CLS) stay as they
    are. Has no weights.

    Raises ``ValueError`` for a ``side`` beyond the grid's.
    """

    def __init__(self, height: int, width: int, side: int) -> None:
        super().__init__()
        if not 1 <= side <= min(height, width):
            raise ValueError(
                f"vision.grid: expected 1 to {min(height, width)}, a side of at most the encoder's "
                f"grid of {height} x {width} patches, got {side}"
            )
        self.height, self.width, self.side = height, width, side

    def forward(self, tokens: Float[Tensor, "image token dim"]) -> Float[Tensor, "image fewer dim"]:
        front = tokens.shape[1] - self.height * self.width
        grid = rearrange(tokens[:, front:], "i (h w) d -> i d h w", h=self.height)
        pooled = F.adaptive_avg_pool2d(grid, self.side)
        return torch.cat([tokens[:, :front], rearrange(pooled, "i d h w -> i (h w) d")], dim=1)
