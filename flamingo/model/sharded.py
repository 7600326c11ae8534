"""Tensors of which each process holds a part."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, without gradient. Of a sharded one every process must ask: it is put
    together from the parts of all."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
