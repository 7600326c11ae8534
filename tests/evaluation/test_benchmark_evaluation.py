"""The numbers of experiments/benchmark_evaluation.py, on few queries."""

from __future__ import annotations

from experiments.benchmark_evaluation import BenchmarkConfig, lines, load_world, table

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
