"""What ``experiments/plan.py`` is asked, beside a run's own configuration."""

from __future__ import annotations

from dataclasses import dataclass

from flamingo.choices import Precision
from flamingo.config import RunConfig
from flamingo.planning.devices import Gpu
from flamingo.structured import require


@dataclass(kw_only=True)
class PlanConfig(RunConfig):
    """A run as it is configured, and the machine and sequences it is planned for."""

    gpus: int = 1
    """Devices; a step's sequences are divided over them."""
    gpu: Gpu = Gpu.h100
    peak_tflops: float | None = None
    """Of another device, dense, in the precision that is trained in; null: the gpu's in
    ``training.precision`` (``auto`` is bf16)."""
    memory_gib: float | None = None
    """Of another device; null: the gpu's."""
    mfu: float = 0.3
    """Share of the peak that needed operations reach (model FLOPs utilisation, training's
    ``time/mfu``): padding and what checkpointing computes again lower it. Tuned training of large
    models reports 0.38 to 0.46 (Llama 3, arXiv:2407.21783, table 4; PaLM, arXiv:2204.02311, table
    3); short sequences, frozen parts and media in between reach less. Measure yours on a few
    steps."""
    total_tokens: int | None = None
    """Text tokens to train on, without padding; null: ``training.steps`` steps."""
    measure: bool = False
    """Take lengths, images and learned tokens from the configured sources, not from the five keys
    below. Builds sources and tokenizer, and so fetches what they need."""
    measured_steps: int = 4
    """How many; with ``data.mixing=round_robin`` up to whole rounds of the sources."""
    trial_steps: int = 0
    """Take so many real steps of the micro-batch that needs most memory on this machine's device,
    with random weights, and print what was planned beside what is measured. 0: none."""
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
    def device_tflops(self) -> float:
        """Peak of a device in the precision that is trained in, 10^12 operations a second."""
        if self.peak_tflops is not None:
            return self.peak_tflops
        match self.training.precision:
            case Precision.fp32:
                return self.gpu.value.fp32_tflops
            case Precision.auto | Precision.bf16:
                return self.gpu.value.tflops

    @property
    def device_gib(self) -> float:
        """Memory of a device."""
        return self.gpu.value.gib if self.memory_gib is None else self.memory_gib
