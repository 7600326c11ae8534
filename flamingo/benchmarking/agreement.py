"""Whether two contenders with the same weights say the same, before anything is timed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.benchmarking.work import FeatureShape, Tokens, TrainingWork, training_work

TOLERANCE = 1e-3
"""Between logits in fp32, as a part of their spread (standard deviation)."""


@runtime_checkable
class SaysLogits(Protocol):
    """A contender with our weights."""

    def logits(self, work: TrainingWork) -> Float[Tensor, "row token vocabulary"]: ...


def check_agreement(
    ours: SaysLogits, theirs: SaysLogits, tokens: Tokens, shape: FeatureShape
) -> float:
    """The largest difference between logits of two documents, one with an image, one with three.

    As a part of the logits' spread. Raises ``ValueError`` beyond :data:`TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(1)
    work = training_work(tokens, shape, images=[1, 3], length=24, padded=4, generator=generator)
    with torch.no_grad():
        own, other = ours.logits(work), theirs.logits(work)
    if own.shape != other.shape:
        raise ValueError(
            f"logits: expected the same shape of contenders with the same weights, got "
            f"{tuple(own.shape)} and {tuple(other.shape)}"
        )
    difference = ((own - other).abs().max() / own.std()).item()
    if not difference <= TOLERANCE:  # also where it is no number
        raise ValueError(
            f"logits: expected a difference of at most {TOLERANCE:g} of their spread between "
            f"contenders with the same weights, got {difference:.3g}: nothing was timed"
        )
    return difference
