"""A whole few-shot evaluation: questions about images, each demonstrated by others of a pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flamingo.choices import Metric, Protocol
from flamingo.data.sequence import tokenize
from flamingo.evaluation.benchmarks.dataset import DatasetBenchmark
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.planner import Planner
from flamingo.evaluation.prompts import prompt
from flamingo.evaluation.tasks import Kind, task
from flamingo.evaluation_config import DemonstrationsConfig
from flamingo.types import ImageRef, Media

ANSWERS = ("circle", "square", "triangle", "image", "shape", "colour")
LONGEST = 4096
"""Tokens of a prompt, more than any here has."""


def _never_opened() -> None:
    raise AssertionError("features are given: no image is opened")


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts padded on the left, as peers take them."""

    input_ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    features: Float[Tensor, "row image 1 patch dim"]


@dataclass(frozen=True, eq=False)
class EvaluationWork:
    """``queries`` questions of ``shots`` demonstrations each, by our evaluation's own planning.

    Peers answer the first ``peer_queries`` of them: each costs them as much as any other, while
    ours resamples every image once, and so must be given all.
    """

    tokenizer: PreTrainedTokenizerBase
    features: Float[Tensor, "image 1 patch dim"]
    """Of the pool's images and, behind them, of the queries'."""
    pool: int
    queries: int
    peer_queries: int
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    batch_size: int
    new_tokens: int
    beams: int
    demonstrations: DemonstrationsConfig

    def load(self, media: Sequence[Media]) -> Float[Tensor, "image 1 patch dim"]:
        """Features of ``media``; a :data:`flamingo.types.MediaLoader`."""
        return self.features[[int(medium.frames[0].key.split("/")[-1]) for medium in media]]

    def benchmark(self) -> DatasetBenchmark:
        """As the evaluation runs it."""
        examples = [_example(index) for index in range(self.pool + self.queries)]
        own = task(Kind.vqa, Protocol.native, Metric.exact_match)
        decoding = replace(own.decoding, max_new_tokens=self.new_tokens, beams=self.beams)
        return DatasetBenchmark(
            name="speed",
            title="Speed",
            task=replace(own, decoding=decoding),
            test=examples[self.pool :],
            train=examples[: self.pool],
            planner=Planner(self.demonstrations),
            queries=0,
            pool=0,
            seed=0,
            seeds=list(self.seeds),
            shots=list(self.shots),
        )

    def batches(self) -> Iterator[PromptBatch]:
        """The peers' part, with the same ids as ours."""
        benchmark = self.benchmark()
        episodes = benchmark.episodes(self.shots[0], self.seeds[0])[: self.peer_queries]
        sequences = [
            tokenize(prompt(episode, benchmark.task.template), self.tokenizer, LONGEST)
            for episode in episodes
        ]
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        for start in range(0, len(sequences), self.batch_size):
            part = sequences[start : start + self.batch_size]
            width = max(len(sequence.input_ids) for sequence in part)
            ids = torch.full((len(part), width), pad)
            mask = torch.zeros_like(ids)
            for row, sequence in enumerate(part):
                ids[row, width - len(sequence.input_ids) :] = torch.tensor(sequence.input_ids)
                mask[row, width - len(sequence.input_ids) :] = 1
            features = torch.stack([self.load(sequence.media) for sequence in part])
            device = self.features.device
            yield PromptBatch(ids.to(device), mask.to(device), features)


def _example(index: int) -> Example:
    image = ImageRef(key=f"speed/{index}", open=_never_opened)  # type: ignore[arg-type]
    return Example(str(index), (image,), "what is this?", (ANSWERS[index % len(ANSWERS)],))
