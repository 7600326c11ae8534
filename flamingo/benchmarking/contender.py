"""What a contender is: who can do which of the work, as a run to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol, runtime_checkable

from torch import nn

from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, RankingWork, TrainingWork


class Who(Enum):
    """All contenders, and what the table calls them."""

    bare = "bare LM"
    ours = "ours"
    open_flamingo = "OpenFlamingo 2.0.1"
    flamingo_pytorch = "flamingo-pytorch 0.1.2"
    idefics = "Idefics of transformers"


class CannotDo(Exception):
    """This contender has nothing that does this work; the message says why."""


@runtime_checkable
class Contender(Protocol):
    """Each method prepares a run of the given work, or raises :class:`CannotDo`."""

    note: str
    """How it was measured, for the table."""

    @property
    def model(self) -> nn.Module:
        """All its weights."""
        ...

    @property
    def parts(self) -> Sequence[nn.Module]:
        """What is compiled, each by itself, where that is asked for."""
        ...

    def training_step(self, work: TrainingWork) -> Run:
        """Forward and backward of a batch; no optimiser."""
        ...

    def optimizer_step(self) -> Run:
        """Clipping and AdamW's step on gradients that are there (zeros, at rate 0)."""
        ...

    def resampler(self, work: TrainingWork) -> Run:
        """The resampler on a batch's images, forward and backward to what trains."""
        ...

    def cross_attention(self, work: TrainingWork) -> Run:
        """One gated block on a batch's text and latents, forward and backward to all of them."""
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
        """Log-likelihoods of candidates behind prompts, per token."""
        ...

    def evaluate(self, work: EvaluationWork) -> Run:
        """A few-shot evaluation; a unit is a query."""
        ...


class Unable:
    """A contender that can do nothing; for those that can do little."""

    reason: str

    def training_step(self, work: TrainingWork) -> Run:
        raise CannotDo(self.reason)

    def optimizer_step(self) -> Run:
        raise CannotDo(self.reason)

    def resampler(self, work: TrainingWork) -> Run:
        raise CannotDo(self.reason)

    def cross_attention(self, work: TrainingWork) -> Run:
        raise CannotDo(self.reason)

    def prefill(self, work: PromptWork) -> Run:
        raise CannotDo(self.reason)

    def decode(self, work: PromptWork) -> Run:
        raise CannotDo(self.reason)

    def generate(self, work: PromptWork) -> Run:
        raise CannotDo(self.reason)

    def rank(self, work: RankingWork) -> Run:
        raise CannotDo(self.reason)

    def evaluate(self, work: EvaluationWork) -> Run:
        raise CannotDo(self.reason)
