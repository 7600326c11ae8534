"""Tiny runs, one after the other, in as many processes as this script is started in.

``python several_runs.py <folder> <name> ...`` trains each named run of :data:`RUNS` in a folder of
its name; ``sharding=none`` or ``sharding=full`` among the names is for all of them. Imported by the
tests, which compare the numbers of processes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tiny_run import tiny_config, tiny_parts
from torch.distributed.tensor import DTensor

from flamingo.choices import Precision, Sharding
from flamingo.config import RunConfig, SourceConfig
from flamingo.data.mixture import Mixture
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.run_directory import RunDirectory
from flamingo.testing import SyntheticSource
from flamingo.training.distributed import leave_processes
from flamingo.training.loop import TrainingResult, train
from flamingo.types import ImageRef, InterleavedSequence, Text

SETTINGS = {"steps": 6, "log_every": 1, "eval_every": 3, "checkpoint_every": 3}


@dataclass(frozen=True)
class TextSource:
    """Sequences without media."""

    name: str = "text"

    def images(self) -> list[ImageRef]:
        return []

    def sequence(self, index: int) -> InterleavedSequence:
        words = ("red", "green", "blue", "grey")
        return InterleavedSequence((Text("This is a"), Text(f" {words[index % 4]}", learn=True)))


@dataclass(frozen=True)
class Run:
    """What differs from the usual tiny run."""

    training: dict[str, Any] = field(default_factory=dict)
    family: str = "llama"
    language: dict[str, Any] = field(default_factory=dict)

    def config(self, folder: Path, **training: Any) -> RunConfig:
        return tiny_config(folder, **(SETTINGS | self.training | training))

    def parts(self, config: RunConfig):
        model, tokenizer, mixture, load_media = tiny_parts(config, self.family, **self.language)
        if self.training.get("precision") is Precision.bf16:
            model.language_model.to(torch.bfloat16)  # as flamingo.build holds it
        return model, tokenizer, mixture, load_media


class MostlyText(Run):
    """One sequence of six has media: most micro-batches have none."""

    def parts(self, config: RunConfig):
        model, tokenizer, _, load_media = super().parts(config)
        sources = [TextSource(), SyntheticSource(pairs=2, seed=1, name="images")]
        shares = [SourceConfig(sequences=5), SourceConfig(sequences=1)]
        return model, tokenizer, Mixture(sources, shares, tokenizer, max_tokens=64), load_media


class OnlyText(Run):
    """No step has media: what media would reach is left as it is."""

    def parts(self, config: RunConfig):
        model, tokenizer, _, load_media = super().parts(config)
        mixture = Mixture([TextSource()], [SourceConfig(sequences=6)], tokenizer, max_tokens=64)
        return model, tokenizer, mixture, load_media


FULL = {"sharding": Sharding.full}
RUNS: dict[str, Run] = {
    "whole": Run(),
    "whole, tied": Run(language={"tie_word_embeddings": True}),
    "whole, bf16": Run({"precision": Precision.bf16}),
    "whole, recomputed": Run({"gradient_checkpointing": True}),
    "whole, text": MostlyText({"micro_batches": 3}),
    "sharded": Run(FULL),
    "sharded, tied": Run(FULL, language={"tie_word_embeddings": True}),
    "sharded, bf16": Run(FULL | {"precision": Precision.bf16}),
    "sharded, recomputed": Run(FULL | {"gradient_checkpointing": True}),
    "sharded, in parts": Run(FULL | {"micro_batches": 4}),  # of 3 sequences
    "sharded, text": MostlyText(FULL | {"micro_batches": 3}),
    "sharded, only text": OnlyText(FULL),
    "sharded, gpt_neox": Run(FULL, "gpt_neox"),
    "sharded, opt": Run(FULL, "opt"),
    "sharded, gpt2": Run(FULL, "gpt2"),
    "sharded, mpt": Run(FULL, "mpt"),
    "sharded, mpt, recomputed": Run(FULL | {"gradient_checkpointing": True}, "mpt"),
    "sharded, falcon": Run(FULL, "falcon"),
}


def train_named(name: str, folder: Path, **training: Any) -> tuple[TrainingResult, RunDirectory]:
    """Train run ``name`` in a folder of its name, from the newest checkpoint there."""
    config = RUNS[name].config(folder / name, **training)
    directory = RunDirectory.open(config)
    model, *others = RUNS[name].parts(config)
    result = train(config, model, *others, directory)
    if name == "sharded" and not training:
        look_at(model, folder)
    return result, directory


def look_at(model: FlamingoForConditionalGeneration, folder: Path) -> None:
    """What process ``<n>`` holds of ``model`` after training, and what it generates, into
    ``<n>.json``: each process has a prompt and a number of tokens of its own."""
    process = PartialState().process_index
    held = {n: p.to_local() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    seen = {
        "held": {name: tensor.numel() for name, tensor in held.items()},
        "whole": {name: p.numel() for name, p in model.named_parameters()},
        "generated": generated(model, process),
        "gates": model.gates(),
    }
    (folder / f"{process}.json").write_text(json.dumps(seen))


def generated(model: FlamingoForConditionalGeneration, process: int) -> list[int]:
    image = model.config.image_token_id or 0
    device = model.resampler.feature_mean.device
    prompt = torch.tensor([[image, 40 + process, 50]], device=device)
    features = torch.full((1, 1, 1, 16, model.config.vision_dim), 0.1 * (process + 1)).to(device)
    tokens = model.eval().generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        vision_features=features,
        max_new_tokens=4 + 3 * process,
        do_sample=False,
    )
    return tokens[0].tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *words = sys.argv[1:]
    given = dict(word.split("=") for word in words if "=" in word)
    for name in (word for word in words if "=" not in word):
        train_named(name, Path(folder), **{k: Sharding[v] for k, v in given.items()})
    leave_processes()  # a process that ends in its group may be aborted: gloo's threads still run
