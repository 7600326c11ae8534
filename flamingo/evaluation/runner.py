"""Runs benchmarks: every benchmark x shot count x condition, each prediction once, restartable."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flamingo.choices import Condition
from flamingo.data.sequence import tokenize
from flamingo.evaluation.answering import answer_episodes
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.metrics.scores import item_score
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, perturb
from flamingo.evaluation.predictions import Prediction, PredictionFile, prediction_key
from flamingo.evaluation.prompts import Episode, Template, prompt, prompt_hash, prompt_text
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.evaluation_config import EvaluationConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.types import ImageRef, InterleavedSequence, Media, MediaLoader, Text

UNLIMITED = 10**9
SORTED_AT_ONCE = 256
"""Episodes whose prompts are sorted by length together."""
LATENTS_KEPT = 4096
"""Media whose latents are kept in memory (a few hundred MB) before all are forgotten."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What :func:`run_benchmarks` needs of a run once something is left to predict."""

    model: FlamingoForConditionalGeneration
    load_media: MediaLoader
    dtype: torch.dtype


Loader = Callable[[Sequence[ImageRef]], Loaded]
"""Loads the model and a media loader for the given images; called at most once."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A shot count that was not run, and why."""

    benchmark: str
    shots: int
    reason: str


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


@dataclass
class Outcome:
    """Every cell's predictions, in the order of its episodes, and how long the new ones took."""

    cells: list[tuple[Cell, list[Prediction]]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    new: int = 0
    seconds: float = 0.0


def run_benchmarks(
    benchmarks: Sequence[Benchmark],
    config: EvaluationConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    model_id: str,
    precision: str,
    load: Loader,
) -> Outcome:
    """Predict what ``folder`` (``predictions/`` of a run) lacks, and return all of it.

    ``model_id`` identifies the weights and ``precision`` their compute; with prompt and images
    they key a prediction, so a restart repeats nothing that still holds. ``load`` is called when
    at least one prediction is missing. Shows a progress bar with queries a second and time left.
    """
    outcome = Outcome()
    cells = []
    for benchmark in benchmarks:
        for shots in benchmark.shots:
            reason = benchmark.unfit(shots)
            seeds = benchmark.seeds if shots else benchmark.seeds[:1]  # nothing to draw at 0 shots
            draws = {seed: benchmark.episodes(shots, seed) for seed in seeds if reason is None}
            drawn = [episode for episodes in draws.values() for episode in episodes]
            reason = reason or too_long(benchmark, drawn, tokenizer, config)
            if reason is not None:
                outcome.left_out.append(LeftOut(benchmark.name, shots, reason))
                continue
            for seed, episodes in draws.items():
                cells += _cells(benchmark, shots, seed, episodes, config, model_id, precision)
    files = {
        (cell.benchmark.name, cell.condition): PredictionFile(
            folder / cell.benchmark.name / f"{cell.condition.value}.jsonl"
        )
        for cell in cells
    }
    started = time.monotonic()
    outcome.new = _predict(cells, files, config, tokenizer, model_id, load)
    outcome.seconds = time.monotonic() - started
    for cell in cells:
        by_key = files[cell.benchmark.name, cell.condition].by_key
        outcome.cells.append((cell, [by_key[key] for key in cell.keys]))
    return outcome


def too_long(
    benchmark: Benchmark,
    episodes: Sequence[Episode],
    tokenizer: PreTrainedTokenizerBase,
    config: EvaluationConfig,
) -> str | None:
    """Why the prompts do not fit into ``evaluation.max_tokens``, or None if they all do."""
    bare = len(tokenize(InterleavedSequence(()), tokenizer, UNLIMITED).input_ids)

    @cache
    def length(segment: Text) -> int:
        alone = tokenize(InterleavedSequence((segment,)), tokenizer, UNLIMITED)
        return len(alone.input_ids) - bare

    def total(episode: Episode, template: Template) -> int:
        segments = prompt(episode, template).segments
        return bare + sum(1 if isinstance(s, Media) else length(s) for s in segments)

    templates = (benchmark.task.template, *benchmark.task.ensemble.templates)
    tokens = max(total(episode, template) for episode in episodes for template in templates)
    tokens = tokens + benchmark.task.decoding.max_new_tokens
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


Files = dict[tuple[str, Condition], PredictionFile]


def _predict(
    cells: Sequence[Cell],
    files: Files,
    config: EvaluationConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_id: str,
    load: Loader,
) -> int:
    """Append every missing prediction to its file; returns how many there were."""
    missing = _missing(cells, files)
    total = sum(map(len, missing))
    if total == 0:
        return 0
    shown = [c.episodes[i] for c, own in zip(cells, missing, strict=True) for i in own]
    loaded = load(images(shown))
    latents = MediaLatents(loaded.model, loaded.load_media)
    reader = Reader(loaded.model.eval(), tokenizer, latents, loaded.dtype)
    with tqdm(total=total, desc="evaluation", unit="query") as bar:
        for cell, own in zip(cells, missing, strict=True):
            name = f"{cell.benchmark.name}, {cell.shots} shots, {cell.condition.value}"
            bar.set_postfix_str(name, refresh=False)
            for index, answer in _answers(reader, cell, own, config):
                _file(files, cell).append([_prediction(cell, index, answer, model_id)])
                bar.update()
    return total


def _missing(cells: Sequence[Cell], files: Files) -> list[list[int]]:
    """The places of each cell's episodes without a prediction; equal prompts only once."""
    planned: set[tuple[str, Condition, str]] = set()
    missing = []
    for cell in cells:
        known, own = _file(files, cell).by_key, []
        for place, key in enumerate(cell.keys):
            named = (cell.benchmark.name, cell.condition, key)
            if key not in known and named not in planned:
                planned.add(named)
                own.append(place)
        missing.append(own)
    return missing


def _answers(
    reader: Reader, cell: Cell, missing: Sequence[int], config: EvaluationConfig
) -> Iterator[tuple[int, Answer]]:
    """Answers to the ``missing`` episodes of a cell, with the index of their episode."""
    for start in range(0, len(missing), SORTED_AT_ONCE):
        part = missing[start : start + SORTED_AT_ONCE]
        episodes = [cell.episodes[i] for i in part]
        if len(reader.latents) > LATENTS_KEPT:
            reader.latents.forget()
        answers = answer_episodes(
            reader,
            cell.benchmark,
            episodes,
            batch_size=config.batch_size,
            max_tokens=config.max_tokens,
        )
        for place, answer in answers:
            yield part[place], answer


def _prediction(cell: Cell, index: int, answer: Answer, model_id: str) -> Prediction:
    episode, task = cell.episodes[index], cell.benchmark.task
    text = answer.text if episode.candidates else task.clean(answer.text)
    sequence = prompt(episode, task.template)
    return Prediction(
        key=cell.keys[index],
        model=model_id,
        query=episode.query.id,
        shots=cell.shots,
        demonstrations=[item.id for item in episode.demonstrations],
        prompt_hash=prompt_hash(sequence, episode.candidates),
        prompt=prompt_text(sequence),
        candidates=list(episode.candidates),
        raw=answer.raw,
        answer=text,
        target=episode.query.answer,
        probability=round(answer.probability, 6),
        score=item_score(task.metric, text, episode.references) if episode.references else None,
        group=episode.group,
        cluster=episode.cluster,
        references=list(episode.references),
    )


def _file(files: Files, cell: Cell) -> PredictionFile:
    return files[cell.benchmark.name, cell.condition]


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
