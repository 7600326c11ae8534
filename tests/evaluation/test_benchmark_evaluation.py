"""The numbers of experiments/benchmark_evaluation.py, on few queries."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

from torch import nn

from experiments import benchmark_evaluation
from experiments.benchmark_evaluation import BenchmarkConfig, Meter, lines, load_world, table

CONFIG = BenchmarkConfig(queries=6, images=8, shots=4, fewer_shots=2, batch_size=3)
IMAGES = 6 + 8


def test_each_image_is_encoded_once_whatever_shots_and_seeds(tmp_path) -> None:
    one, two, seeds, cached, later, anew = lines(CONFIG, load_world(None), tmp_path)
    assert (one.predictions, one.shown) == (6, 6 * 5)
    assert one.encoded == one.resampled <= IMAGES
    assert (two.predictions, two.shown) == (12, 6 * 5 + 6 * 3)
    assert two.encoded == two.resampled == one.encoded, "fewer shots show a part of the images"
    assert (seeds.predictions, seeds.shown) == (12, 2 * 6 * 5)
    assert one.encoded <= seeds.encoded == seeds.resampled <= IMAGES
    assert cached.predictions == later.predictions == 6
    assert (cached.encoded, cached.resampled) == (one.encoded, one.resampled)
    assert (later.encoded, later.shown) == (0, 6 * 3)
    assert (anew.encoded, anew.resampled) == (one.shown, one.shown)
    assert len(table([one, anew]).splitlines()) == 4


def test_the_time_for_images_has_their_transforming_also_where_a_cache_is_filled(
    tmp_path, monkeypatch
) -> None:
    """By a clock that goes on by a second with every image that is transformed."""
    world = load_world(None)
    transform, seconds = world.encoder.transform, count(1)
    clock = [0]

    def slow(image):
        clock[0] = next(seconds)
        return transform(image)

    monkeypatch.setattr(world.encoder, "transform", slow)
    monkeypatch.setattr(benchmark_evaluation, "now", lambda: float(clock[0]))
    one, _, _, cached, later, _ = lines(CONFIG, world, tmp_path)
    assert one.image_seconds >= one.encoded
    assert cached.image_seconds == cached.encoded > 0
    assert later.image_seconds == 0


def test_what_is_encoded_while_a_call_is_timed_counts_once(monkeypatch) -> None:
    clock = [0.0]

    class Encoder(nn.Module):
        def forward(self, pixels):
            clock[0] += 2
            return pixels

    world = replace(load_world(None), encoder=Encoder())
    monkeypatch.setattr(benchmark_evaluation, "now", lambda: clock[0])

    def fill(pixels):
        clock[0] += 3
        return world.encoder(pixels)

    with Meter(world) as meter:
        meter.timed(fill)([1, 2, 3, 4])
        world.encoder([5])
    assert (meter.seconds, meter.encoded) == (2 + 3 + 2, 5)
