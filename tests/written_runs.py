"""Run directories without a model: a configuration, and checkpoints of one word."""

from __future__ import annotations

from flamingo.config import DataConfig, EasyVQASourceConfig, RunConfig, TrainingConfig
from flamingo.run_directory import RunDirectory
from flamingo.training.checkpoint import save_checkpoint


def config(folder, **fields) -> RunConfig:
    defaults = {"data": DataConfig(easy_vqa=EasyVQASourceConfig(pairs=3))}
    return RunConfig(name="mine", runs=str(folder), **(defaults | fields))


def training(folder, **fields) -> RunConfig:
    return config(folder, training=TrainingConfig(**fields))


class Weights:
    def save_pretrained(self, folder) -> None:
        (folder / "model.safetensors").write_text("w")


def save(run: RunDirectory, step: int) -> None:
    save_checkpoint(
        run.checkpoints, step=step, models=[Weights()], state={}, config_hash="h", keep=9
    )
