"""What a benchmark is to the runner: a name, its episodes, and what a guess is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from flamingo.evaluation.perturbations import Borrowed
from flamingo.evaluation.plans import Plan
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.prompts import Episode, Item
from flamingo.evaluation.tasks import Task

Submission = Callable[[Path, Sequence[Prediction]], Path]
"""Writes predictions as a benchmark's server wants them, to the path with the suffix of the format,
which it returns."""


@runtime_checkable
class Benchmark(Protocol):
    """Queries in context; everything is a pure function of the benchmark's own settings.

    ``name`` is that of its folder of predictions, ``title`` is for readers, ``unit`` says what a
    shot is. ``chance`` is the score of a uniform guess among all answers, None where answers are
    open. ``shots`` are the shot counts to run, each with the demonstrations of every one of
    ``seeds``. ``borrowed`` is what perturbations may take from outside an episode. ``pool`` are the
    items that demonstrations come from, which text-only baselines look questions up in; empty where
    there is none. ``submission`` writes the file that a server scores, None for benchmarks without
    a server.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def task(self) -> Task: ...
    @property
    def seed(self) -> int: ...
    @property
    def chance(self) -> float | None: ...
    @property
    def shots(self) -> Sequence[int]: ...
    @property
    def seeds(self) -> Sequence[int]: ...
    @property
    def borrowed(self) -> Borrowed: ...
    @property
    def pool(self) -> Sequence[Item]: ...
    @property
    def submission(self) -> Submission | None: ...

    def unfit(self, shots: int) -> str | None:
        """Why ``shots`` do not fit, or None if they do."""
        ...

    def episodes(self, shots: int, seed: int) -> Sequence[Episode]:
        """One episode a query, always in the same order; ``seed`` draws the demonstrations."""
        ...

    def plans(self, seed: int) -> Sequence[Plan]:
        """The demonstrations of each query, in the order of the episodes."""
        ...
