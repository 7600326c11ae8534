"""Which device is at hand, which number format it computes fast (``Precision.auto``), and how
frozen weights get into one."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn

from flamingo.choices import Precision


def available_device() -> torch.device:
    """The current GPU; the CPU without one, or where ``ACCELERATE_USE_CPU`` is set, which training
    obeys too."""
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return torch.device("cuda" if on_gpu else "cpu")


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


def loading_dtype(wanted: torch.dtype) -> torch.dtype:
    """What to load a frozen LM in, to fingerprint it, where it is to be in ``wanted`` at the end.

    fp32 and bf16 have one fingerprint. fp16 rounds in other places: weights that went through it
    would be taken for another model's, so they are loaded in fp32 and cast afterwards
    (:func:`cast_parameters`).
    """
    return torch.bfloat16 if wanted is torch.bfloat16 else torch.float32


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Put parameters in ``dtype``, in place.

    Buffers stay as transformers made them (by a bf16 table of rotary frequencies the thousandth
    position is off by up to a radian), and so do quantised weights.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
