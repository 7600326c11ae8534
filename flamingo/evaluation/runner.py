"""Runs benchmarks: predicts what is missing, each prediction once, restartable, on any number of
processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flamingo.backbones.language import learned_positions
from flamingo.choices import Condition
from flamingo.evaluation.answering import answer_episodes
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.cells import (
    Cell,
    LeftOut,
    PromptLengths,
    images,
    longest,
    plan_cells,
)
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.metrics.scores import item_score
from flamingo.evaluation.predictions import Prediction, PredictionFile
from flamingo.evaluation.processes import ALONE, Processes
from flamingo.evaluation.prompts import prompt, prompt_hash, prompt_text
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.evaluation.work import Places, in_order, missing_places, share_out
from flamingo.evaluation_config import EvaluationConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.structured import require
from flamingo.types import ImageRef, MediaLoader

COUNTED_EVERY = 0.5
"""Seconds between two looks at what all processes have predicted."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What :func:`run_benchmarks` needs of a run once something is left to predict."""

    model: FlamingoForConditionalGeneration
    load_media: MediaLoader
    dtype: torch.dtype


Loader = Callable[[Sequence[ImageRef]], Loaded]
"""Loads the model and a media loader for the given images; called at most once."""


@dataclass
class Outcome:
    """Every cell's predictions, in the order of its episodes, and how long the new ones took.

    ``new`` counts those of all processes.
    """

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
    processes: Processes = ALONE,
) -> Outcome:
    """Predict what ``folder`` (``predictions/`` of a run) lacks, and return all of it.

    ``model_id`` identifies the weights and ``precision`` their compute; with prompt and images
    they key a prediction, so a restart repeats nothing that still holds. When at least one is
    missing, each of ``processes`` calls ``load`` (the main one with every image, the others with
    those of their share), predicts its share, and returns the same outcome. The main one shows a
    progress bar with the queries of all a second and the time left.
    """
    lengths = PromptLengths(tokenizer)
    cells, left_out = plan_cells(
        benchmarks, config, lengths, model_id=model_id, precision=precision
    )
    files = {
        (cell.benchmark.name, cell.condition): PredictionFile(
            folder / cell.benchmark.name / f"{cell.condition.value}.jsonl"
        )
        for cell in cells
    }
    missing = missing_places(cells, lambda cell: _file(files, cell).by_key)
    outcome = Outcome(left_out=left_out, new=sum(map(len, missing)))
    started = time.monotonic()
    if outcome.new:
        processes.wait()  # all have seen the same logs; nothing is appended before
        own = share_out(cells, missing, lengths, processes.count)[processes.index]
        loaded = load(_images(cells, missing if processes.main else own))
        _check_positions(loaded.model, cells, lengths, config)
        _predict(cells, own, files, config, tokenizer, model_id, loaded, outcome.new, processes)
    outcome.seconds = time.monotonic() - started
    for cell in cells:
        file = _file(files, cell)
        kept = [file.by_key[key] for key in cell.keys]
        told = [_judged(cell, index, own) for index, own in enumerate(kept)]
        changed = [new for old, new in zip(kept, told, strict=True) if new != old]
        if changed and processes.main:
            file.append(changed)
        outcome.cells.append((cell, told))
    return outcome


Files = dict[tuple[str, Condition], PredictionFile]


def _file(files: Files, cell: Cell) -> PredictionFile:
    return files[cell.benchmark.name, cell.condition]


def _images(cells: Sequence[Cell], places: Places) -> list[ImageRef]:
    return images([c.episodes[i] for c, own in zip(cells, places, strict=True) for i in own])


def _check_positions(
    model: FlamingoForConditionalGeneration,
    cells: Sequence[Cell],
    lengths: PromptLengths,
    config: EvaluationConfig,
) -> None:
    """Raise ``ValueError`` for prompts beyond the positions that the language model has learned."""
    positions = learned_positions(model.language_model)
    if positions is None:
        return
    tokens = max(longest(cell.benchmark, cell.episodes, lengths) for cell in cells)
    require(
        tokens <= positions,
        "evaluation.max_tokens",
        f"at most the {positions} positions that the language model has learned, as prompts and "
        f"answers have up to {tokens} tokens",
        config.max_tokens,
    )


def _predict(
    cells: Sequence[Cell],
    own: Places,
    files: Files,
    config: EvaluationConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_id: str,
    loaded: Loaded,
    total: int,
    processes: Processes,
) -> None:
    """Append this process's ``own`` predictions to their files; ends when all have done so."""
    latents = MediaLatents(loaded.model, loaded.load_media)
    reader = Reader(loaded.model.eval(), tokenizer, latents, loaded.dtype)
    with _Progress(files.values(), total, shown=processes.main) as progress:
        for cell, places in in_order(cells, own):
            progress.names(cell)
            for index, answer in _answers(reader, cell, places, config):
                _file(files, cell).append([_prediction(cell, index, answer, model_id)])
                progress.look()
        processes.wait()


class _Progress:
    """A bar over the predictions of all processes: what the logs have grown by.

    Leaving it, every process has read all of them.
    """

    def __init__(self, files: Collection[PredictionFile], total: int, *, shown: bool) -> None:
        self._files = files
        self._bar = tqdm(total=total, desc="evaluation", unit="query", disable=not shown)
        self._looked = time.monotonic()

    def names(self, cell: Cell) -> None:
        """Say what is being read now."""
        name = f"{cell.benchmark.name}, {cell.shots} shots, {cell.condition.value}"
        self._bar.set_postfix_str(name, refresh=False)

    def look(self) -> None:
        """Count, if that was not done just now."""
        if not self._bar.disable and time.monotonic() - self._looked >= COUNTED_EVERY:
            self._count()

    def _count(self) -> None:
        self._bar.update(sum(file.read_on() for file in self._files))
        self._looked = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._count()
        self._bar.close()


def _answers(
    reader: Reader, cell: Cell, places: Sequence[int], config: EvaluationConfig
) -> Iterator[tuple[int, Answer]]:
    """Answers to the episodes of a cell at ``places``, each with its place."""
    answers = answer_episodes(
        reader,
        cell.benchmark,
        [cell.episodes[place] for place in places],
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
    )
    for position, answer in answers:
        yield places[position], answer


def _prediction(cell: Cell, index: int, answer: Answer, model_id: str) -> Prediction:
    episode, task = cell.episodes[index], cell.benchmark.task
    text = answer.text if episode.candidates else task.clean(answer.text)
    sequence = prompt(episode, task.template)
    said = Prediction(
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
        probability=answer.probability,  # rounded, sure answers would tie in ROC-AUC
        score=None,
        group="",
        cluster="",
        question=episode.query.question,
        shown=[[item.question, item.answer] for item in episode.demonstrations],
        contents=cell.contents[index],
    )
    return _judged(cell, index, said)


def _judged(cell: Cell, index: int, said: Prediction) -> Prediction:
    """What was ``said``, with what annotations and metric of today make of it: neither is part of a
    prediction's key, as the model need not be asked again for another."""
    episode, metric = cell.episodes[index], cell.benchmark.task.metric
    references = list(episode.references)
    return replace(
        said,
        score=item_score(metric, said.answer, references) if references else None,
        group=episode.group,
        cluster=episode.cluster,
        references=references,
    )
