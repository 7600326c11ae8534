"""What a contender is: who can do which of the work, as a run to be timed."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from torch import nn

from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, RankingWork, TrainingWork


class Who(Enum):
    """All contenders."""

    bare = "bare LM"
    ours = "ours"
    open_flamingo = "OpenFlamingo 2.0.1"
    flamingo_pytorch = "flamingo-pytorch 0.1.2"
    idefics = "Idefics (transformers)"


class CannotDo(Exception):
    """This contender has nothing that does this work; the message says why."""


class Contender(Protocol):
    """Each method prepares a run of the given work, or raises :class:`CannotDo`."""

    @property
    def model(self) -> nn.Module:
        """All its weights."""
        ...

    def training_step(self, work: TrainingWork) -> Run:
        """Forward and backward of a batch."""
        ...

    def resampler(self, work: TrainingWork) -> Run:
        """The resampler on a batch's images, forward and backward to what trains."""
        ...

    def cross_attention(self, work: TrainingWork) -> Run:
        """One gated block on a batch's text and latents, forward and backward."""
        ...

    def prefill(self, work: PromptWork) -> Run:
        """Prompts read to the first new token's logits, keys and values kept."""
        ...

    def decode(self, work: PromptWork) -> Run:
        """Single tokens behind prompts that were read."""
        ...

    def generate(self, work: PromptWork) -> Run:
        """Whole answers, greedy or by beams; the call returns the new tokens."""
        ...

    def rank(self, work: RankingWork) -> Run:
        """Log-likelihoods of candidates; the call returns them by row."""
        ...
