"""What reads prompts and what comes out: a model with its tokenizer and latents, and an answer.

Open questions are answered in :mod:`~flamingo.evaluation.generation`, closed ones in
:mod:`~flamingo.evaluation.ranking`. Neither depends on the batch size: padding and the shape of a
batch change the last bits of a logit, and in bfloat16 not only the very last; where two answers are
closer than such an error (``MARGIN``), the prompt is run again alone, without padding, and that
result counts. Exact ties go to the token of lower id, and to the candidate that is listed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from flamingo.backbones.language import learned_positions
from flamingo.evaluation.latents import Key, MediaLatents
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.media import FlamingoCache
from flamingo.types import Media, TokenizedSequence

MARGIN = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Nats between two answers below which the shape of a batch could decide, by compute precision."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says, and how sure it is.

    ``raw`` is the decoded output with special tokens (for ranking the chosen candidate), ``text``
    the answer in it. ``probability``: of the generated tokens up to and including the end of
    chunk; for ranking, the softmax over the candidates' scores. ``scores``: for ranking, each
    candidate's score in nats, in the order given; empty for an open answer. ``ids``: of an answer
    generated here, its tokens without their end; ``end``: that token, none if it was cut off.
    """

    raw: str
    text: str
    probability: float
    scores: tuple[float, ...] = ()
    ids: tuple[int, ...] = ()
    end: tuple[int, ...] = ()


@dataclass
class CommonRead:
    """The demonstrations that a batch's prompts had in common, read once, for the next batch."""

    ids: Sequence[int] = ()
    media: Sequence[Key] = ()
    cache: FlamingoCache | None = None


@dataclass(frozen=True)
class Reader:
    """A model with all that reading prompts needs. ``dtype`` is the precision of its compute."""

    model: FlamingoForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    latents: MediaLatents
    dtype: torch.dtype = torch.float32
    common: CommonRead = field(default_factory=CommonRead)

    @property
    def margin(self) -> float:
        return MARGIN[self.dtype]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def check_positions(self, prompt: TokenizedSequence, new: int) -> None:
        """Raise ``ValueError`` if ``prompt`` and ``new`` tokens behind it go beyond the positions
        that the language model has learned."""
        positions, tokens = learned_positions(self.model.language_model), len(prompt.input_ids)
        if positions is not None and tokens + new > positions:
            raise ValueError(
                f"prompt: expected at most the {positions} positions that the language model has "
                f"learned, its answer of up to {new} tokens included, got {tokens + new}"
            )

    def inputs(
        self, rows: Sequence[tuple[Sequence[int], Sequence[Media]]], shared: int = 0
    ) -> dict[str, Any]:
        """Ids, mask and media of ``rows`` for the model.

        Shorter rows are padded on the left, or behind the first ``shared`` tokens, which all have
        in common and whose media are left out: they were read before.
        """
        length = max(len(ids) for ids, _ in rows)
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)  # prepare_tokenizer sees to it
        input_ids = torch.full((len(rows), length), pad)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for row, (ids, _) in enumerate(rows):
            own = torch.tensor(ids, dtype=torch.long)
            begin = length - len(ids) + shared
            input_ids[row, :shared], input_ids[row, begin:] = own[:shared], own[shared:]
            mask[row, :shared] = mask[row, begin:] = 1
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        shown = self.images_in(rows[0][0][:shared])
        return inputs | self.media([media[shown:] for _, media in rows])

    def images_in(self, ids: Sequence[int]) -> int:
        """How many media ``ids`` name."""
        return sum(token == self.model.config.image_token_id for token in ids)

    def media(self, rows: Sequence[Sequence[Media]]) -> dict[str, Any]:
        """Each row's media for the model, in the cheapest form.

        On a CPU keys and values are kept: to work them out anew for 32 shots costs as much as half
        of what the language model does. A GPU does it sooner than it would fetch them.
        """
        if not any(rows):
            return {}
        if self.device.type == "cpu":
            with self.autocast():
                return {"projected_media": self.latents.projected(rows)}
        return {"media_latents": self.latents.rows(rows).to(self.device)}
