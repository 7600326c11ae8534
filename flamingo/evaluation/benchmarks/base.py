"""What a benchmark is to the runner: a name, its episodes, and what a guess is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flamingo.evaluation.prompts import Episode, Template


@runtime_checkable
class Benchmark(Protocol):
    """Queries in context; everything is a pure function of the benchmark's own settings.

    ``name`` is that of its folder of predictions, ``title`` is for readers, ``unit`` says what a
    shot is. ``chance`` is the accuracy of a uniform guess among all answers, ``shots`` are the shot
    counts to run.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def template(self) -> Template: ...
    @property
    def seed(self) -> int: ...
    @property
    def chance(self) -> float: ...
    @property
    def shots(self) -> Sequence[int]: ...

    def unfit(self, shots: int) -> str | None:
        """Why ``shots`` do not fit, or None if they do."""
        ...

    def episodes(self, shots: int) -> Sequence[Episode]:
        """One episode a query, always in the same order."""
        ...

    def prior(self) -> Mapping[str, str] | None:
        """The best answer to each question without its image; None if questions tell nothing."""
        ...
