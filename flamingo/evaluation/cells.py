"""Cells: what there is to predict, each with the keys of its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from flamingo.choices import Condition
from flamingo.data.sequence import tokenize
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, perturb
from flamingo.evaluation.predictions import prediction_key
from flamingo.evaluation.prompts import Episode, Template, prompt, prompt_hash
from flamingo.evaluation_config import EvaluationConfig
from flamingo.types import ImageRef, InterleavedSequence, Media, Text

UNLIMITED = 10**9


@dataclass(frozen=True)
class Cell:
    """One benchmark at one shot count with one draw of demonstrations under one condition.

    ``seed`` drew the demonstrations. ``episodes`` are as the model sees them; ``keys`` identify
    their predictions.
    """

    benchmark: Benchmark
    shots: int
    seed: int
    condition: Condition
    episodes: Sequence[Episode]
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A shot count that was not run, and why."""

    benchmark: str
    shots: int
    reason: str


class PromptLengths:
    """Tokens of prompts, each different text tokenised once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._bare = self._tokens(())
        self._texts: dict[Text, int] = {}

    def __call__(self, episode: Episode, template: Template) -> int:
        """Tokens of the prompt of ``episode``, an image counting as one."""
        segments = prompt(episode, template).segments
        return self._bare + sum(1 if isinstance(s, Media) else self._text(s) for s in segments)

    def _text(self, text: Text) -> int:
        if text not in self._texts:
            self._texts[text] = self._tokens((text,)) - self._bare
        return self._texts[text]

    def _tokens(self, segments: tuple[Text, ...]) -> int:
        alone = tokenize(InterleavedSequence(segments), self._tokenizer, UNLIMITED)
        return len(alone.input_ids)


def plan_cells(
    benchmarks: Sequence[Benchmark],
    config: EvaluationConfig,
    lengths: PromptLengths,
    *,
    model_id: str,
    precision: str,
) -> tuple[list[Cell], list[LeftOut]]:
    """Every benchmark x shot count x draw x condition, and the shot counts that do not fit.

    ``model_id`` identifies the weights and ``precision`` their compute; with prompt and images
    they key a prediction. The cells of a benchmark stand together.
    """
    cells: list[Cell] = []
    left_out = []
    for benchmark in benchmarks:
        for shots in benchmark.shots:
            reason = benchmark.unfit(shots)
            seeds = benchmark.seeds if shots else benchmark.seeds[:1]  # nothing to draw at 0 shots
            draws = {seed: benchmark.episodes(shots, seed) for seed in seeds if reason is None}
            drawn = [episode for episodes in draws.values() for episode in episodes]
            reason = reason or too_long(benchmark, drawn, lengths, config)
            if reason is not None:
                left_out.append(LeftOut(benchmark.name, shots, reason))
                continue
            for seed, episodes in draws.items():
                cells += _cells(benchmark, shots, seed, episodes, config, model_id, precision)
    return cells, left_out


def too_long(
    benchmark: Benchmark,
    episodes: Sequence[Episode],
    lengths: PromptLengths,
    config: EvaluationConfig,
) -> str | None:
    """Why the prompts do not fit into ``evaluation.max_tokens``, or None if they all do."""
    task = benchmark.task
    templates = (task.template, *task.ensemble.templates)
    longest = max(lengths(episode, template) for episode in episodes for template in templates)
    tokens = longest + task.decoding.max_new_tokens
    if tokens > config.max_tokens:
        return (
            f"its prompts and answers have up to {tokens} tokens, "
            f"evaluation.max_tokens is {config.max_tokens}"
        )
    return None


def _cells(
    benchmark: Benchmark,
    shots: int,
    seed: int,
    episodes: Sequence[Episode],
    config: EvaluationConfig,
    model_id: str,
    precision: str,
) -> Iterator[Cell]:
    """The conditions that make sense at this shot count."""
    decoding = f"{benchmark.task.description}, {precision}"
    for condition in config.conditions:
        own = episodes
        if condition is Condition.text_only_zero_shot:
            if shots or benchmark.unfit(ZERO_SHOT_TEXTS) is not None:
                continue
            own = benchmark.episodes(ZERO_SHOT_TEXTS, seed)
        if condition is not Condition.real and config.control_queries:
            own = own[: config.control_queries]
        name, borrowed = benchmark.name, benchmark.borrowed
        perturbed = [perturb(e, condition, benchmark.seed, name, borrowed) for e in own]
        seen = [episode for episode in perturbed if episode is not None]
        if len(seen) < len(own):
            continue
        keys = [
            prediction_key(
                model_id,
                episode.query.id,
                shots,
                prompt_hash(prompt(episode, benchmark.task.template), episode.candidates),
                episode.query.answer,
                decoding,
            )
            for episode in seen
        ]
        yield Cell(benchmark, shots, seed, condition, seen, keys)


def images(episodes: Sequence[Episode]) -> list[ImageRef]:
    """Every image of ``episodes`` once."""
    frames = {
        frame.key: frame
        for episode in episodes
        for item in (*episode.demonstrations, episode.query)
        if item.media is not None
        for frame in item.media.frames
    }
    return list(frames.values())
