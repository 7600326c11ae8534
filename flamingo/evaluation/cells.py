"""Cells: what there is to predict, each with the keys of its predictions."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flamingo.choices import Condition
from flamingo.data.sequence import tokenize
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.benchmarks.files import content_digest
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, perturb
from flamingo.evaluation.predictions import prediction_key
from flamingo.evaluation.prompts import Episode, Template, prompt, prompt_hash
from flamingo.evaluation_config import EvaluationConfig
from flamingo.types import ImageRef, InterleavedSequence, Media, Text

UNLIMITED = 10**9
PATIENCE = 2.0
"""Seconds until a progress bar is shown."""


@dataclass(frozen=True)
class Cell:
    """One benchmark at one shot count with one draw of demonstrations under one condition.

    ``seed`` drew the demonstrations. ``episodes`` are as the model sees them, ``contents`` digests
    of what their images show (:class:`Contents`); ``keys`` identify their predictions.
    """

    benchmark: Benchmark
    shots: int
    seed: int
    condition: Condition
    episodes: Sequence[Episode]
    contents: Sequence[str]
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A shot count that was not run (or one condition of it), and why."""

    benchmark: str
    shots: int
    reason: str
    condition: Condition = Condition.real


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


class Contents:
    """What images show, each different one read once."""

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def read(self, episodes: Sequence[Episode]) -> None:
        """Read those that are new in ``episodes``, with a progress bar where it takes long."""
        new = [image for image in images(episodes) if image.key not in self._digests]
        for image in tqdm(new, desc="reading images", unit="image", delay=PATIENCE):
            self._digests[image.key] = content_digest(image)

    def __call__(self, episodes: Sequence[Episode]) -> str:
        """16 hex digits of the images of ``episodes``, in their order; "" if all of them are drawn
        when they are opened, as those are that a condition changes."""
        found = [self._digests[i.key] for i in images(episodes) if self._digests[i.key]]
        return hashlib.sha256("".join(found).encode()).hexdigest()[:16] if found else ""


@dataclass(frozen=True, slots=True)
class _Draw:
    """One draw of demonstrations as they are, and as the model sees them under a condition."""

    seed: int
    real: Sequence[Episode]
    seen: Sequence[Episode]


def plan_cells(
    benchmarks: Sequence[Benchmark],
    config: EvaluationConfig,
    lengths: PromptLengths,
    *,
    model_id: str,
    precision: str,
) -> tuple[list[Cell], list[LeftOut]]:
    """Every benchmark x shot count x condition x draw, and what of it does not fit.

    ``model_id`` identifies the weights and ``precision`` their compute; with the prompt and the
    contents of its images they key a prediction. The cells of a benchmark stand together.
    """
    cells: list[Cell] = []
    left_out = []
    contents = Contents()
    conditions = sorted(config.conditions, key=lambda condition: condition is not Condition.real)
    for benchmark in benchmarks:
        episodes = functools.cache(benchmark.episodes)  # conditions change the same ones
        for shots in benchmark.shots:
            if (reason := benchmark.unfit(shots)) is not None:
                left_out.append(LeftOut(benchmark.name, shots, reason))
                continue
            for condition in conditions:
                draws = _draws(benchmark, shots, condition, config, episodes)
                if (reason := too_long(benchmark, draws, lengths, config)) is not None:
                    left_out.append(LeftOut(benchmark.name, shots, reason, condition))
                    if condition is Condition.real:
                        break  # the others would have nothing to be compared with
                    continue
                for draw in draws:
                    contents.read([*draw.real, *draw.seen])
                    shown = [contents([episode]) for episode in draw.seen]
                    keys = _keys(benchmark, shots, draw, contents, model_id, precision)
                    cells.append(
                        Cell(benchmark, shots, draw.seed, condition, draw.seen, shown, keys)
                    )
    return cells, left_out


def too_long(
    benchmark: Benchmark,
    draws: Sequence[_Draw],
    lengths: PromptLengths,
    config: EvaluationConfig,
) -> str | None:
    """Why the prompts do not fit into ``evaluation.max_tokens``, or None if they all do."""
    tokens = longest(benchmark, [episode for draw in draws for episode in draw.seen], lengths)
    if tokens > config.max_tokens:
        return (
            f"its prompts and answers have up to {tokens} tokens, "
            f"evaluation.max_tokens is {config.max_tokens}"
        )
    return None


def longest(benchmark: Benchmark, episodes: Sequence[Episode], lengths: PromptLengths) -> int:
    """Tokens of the longest prompt of ``episodes`` and its answer; 0 without episodes."""
    task = benchmark.task
    templates = (task.template, *task.ensemble.templates)
    prompts = (lengths(episode, template) for episode in episodes for template in templates)
    return max((tokens + task.decoding.max_new_tokens for tokens in prompts), default=0)


def _draws(
    benchmark: Benchmark,
    shots: int,
    condition: Condition,
    config: EvaluationConfig,
    episodes: Callable[[int, int], Sequence[Episode]],
) -> list[_Draw]:
    """The benchmark's ``episodes`` under a condition; none where it makes no sense at this shot
    count."""
    shown, seeds = shots, benchmark.seeds if shots else benchmark.seeds[:1]  # nothing to draw at 0
    if condition is Condition.text_only_zero_shot:
        if shots or benchmark.unfit(ZERO_SHOT_TEXTS) is not None:
            return []
        shown, seeds = ZERO_SHOT_TEXTS, benchmark.seeds
    draws = []
    for seed in seeds:
        real = episodes(shown, seed)
        if condition is not Condition.real and config.control_queries:
            real = real[: config.control_queries]
        name, borrowed = benchmark.name, benchmark.borrowed
        perturbed = [perturb(e, condition, benchmark.seed, name, borrowed) for e in real]
        seen = [episode for episode in perturbed if episode is not None]
        if len(seen) == len(real):
            draws.append(_Draw(seed, real, seen))
    return draws


def _keys(
    benchmark: Benchmark,
    shots: int,
    draw: _Draw,
    contents: Contents,
    model_id: str,
    precision: str,
) -> list[str]:
    """Of each prediction. An image that is changed counts with what it is made from."""
    task = benchmark.task
    compute = f"{task.description}, {precision}"
    if task.ensemble.permutations > 1:
        compute += f", orders by seed {benchmark.seed}"
    return [
        prediction_key(
            model_id,
            seen.query.id,
            shots,
            prompt_hash(prompt(seen, task.template), seen.candidates),
            seen.query.answer,
            compute,
            contents([real, seen]),
        )
        for real, seen in zip(draw.real, draw.seen, strict=True)
    ]


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
