"""Toy benchmarks of every metric, and outcomes whose answers are drawn: no model has to run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from flamingo.choices import Condition, Metric, Protocol
from flamingo.evaluation.benchmarks import Benchmark, DatasetBenchmark
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.metrics.scores import item_score
from flamingo.evaluation.perturbations import ZERO_SHOT_TEXTS, perturb
from flamingo.evaluation.planner import Planner
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.prompts import Episode
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.tasks import Kind, task
from flamingo.evaluation_config import DemonstrationsConfig
from flamingo.testing import synthetic_images

Answerer = Callable[[Condition, Episode, random.Random], tuple[str, float]]
"""An answer to an episode and its probability."""


def vqa(seeds: Sequence[int] = (0,), shots: Sequence[int] = (0, 2, 4)) -> DatasetBenchmark:
    """Two questions on each of 12 images; ten annotators agree by eight."""
    return _benchmark("toy_vqa", "Toy VQA", Kind.vqa, None, _questions, seeds, shots)


def captions(seeds: Sequence[int] = (0,), shots: Sequence[int] = (0, 2, 4)) -> DatasetBenchmark:
    """Two references an image."""
    return _benchmark("toy_captions", "Toy captions", Kind.caption, None, _captions, seeds, shots)


def yes_no(
    seeds: Sequence[int] = (0,),
    shots: Sequence[int] = (0, 2, 4),
    metric: Metric | None = Metric.exact_match,
) -> DatasetBenchmark:
    """Is there a circle? By candidates; without ``metric`` its ROC-AUC."""
    name = "toy_yes_no" if metric else "toy_memes"
    return _benchmark(name, "Toy yes or no", Kind.hateful_memes, metric, _circles, seeds, shots)


def _benchmark(
    name: str,
    title: str,
    kind: Kind,
    metric: Metric | None,
    examples: Callable[[int, int], list[Example]],
    seeds: Sequence[int],
    shots: Sequence[int],
) -> DatasetBenchmark:
    return DatasetBenchmark(
        name=name,
        title=title,
        task=task(kind, Protocol.native, metric),
        test=examples(0, 12),
        train=examples(12, 36),
        planner=Planner(DemonstrationsConfig()),
        queries=0,
        pool=0,
        seed=0,
        seeds=list(seeds),
        shots=list(shots),
    )


def _images(start: int, stop: int):
    for image in synthetic_images(stop)[start:]:
        colour, shape = image.key.split("/")[1].split("-")
        yield image, colour, shape


def _questions(start: int, stop: int) -> list[Example]:
    return [
        Example(
            id=f"{image.key}/{what}",
            images=(image,),
            question=f"What {what} is it?",
            answers=(answer,) * 8 + ("thing", "blob"),
            group=what,
            cluster=image.key,
        )
        for image, colour, shape in _images(start, stop)
        for what, answer in (("colour", colour), ("shape", shape))
    ]


def _captions(start: int, stop: int) -> list[Example]:
    return [
        Example(
            id=image.key,
            images=(image,),
            question="",
            answers=(f"a {colour} {shape} on a grey ground", f"there is one {shape} in {colour}"),
            cluster=image.key,
        )
        for image, colour, shape in _images(start, stop)
    ]


def _circles(start: int, stop: int) -> list[Example]:
    return [
        Example(
            id=image.key,
            images=(image,),
            question=f"{colour} thing",
            answers=("yes" if shape == "circle" else "no",),
            candidates=("no", "yes"),
            cluster=image.key,
        )
        for image, colour, shape in _images(start, stop)
    ]


def noisy(condition: Condition, episode: Episode, draw: random.Random) -> tuple[str, float]:
    """Right in most cases with an image, else the last demonstration's answer."""
    target = episode.references[0]
    if condition is not Condition.blank_query and draw.random() < 0.75:
        return target, 0.6 + 0.4 * draw.random()
    if episode.demonstrations:
        return episode.demonstrations[-1].answer, 0.3 + 0.4 * draw.random()
    return episode.candidates[0] if episode.candidates else "a thing", 0.5


def outcome(
    benchmarks: Sequence[Benchmark],
    conditions: Sequence[Condition],
    answerer: Answerer = noisy,
    control_queries: int | None = None,
) -> Outcome:
    """What a run would give, with answers by ``answerer``."""
    found = Outcome(new=1, seconds=1.0)
    for benchmark in benchmarks:
        for shots in benchmark.shots:
            for seed in benchmark.seeds if shots else benchmark.seeds[:1]:
                for condition in conditions:
                    limit = None if condition is Condition.real else control_queries
                    cell = _cell(benchmark, shots, seed, condition, limit)
                    if cell is not None:
                        found.cells.append((cell, _predictions(cell, answerer)))
    return found


def _cell(
    benchmark: Benchmark, shots: int, seed: int, condition: Condition, limit: int | None
) -> Cell | None:
    texts = condition is Condition.text_only_zero_shot
    if texts and shots:
        return None
    own = benchmark.episodes(ZERO_SHOT_TEXTS if texts else shots, seed)[:limit]
    seen = [perturb(e, condition, 0, benchmark.name, benchmark.borrowed) for e in own]
    episodes = [episode for episode in seen if episode is not None]
    if len(episodes) < len(own):
        return None
    contents, keys = [""] * len(episodes), [e.query.id for e in episodes]
    return Cell(benchmark, shots, seed, condition, episodes, contents, keys)


def _predictions(cell: Cell, answerer: Answerer) -> list[Prediction]:
    predictions = []
    for episode in cell.episodes:
        where = (
            f"{cell.benchmark.name} {cell.shots} {cell.seed} {cell.condition} {episode.query.id}"
        )
        answer, probability = answerer(cell.condition, episode, random.Random(where))
        predictions.append(
            Prediction(
                key=episode.query.id,
                model="m",
                query=episode.query.id,
                shots=cell.shots,
                demonstrations=[item.id for item in episode.demonstrations],
                prompt_hash="",
                prompt="",
                candidates=list(episode.candidates),
                raw=answer,
                answer=answer,
                target=episode.query.answer,
                probability=probability,
                score=item_score(cell.benchmark.task.metric, answer, episode.references),
                group=episode.group,
                cluster=episode.cluster,
                references=list(episode.references),
            )
        )
    return predictions
