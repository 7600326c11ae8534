"""The generation settings of other harnesses' tasks, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flamingo.evaluation.decoding import Decoding

OPTIONS = (
    "until", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams",
    "length_penalty",
)  # fmt: skip
FOR_OTHERS = ("image_aspect_ratio",)
"""What tasks ask of other models' image processing: nothing here to apply it to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a task wants its answers: the search, or sampling above temperature 0, and its stops."""

    decoding: Decoding
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""

    @classmethod
    def of(cls, given: Mapping[str, Any], max_new_tokens: int) -> Options:
        """A task's ``generation_kwargs``; ``max_new_tokens`` holds where it names none.

        It samples if ``do_sample`` says so (without it: if there is a temperature) and the
        temperature, by default 1, is not 0. With beams a length penalty of 1 is the default, as in
        transformers. Raises ``ValueError`` for options that are not known, and for sampled beams.
        """
        unknown = sorted(set(given) - set(OPTIONS) - set(FOR_OTHERS))
        if unknown:
            raise ValueError(
                f"generation_kwargs: expected {', '.join(OPTIONS)}, got also {unknown}"
            )
        values = {name: value for name, value in given.items() if value is not None}
        beams = int(values.get("num_beams", 1))
        temperature = float(values.get("temperature", 1.0 if values.get("do_sample") else 0.0))
        sampled = bool(values.get("do_sample", temperature > 0)) and temperature > 0
        if sampled and beams > 1:
            raise ValueError(f"generation_kwargs.num_beams: expected 1 to sample, got {beams}")
        until = values.get("until", ())
        decoding = Decoding(
            max_new_tokens=int(values.get("max_new_tokens", max_new_tokens)),
            beams=beams,
            length_penalty=float(values.get("length_penalty", 1.0)) if beams > 1 else 0.0,
        )
        return cls(
            decoding=decoding,
            until=(until,) if isinstance(until, str) else tuple(filter(None, until)),
            temperature=temperature if sampled else 0.0,
            top_p=float(values.get("top_p", 1.0)) if sampled else 1.0,
            top_k=int(values.get("top_k", 0)) if sampled else 0,
        )

    @property
    def description(self) -> str:
        """One line that differs between any two options."""
        search = self.decoding.description
        if self.temperature:
            sampled = f"temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}"
            search = f"sampled at {sampled}, at most {self.decoding.max_new_tokens} tokens"
        return f"{search}, until {list(self.until)}"

    def cut(self, text: str) -> str:
        """``text``, without space around it, up to the first stop in it."""
        text = text.strip()
        places = [place for stop in self.until if (place := text.find(stop)) >= 0]
        return text[: min(places, default=len(text))].strip()
