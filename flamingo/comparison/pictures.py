"""The images behind predictions, found again by rebuilding the benchmarks of their run.

Predictions name items by their ids and hold no pixels. Where a run's data are still there, its
benchmarks are built from the settings in ``results.json`` and give the images; else none are shown.
Images are found by name: files that were replaced since are shown as they are now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from flamingo.evaluation.benchmarks import build_benchmarks
from flamingo.evaluation.loading import load_tokenizer
from flamingo.evaluation_config import EvaluationConfig
from flamingo.run_images import Data, media_of, without_plans
from flamingo.runs import Run
from flamingo.structured import build
from flamingo.types import ImageRef

SIDE = 144
"""Longest side of a thumbnail in pixels: a little more than it is shown at."""
Item = tuple[str, str]
"""Benchmark and id of a query or demonstration."""


def find_images(run: Run, items: Sequence[Item], data: Data) -> dict[Item, ImageRef]:
    """The images of those ``items`` that the run's benchmarks have.

    Demonstrations are looked up in the pool, not planned: no retrieval features are needed. Raises
    ``ValueError`` or ``OSError`` if the benchmarks cannot be built here.
    """
    wanted: dict[str, set[str]] = {}
    for benchmark, name in items:
        wanted.setdefault(benchmark, set()).add(name)
    evaluation = build(run.results["settings"]["evaluation"], EvaluationConfig)
    config = replace(run.config, evaluation=without_plans(evaluation))
    tokenizer = load_tokenizer(run.checkpoint(run.results["step"]).path)
    found: dict[Item, ImageRef] = {}
    for benchmark in build_benchmarks(config, tokenizer, data.easy_vqa_folder, data.twemoji_folder):
        own = wanted.get(benchmark.name, set())
        if own:
            media = media_of(benchmark)
            found |= {(benchmark.name, n): media[n].frames[0] for n in own if n in media}
    return found


@dataclass
class Thumbnails:
    """Small JPEGs in ``folder``, each image once, named by its key."""

    folder: Path
    written: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def of(self, image: ImageRef) -> str | None:
        """The file's name below the folder's parent; None if the image cannot be opened."""
        if image.key in self.damaged:
            return None
        if image.key not in self.written:
            name = f"{hashlib.sha256(image.key.encode()).hexdigest()[:16]}.jpg"
            try:
                small = image.open().convert("RGB")
            except (ValueError, OSError):
                self.damaged.append(image.key)
                return None
            small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            self.folder.mkdir(parents=True, exist_ok=True)
            small.save(self.folder / name, "JPEG", quality=85)
            self.written[image.key] = f"{self.folder.name}/{name}"
        return self.written[image.key]
