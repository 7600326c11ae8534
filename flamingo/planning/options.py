"""What ``experiments/plan.py`` is asked, beside a run's own configuration."""

from __future__ import annotations

from dataclasses import dataclass

from flamingo.config import RunConfig
from flamingo.planning.devices import Device, Gpu
from flamingo.structured import require


@dataclass(kw_only=True)
class PlanConfig(RunConfig):
    """A run as it is configured, and the machine and sequences it is planned for."""

    gpus: int = 1
    """Devices; a step's sequences are divided over them."""
    gpu: Gpu = Gpu.h100
    peak_tflops: float | None = None
    """Of another device, dense, in the precision that is trained in; null: the gpu's."""
    memory_gib: float | None = None
    """Of another device; null: the gpu's."""
    mfu: float = 0.3
    """Share of the peak that is reached (model FLOPs utilisation). Tuned training of large models
    reports 0.38 to 0.46 (Llama 3, arXiv:2407.21783, table 4; PaLM, arXiv:2204.02311, table 3);
    short sequences, frozen parts and media in between reach less. Measure yours on a few steps."""
    total_tokens: int | None = None
    """Text tokens to train on; null: ``training.steps`` steps."""
    measure: bool = False
    """Take lengths, images and learned tokens from the configured sources, not from the five keys
    below. Builds sources and tokenizer, and so fetches what they need."""
    measured_steps: int = 4
    trial_steps: int = 0
    """Take so many real steps of the largest micro-batch on this machine's device, with random
    weights, and print what was planned beside what is measured. 0: none."""
    sequences: int | None = None
    """Of a step, over all devices; null: the sources', without sources 256."""
    tokens: int | None = None
    """Of a sequence; null: a stream's ``max_tokens``, without one 256 (OpenFlamingo's documents)
    or ``data.max_tokens``, if that is less."""
    images: int | None = None
    """Of a sequence; null: 1 in a captioned one, else 4 (OpenFlamingo's documents have up to 6)."""
    frames: int = 1
    """Of an image or clip."""
    learned: float = 0.9
    """Share of the tokens that is learned, and so passes the LM's head."""
    out: str | None = None
    """Also write the plan to this file, as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gpus", "measured_steps", "frames"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("sequences", "tokens", "total_tokens", "peak_tflops", "memory_gib"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "> 0 or null", value)
        require(self.images is None or self.images >= 0, "images", ">= 0 or null", self.images)
        require(self.trial_steps >= 0, "trial_steps", ">= 0", self.trial_steps)
        require(0 < self.mfu <= 1, "mfu", "in (0, 1]", self.mfu)
        require(0 <= self.learned <= 1, "learned", "in [0, 1]", self.learned)

    @property
    def device(self) -> Device:
        """The device that is planned for."""
        known = self.gpu.value
        return Device(
            tflops=known.tflops if self.peak_tflops is None else self.peak_tflops,
            gib=known.gib if self.memory_gib is None else self.memory_gib,
        )
