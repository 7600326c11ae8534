"""What devices can do, from their makers' data sheets; and how fast a CPU is, measured."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from enum import Enum

import torch

CPU_SECONDS = 0.2
"""How long a CPU is measured."""


@dataclass(frozen=True)
class Device:
    """An accelerator."""

    tflops: float
    """Peak of dense bf16 matrix products with fp32 sums, 10^12 operations a second."""
    gib: float
    """Memory."""
    fp32_tflops: float
    """Peak in fp32 without TF32, which torch does not use unless it is told to."""


class Gpu(Enum):
    """Accelerators by name; of H100, H200 and B200 the SXM boards.

    Where a data sheet counts with sparsity (NVIDIA's do from Ampere on), half of it.
    """

    a10 = Device(125.0, 24.0, 31.2)
    a10g = Device(70.0, 24.0, 35.0)
    a40 = Device(149.7, 48.0, 37.4)
    a100_40gb = Device(312.0, 40.0, 19.5)
    a100 = Device(312.0, 80.0, 19.5)
    h100 = Device(989.0, 80.0, 67.0)
    h100_pcie = Device(756.0, 80.0, 51.0)
    h100_nvl = Device(835.0, 94.0, 60.0)
    h200 = Device(989.0, 141.0, 67.0)
    b200 = Device(2250.0, 180.0, 75.0)
    l4 = Device(121.0, 24.0, 30.3)
    l40s = Device(362.0, 48.0, 91.6)
    mi300x = Device(1307.0, 192.0, 163.4)
    rtx3090 = Device(71.0, 24.0, 35.6)
    rtx4090 = Device(165.0, 24.0, 82.6)


V100 = {"SXM": 15.7, "PCIE": 14.0}
"""TFLOP/s in fp32. It computes no bf16, so nothing is planned for it."""

_NAMES = (
    (r"A10G", Gpu.a10g),
    (r"A10", Gpu.a10),
    (r"A40", Gpu.a40),
    (r"A100.*40GB", Gpu.a100_40gb),
    (r"A100", Gpu.a100),
    (r"H100.*PCIe", Gpu.h100_pcie),
    (r"H100.*NVL", Gpu.h100_nvl),
    (r"H100.*HBM3", Gpu.h100),
    (r"H200(?!.*NVL)", Gpu.h200),
    (r"B200", Gpu.b200),
    (r"L4", Gpu.l4),
    (r"L40S", Gpu.l40s),
    (r"MI300X", Gpu.mi300x),
    (r"RTX 3090(?! Ti)", Gpu.rtx3090),
    (r"RTX 4090(?! D| Laptop)", Gpu.rtx4090),
)
"""Patterns of whole words in the names that drivers give."""


def gpu_peak(name: str, dtype: torch.dtype) -> float | None:
    """Operations a second of dense matrix products, of the GPU that a driver calls ``name``.

    ``None`` for one that is not in the table, a part of one (MIG), and a dtype that it lacks.
    """
    if re.search(r"\bMIG\b", name):
        return None
    if found := re.search(r"\bV100S?-(SXM|PCIE)", name):
        return V100[found[1]] * 1e12 if dtype is torch.float32 and "V100S" not in name else None
    gpu = next((gpu for word, gpu in _NAMES if re.search(rf"\b{word}\b", name)), None)
    if gpu is None:
        return None
    return (gpu.value.fp32_tflops if dtype is torch.float32 else gpu.value.tflops) * 1e12


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second that ``device`` can do in ``dtype``, or ``None`` if nothing tells.

    Of a GPU by its data sheet (:func:`gpu_peak`), of a CPU measured (:func:`cpu_peak`).
    """
    match device.type:
        case "cuda":
            return gpu_peak(torch.cuda.get_device_name(device), dtype)
        case "cpu":
            return cpu_peak(dtype)
        case _:
            return None


def cpu_peak(dtype: torch.dtype, seconds: float = CPU_SECONDS, size: int = 512) -> float:
    """Operations a second of square matrix products on the CPU's threads of this process.

    The best of as many products as ``seconds`` hold (at least two): what other programs take, or a
    first call, does not count. Operands of 512 rows stay in the caches (larger ones were four times
    as slow on one core). Less than the processor's nominal peak. Draws no random numbers.
    """
    one = torch.full((size, size), 0.5, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    products = 0
    while products < 2 or time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(one, one)
        best = min(best, time.perf_counter() - began)
        products += 1
    return 2 * size**3 / best
