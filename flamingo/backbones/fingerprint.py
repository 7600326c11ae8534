"""A short name for exactly these weights and settings, to notice when a backbone has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def weights_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the values of ``tensors``, whatever their names and order.

    Names are left out because transformers renames parameters between versions. Values are
    hashed as fp32, so weights stored in bf16 and the same ones widened to fp32 agree. About a
    second for a gigabyte.
    """
    return hashlib.sha256("".join(sorted(map(_digest, tensors))).encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).numpy()
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    digest.update(values.data)
    return digest.hexdigest()


def fingerprint(**parts: Any) -> str:
    """SHA-256 of named values that JSON can write (a :func:`weights_digest` is one of them)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
