"""How often an evaluation encodes and resamples each image, and what a kill costs.

    python experiments/benchmark_evaluation.py                              # a tiny random model
    python experiments/benchmark_evaluation.py run=runs/quickstart/seed=0   # a trained one

Queries about synthetic images, demonstrated by a pool of others. Counts what goes through encoder
and resampler, whatever the prompts show; kills an evaluation and counts what is predicted twice;
and takes the time of encoding the images of every prompt anew, as OpenFlamingo does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from flamingo.backbones.precision import available_device
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.choices import Condition, Metric, Protocol
from flamingo.command_line import entry_point
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.data.features import FeatureStore, PixelLoader
from flamingo.evaluation.benchmarks.dataset import DatasetBenchmark
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.loading import (
    compute_dtype,
    load_model,
    load_tokenizer,
)
from flamingo.evaluation.planner import Planner
from flamingo.evaluation.prompts import QUESTION, prompt
from flamingo.evaluation.runner import Loaded, run_benchmarks
from flamingo.evaluation.tasks import Kind, task
from flamingo.evaluation_config import DemonstrationsConfig, EvaluationConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.processor import prepare_tokenizer
from flamingo.runs import load_run
from flamingo.testing import (
    VOCABULARY,
    synthetic_images,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.types import ImageRef, MediaLoader

Given = TypeVar("Given")
Result = TypeVar("Result")
SAMPLE = 10
"""Prompts whose images are encoded anew, to know what it would cost for all."""


@dataclass(kw_only=True)
class BenchmarkConfig:
    """What is evaluated."""

    run: str | None = None
    """A run's directory, whose newest checkpoint answers; default: a tiny random model."""
    queries: int = 200
    images: int = 256
    """In the pool of demonstrations. Each query has an image of its own besides."""
    shots: int = 32
    fewer_shots: int = 8
    """The second shot count."""
    batch_size: int = 8


@dataclass(frozen=True)
class World:
    """A model in which to count."""

    model: FlamingoForConditionalGeneration
    encoder: VisionEncoder
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype


class Meter:
    """Counts the images that go through encoder and resampler within it, and takes the time."""

    def __init__(self, world: World) -> None:
        self.encoded = self.resampled = 0
        self.seconds = 0.0
        """Of opening, transforming, encoding and resampling; of a cache also hashing, and its file
        written and read."""
        self._modules = {"encoded": world.encoder, "resampled": world.model.resampler}
        self._hooks = ExitStack()
        self._started = 0.0

    def __enter__(self) -> Meter:
        for name, module in self._modules.items():
            for handle in (
                module.register_forward_pre_hook(self._start),
                module.register_forward_hook(partial(self._stop, name)),
            ):
                self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _start(self, module: nn.Module, arguments: Sequence[torch.Tensor]) -> None:
        self._started = now()

    def _stop(
        self, name: str, module: nn.Module, arguments: Sequence[torch.Tensor], result: object
    ) -> None:
        self.seconds += now() - self._started
        setattr(self, name, getattr(self, name) + len(arguments[0]))

    def timed(self, call: Callable[[Given], Result]) -> Callable[[Given], Result]:
        """``call``, its time taken; that of what it encodes or resamples counts once."""

        def timed(given: Given) -> Result:
            before, started = self.seconds, now()
            result = call(given)
            self.seconds = before + now() - started  # over what the hooks within have added
            return result

        return timed


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    name: str
    predictions: int
    shown: int
    """Images in the prompts."""
    encoded: int
    resampled: int
    image_seconds: float
    seconds: float | None


def main(config: BenchmarkConfig) -> None:
    """Print the table. Raises ``ValueError`` or ``OSError`` for a run that cannot be opened."""
    world = load_world(config.run)
    with tempfile.TemporaryDirectory() as folder:
        measured = lines(config, world, Path(folder))
        once, every = measured[0].image_seconds, measured[-1].image_seconds
        print(table(measured))
        print(
            f"\nThe images of {config.queries} prompts of {config.shots} shots: {once:.2f} s; "
            f"anew for every prompt {every:.2f} s, {every / once:.1f} times as long."
        )
        print(killed(config, world, Path(folder) / "killed"))


