"""Time our model beside the bare language model and the peers, on equal work and weights.

    python experiments/benchmark.py                                         # all cases
    python experiments/benchmark.py cases=[train_documents,decode] rounds=3
    python experiments/benchmark.py contenders=[bare,ours] cases=[greedy]
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field

import torch

from flamingo.backbones import language as lm
from flamingo.benchmarking.cases import Case, SizesConfig, Works
from flamingo.benchmarking.contender import CannotDo, Who
from flamingo.benchmarking.timing import alternate
from flamingo.benchmarking.work import FeatureShape
from flamingo.benchmarking.world import build_world
from flamingo.composition import entry_point
from flamingo.config import LanguageConfig
from flamingo.model.processor import prepare_tokenizer


@dataclass(kw_only=True)
class BenchmarkConfig:
    """What is timed, and how often."""

    name: str = "speed"
    cases: list[Case] = field(default_factory=lambda: list(Case))
    contenders: list[Who] = field(default_factory=lambda: list(Who))
    rounds: int = 5
    warmup: int = 1
    language: str = "smollm2-135m-instruct"
    """A hub name, a local folder, or the embedded model."""
    every: int = 4
    """Gated blocks stand before every n-th layer."""
    sizes: SizesConfig = field(default_factory=SizesConfig)


def main(config: BenchmarkConfig) -> None:
    language = LanguageConfig(name=config.language)
    model = lm.load_language_model(language, torch.float32)
    tokenizer = prepare_tokenizer(lm.load_tokenizer(language), lm.vocabulary_size(model))
    device, dtype = torch.device("cpu"), torch.bfloat16
    sizes = config.sizes
    world = build_world(
        model,
        tokenizer,
        config.contenders,
        every=config.every,
        shape=FeatureShape(sizes.patches, sizes.vision_dim),
        device=device,
        dtype=dtype,
    )
    print(world.absent, world.agreement, torch.get_num_threads(), os.cpu_count())
    works = Works(sizes, world.tokens, device, dtype)
    for case in config.cases:
        runs = {}
        for who, contender in world.contenders.items():
            try:
                runs[who.name] = works.run(case, contender)
            except (CannotDo, NotImplementedError) as error:
                print(case.name, who.name, error)
        seconds = alternate(runs, rounds=config.rounds, warmup=config.warmup, device=device)
        print(
            case.name,
            {who: f"{statistics.median(own):.4g} [{min(own):.4g}]" for who, own in seconds.items()},
            flush=True,
        )


if __name__ == "__main__":
    entry_point(main, BenchmarkConfig, "benchmark_speed")
