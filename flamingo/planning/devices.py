"""What devices can do, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Device:
    """An accelerator."""

    tflops: float
    """Peak of dense bf16 matrix products with fp32 sums, 10^12 operations a second."""
    gib: float
    """Memory."""


class Gpu(Enum):
    """Accelerators by name; of H100, H200 and B200 the SXM boards."""

    a10g = Device(70.0, 24.0)
    a100_40gb = Device(312.0, 40.0)
    a100 = Device(312.0, 80.0)
    h100 = Device(989.0, 80.0)
    h200 = Device(989.0, 141.0)
    b200 = Device(2250.0, 180.0)
    l40s = Device(362.0, 48.0)
    mi300x = Device(1307.0, 192.0)
    rtx4090 = Device(165.0, 24.0)
