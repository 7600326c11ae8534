"""flamingo-pytorch 0.1.2 as a contender: its modules, which belong to no language model of ours."""

from __future__ import annotations

from typing import Any

from torch import nn

from flamingo.benchmarking.contender import CannotDo, Unable
from flamingo.benchmarking.packages import Package, peer_module
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import TrainingWork
from flamingo.interop.open_flamingo_export import RESAMPLER


class FlamingoPytorch(Unable):
    """The resampler, of OpenFlamingo's sizes. The rest is a PaLM of its own, and a gated block
    whose latents must be as wide as the text."""

    reason = "wraps its own PaLM alone, no language model of transformers"
    note = "its resampler, of the same sizes; padded images are resampled like real ones."

    def __init__(self, vision_dim: int, images: int) -> None:
        module: Any = peer_module("flamingo_pytorch", Package.flamingo_pytorch, Package.einops_exts)
        self.model: nn.Module = module.PerceiverResampler(
            dim=vision_dim,
            depth=RESAMPLER.depth,
            dim_head=RESAMPLER.dim_head,
            heads=RESAMPLER.heads,
            num_latents=RESAMPLER.num_latents,
            num_media_embeds=images,
            ff_mult=RESAMPLER.ff_mult,
        )

    @property
    def parts(self) -> list[nn.Module]:
        return [self.model]

    def resampler(self, work: TrainingWork) -> Run:
        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            self.model(work.features[:, :, 0]).sum().backward()

        return Run(call)

    def cross_attention(self, work: TrainingWork) -> Run:
        raise CannotDo("its gated block wants latents as wide as the text")
