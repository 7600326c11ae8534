"""How answers are drawn from the model's distribution: one value, described in one line."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """The search for an open answer, and the score of a candidate answer.

    OpenFlamingo's protocol is three beams without a length penalty for open answers, and for
    classes ``normalize_by_length=True, end_of_chunk=False``. The default is greedy, and ranks by
    the likelihood of whole words. Raises ``ValueError`` for values that make no sense together.
    """

    max_new_tokens: int = 5
    """Of an open answer, its end of chunk included."""
    beams: int = 1
    """1 is greedy."""
    length_penalty: float = 0.0
    """Exponent of the length by which a beam's score is divided, as in transformers' generate: 0
    compares whole likelihoods, 1 means per token. Only with several beams."""
    normalize_by_length: bool = False
    """Candidates are ranked by the mean, not the sum, of their tokens' log-likelihoods."""
    end_of_chunk: bool = True
    """Count the end of chunk for candidates where one is the beginning of another: without it they
    would be overlapping events. False never counts it."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"decoding.{name}: expected at least 1, got {getattr(self, name)}")
        if not math.isfinite(self.length_penalty):
            raise ValueError(
                f"decoding.length_penalty: expected a finite number, got {self.length_penalty}"
            )
        if self.beams == 1 and self.length_penalty != 0:
            raise ValueError(
                "decoding.length_penalty: expected 0 without beam search (beams=1), "
                f"got {self.length_penalty}"
            )

    @property
    def description(self) -> str:
        """One line that differs between any two decodings; it enters the keys of predictions.

        A setting at its default is left out, so that a new one leaves old keys as they are.
        """
        search = "greedy"
        if self.beams > 1:
            penalty = float(self.length_penalty) + 0.0  # one spelling of 0, -0.0 and 0.0
            search = f"{self.beams} beams, length penalty {penalty!r}"
        parts = [search, f"at most {self.max_new_tokens} tokens"]
        if self.normalize_by_length:
            parts.append("candidates by mean")
        if not self.end_of_chunk:
            parts.append("candidates without end of chunk")
        return ", ".join(parts)
