"""A whole training run at tiny size: imported by the tests, and run by them as a process.

``python tiny_run.py <folder> [steps=8 checkpoint_every=3 ...]`` trains in ``<folder>``.
"""

import sys
import time
from pathlib import Path

import torch
import yaml

from flamingo.choices import Precision, Schedule
from flamingo.config import (
    CrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)
from flamingo.data.features import EncodingLoader
from flamingo.data.mixture import Mixture
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.processor import prepare_tokenizer
from flamingo.run_directory import RunDirectory
from flamingo.testing import (
    VOCABULARY,
    SyntheticSource,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.training.distributed import leave_processes
from flamingo.training.loop import TrainingResult, train


def tiny_config(folder: Path | str, **training) -> RunConfig:
    settings = {
        "steps": 8,
        "warmup_steps": 2,
        "lr": 3e-3,
        "schedule": Schedule.cosine,
        "log_every": 2,
        "eval_every": 4,
        "eval_batches": 1,
        "checkpoint_every": 3,
        "precision": Precision.fp32,
    } | training
    return RunConfig(
        name="tiny",
        runs=str(folder),
        model=ModelConfig(
            resampler=ResamplerConfig(depth=1, num_latents=3, heads=2, dim_head=8, ff_mult=2),
            cross_attention=CrossAttentionConfig(
                every=2, heads=2, dim_head=8, ff_mult=2, gate_init=0.5
            ),
        ),
        training=TrainingConfig(**settings),
    )


def tiny_parts(config: RunConfig, family: str = "llama", **language):
    """Model, tokenizer, mixture of two sources (of 4 and 2 sequences), and media loader.

    ``language`` goes to :func:`tiny_language_model`.
    """
    encoder = tiny_vision_encoder()
    torch.manual_seed(config.seed)
    model = FlamingoForConditionalGeneration.from_backbones(
        vision=encoder,
        language=tiny_language_model(family, **language),
        resampler=config.model.resampler,
        cross_attention=config.model.cross_attention,
    )
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)
    sources = [
        SyntheticSource(pairs=2, seed=1, name="short"),
        SyntheticSource(pairs=3, seed=2, name="long"),
    ]
    shares = [SourceConfig(sequences=4), SourceConfig(sequences=2, loss_weight=0.5)]
    mixture = Mixture(sources, shares, tokenizer, max_tokens=128)
    return model, tokenizer, mixture, EncodingLoader(encoder)


def tiny_train(config: RunConfig, **options) -> tuple[TrainingResult, RunDirectory]:
    run = RunDirectory.open(config)
    return train(config, *tiny_parts(config), run, **options), run


def slowly(step: int, model) -> dict[str, float]:
    """A callback that gives a test the time to interrupt."""
    time.sleep(0.05)
    return {"validation/step": float(step)}


if __name__ == "__main__":
    folder, *options = sys.argv[1:]
    values = {key: yaml.safe_load(value) for key, value in (o.split("=") for o in options)}
    callback = slowly if values.pop("slowly", False) else None
    torch.set_num_threads(1)
    result, _ = tiny_train(tiny_config(folder, **values), callback=callback)
    leave_processes()
    sys.exit(0 if result.finished else 128 + (result.signal or 0))
