"""A run whose language model trains too: from names in a configuration, interrupted, reopened."""

from pathlib import Path

import pytest
import torch
from test_loop import assert_same_run, train_and_stop

from flamingo.build import build_parts
from flamingo.composition import compose
from flamingo.config import RunConfig
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.testing import save_tiny_language_model
from flamingo.training.loop import train
from tests.tiny_world import save_classes, save_vision_encoder


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_language_model(folder / "language")
    save_vision_encoder(folder / "vision")
    save_classes(folder / "classes", views=3)
    return folder


def config_of(world: Path, runs: Path, ablation: str) -> RunConfig:
    return compose(
        [
            *("name=trained", f"runs={runs}", f"ablation={ablation}", "training.precision=bf16"),
            *(f"vision.name={world / 'vision'}", f"language.name={world / 'language'}"),
            *(
                "model.resampler.depth=1",
                "model.resampler.heads=2",
                "model.cross_attention.heads=2",
            ),
            *("data.binding.collection=folder", f"data.binding.path={world / 'classes'}"),
            *("data.binding.held_out=4", "data.binding.sequences=2", "data.cache_features=false"),
            *("training.steps=4", "training.warmup_steps=0", "training.checkpoint_every=10"),
            *("training.log_every=1", "training.gradient_checkpointing=true"),
        ]
    )


def run(config: RunConfig, callback=None):
    directory = RunDirectory.open(config)
    parts = build_parts(config, torch.device("cpu"), resume=directory.checkpoints.exists())
    given = (parts.model, parts.processor.tokenizer, parts.mixture, parts.load_media, directory)
    return train(config, *given, callback, beside=[parts.processor]), directory


@pytest.mark.parametrize("ablation", ["language_trained", "language_scratch"])
def test_interrupted_and_continued_equals_straight_bit_for_bit(world, tmp_path, ablation):
    _, straight = run(config_of(world, tmp_path / "straight", ablation))
    config = config_of(world, tmp_path / "stopped", ablation)
    stopped = train_and_stop(config, 2, train_with=run)
    assert (stopped.steps, stopped.finished) == (2, False)
    result, continued = run(config)
    assert result.finished
    assert_same_run(continued, straight)

    model, _ = load_run(continued.path).model()
    start = build_parts(config, torch.device("cpu")).model
    moved = {
        name: not torch.equal(parameter, start.trainable_parameters()[name])
        for name, parameter in model.trainable_parameters().items()
    }
    layers = [name for name in moved if name.startswith("language_model.model.layers.")]
    assert layers and all(moved[name] for name in layers)
