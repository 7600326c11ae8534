"""How answers are read from the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Greedy or beam search for open answers; for candidates whether length counts."""

    max_new_tokens: int = 5
    beams: int = 1
    length_penalty: float = 0.0
    normalize_by_length: bool = False

    def __str__(self) -> str:
        return f"greedy, at most {self.max_new_tokens} tokens"
