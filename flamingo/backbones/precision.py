"""Which number format a device computes fast: the answer behind ``Precision.auto``."""

from __future__ import annotations

import torch

from flamingo.choices import Precision


def preferred_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 where ``device`` has instructions for it, else fp32.

    CPUs without them (AMX, AVX512-BF16) compute bf16 too, but by conversions that make it slower
    than fp32; CUDA before Ampere emulates it as well.
    """
    device = torch.device(device)
    match device.type:
        case "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            # Private, but the only way torch tells; both exist since 2.6.
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        case "xpu":
            native = True
        case _:
            native = False
    return torch.bfloat16 if native else torch.float32


def resolve_dtype(precision: Precision, device: torch.device | str) -> torch.dtype:
    """The torch type that ``precision`` means on ``device``."""
    match precision:
        case Precision.auto:
            return preferred_dtype(device)
        case Precision.bf16:
            return torch.bfloat16
        case Precision.fp32:
            return torch.float32