def load_world(run: str | None) -> World:
    """The model of a run's newest checkpoint, or a tiny random one."""
    device = available_device()
    if run is not None:
        config, checkpoint = load_run(run).config, load_run(run).checkpoint().path
        encoder = load_vision_encoder(config.vision).to(device)
        model = load_model(checkpoint, config, encoder, device)
        return World(model, encoder, load_tokenizer(checkpoint), compute_dtype(config, device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FlamingoForConditionalGeneration.from_backbones(
            encoder := tiny_vision_encoder(),
            tiny_language_model(),
            resampler=ResamplerConfig(depth=1, num_latents=4, heads=2, dim_head=8),
            cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=8, gate_init=1.0),
        )
    nn.Module.to(model, device)
    return World(
        model.eval(), encoder, prepare_tokenizer(tiny_tokenizer(), VOCABULARY), torch.float32
    )


def benchmark(
    config: BenchmarkConfig, shots: Sequence[int], seeds: Sequence[int] = (0,)
) -> DatasetBenchmark:
    """Questions about coloured shapes, each with an image of its own; the pool has others."""
    images = synthetic_images(config.images + config.queries)
    own = task(Kind.vqa, Protocol.native, Metric.exact_match)
    return DatasetBenchmark(
        name="shapes",
        title="Coloured shapes",
        task=replace(own, decoding=replace(own.decoding, max_new_tokens=2)),
        test=[_example(image) for image in images[config.images :]],
        train=[_example(image) for image in images[: config.images]],
        planner=Planner(DemonstrationsConfig()),
        queries=0,
        pool=0,
        seed=0,
        seeds=list(seeds),
        shots=list(shots),
    )


def _example(image: ImageRef) -> Example:
    answer = image.key.split("/")[1].replace("-", " ")
    return Example(image.key, (image,), "what is it?", (answer,))


# ---------------------------------------------------------------------------- counting


def lines(config: BenchmarkConfig, world: World, folder: Path) -> list[Line]:
    """Evaluations from pixels, each one command; then two commands that share cached features;
    last the images of every prompt of the first encoded anew.

    Two of equal content (some of the shapes are) count twice from pixels, once in a cache."""
    many, few = config.shots, config.fewer_shots
    pixels = PixelLoader(world.encoder.transform)

    def cached(shown: Sequence[ImageRef]) -> MediaLoader:
        return FeatureStore.build(shown, world.encoder, folder / "features")

    def line(name: str, shots: list[int], seeds: list[int], place: str, features: bool) -> Line:
        load = cached if features else lambda _: pixels
        return evaluated(name, config, world, folder / place, shots, seeds, load)

    return [
        line(f"{many} shots", [many], [0], "one", False),
        line(f"{few} and {many} shots", [few, many], [0], "two", False),
        line(f"{many} shots, two seeds", [many], [0, 1], "seeds", False),
        line(f"{many} shots, features cached", [many], [0], "cached", True),
        line(f"then {few} shots, another command", [few], [0], "cached", True),
        anew(config, world),
    ]


def evaluated(
    name: str,
    config: BenchmarkConfig,
    world: World,
    folder: Path,
    shots: Sequence[int],
    seeds: Sequence[int],
    loader: Callable[[Sequence[ImageRef]], MediaLoader],
) -> Line:
    """Predict what ``folder`` lacks, and count."""

    def load(images: Sequence[ImageRef]) -> Loaded:
        media = meter.timed(loader)(images)  # a cache is filled here
        return Loaded(world.model, meter.timed(media), world.dtype)

    with Meter(world) as meter:
        outcome = run_benchmarks(
            [benchmark(config, shots, seeds)],
            EvaluationConfig(conditions=[Condition.real], batch_size=config.batch_size),
            world.tokenizer,
            folder,
            model_id="benchmark",
            precision=str(world.dtype),
            load=load,
        )
    shown = sum(len(e.demonstrations) + 1 for cell, _ in outcome.cells for e in cell.episodes)
    return Line(
        name, outcome.new, shown, meter.encoded, meter.resampled, meter.seconds, outcome.seconds
    )


def anew(config: BenchmarkConfig, world: World) -> Line:
    """The images of each prompt opened, encoded and resampled for it alone, as OpenFlamingo does
    (once, though it does so for each of its three beams). Measured on the first prompts."""
    episodes = benchmark(config, [config.shots]).episodes(config.shots, 0)
    measured = episodes[:SAMPLE]
    parameter = next(world.model.resampler.parameters())
    with Meter(world) as meter, torch.no_grad():
        load = meter.timed(PixelLoader(world.encoder.transform))
        for episode in measured:
            media = prompt(episode, QUESTION).media
            pixels = load(media)[None].to(parameter.device, parameter.dtype)
            world.model.encode_media(pixel_values=pixels)
    factor = len(episodes) / len(measured)
    shown = round(meter.encoded * factor)
    return Line("each prompt's images anew", 0, shown, shown, shown, meter.seconds * factor, None)


def table(lines: Sequence[Line]) -> str:
    """In Markdown."""
    rows = [
        "| evaluation on one process | predictions | images in prompts | encoded | resampled "
        "| s for images | s in all |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for line in lines:
        numbers = [line.predictions or "", line.shown, line.encoded, line.resampled]
        seconds = "" if line.seconds is None else f"{line.seconds:.1f}"
        cells = [line.name, *numbers, f"{line.image_seconds:.1f}", seconds]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


# ---------------------------------------------------------------------------- killing


def killed(config: BenchmarkConfig, world: World, folder: Path) -> str:
    """Kill an evaluation when a third is done, go on, and tell what was predicted twice."""
    child = multiprocessing.get_context("spawn").Process(target=_predict, args=(config, folder))
    child.start()
    while len(_logged(folder)) < config.queries / 3:
        if not child.is_alive():
            raise ValueError("the evaluation to be killed ended before; set a larger queries=")
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    kept = len(_logged(folder))
    resumed = _predict(config, folder, world)
    keys = [json.loads(line)["key"] for line in _logged(folder)]
    return (
        f"Killed after {kept} of {config.queries} predictions: {resumed.predictions} more when "
        f"resumed, {len(keys) - len(set(keys))} of them twice."
    )


def _predict(config: BenchmarkConfig, folder: Path, world: World | None = None) -> Line:
    world = world or load_world(config.run)
    pixels = PixelLoader(world.encoder.transform)
    return evaluated("", config, world, folder, [config.shots], [0], lambda _: pixels)


def _logged(folder: Path) -> list[bytes]:
    """The whole lines of the logs in ``folder``."""
    return [
        line
        for file in folder.rglob("*.jsonl")
        for line in file.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


if __name__ == "__main__":
    entry_point(main, BenchmarkConfig, "benchmark_evaluation", verbatim=["run"])
