"""Compare runs and conditions: tables, tests, shot curves, and a page to browse predictions.

    python experiments/compare.py runs=[runs/a/seed=0,runs/b/seed=0] out=comparison/
    python experiments/compare.py runs=[runs/a/seed=0] conditions=[real,blank_query] out=...
    python experiments/compare.py runs=[runs/a/seed=0] out=... published=[OpenFlamingo-9B]

An arm is a run under a condition; each is compared with the first (or with reference=), on the
queries both have. Runs must have been evaluated (experiments/evaluate.py). Nothing is predicted:
this reads results.json, and from predictions/ what it counts. out= gets tables as Markdown, LaTeX
and CSV, the curves as shots.png and shots.svg, and index.html with all of it and the single
predictions side by side.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING

from flamingo.backbones import assets
from flamingo.choices import Condition
from flamingo.comparison.compare import Settings, read, write
from flamingo.comparison.differences import Draws
from flamingo.comparison.output import Output
from flamingo.comparison.pictures import Data
from flamingo.comparison.published import chosen, load_published
from flamingo.composition import entry_point
from flamingo.evaluation.corrections import Correction
from flamingo.runs import load_run
from flamingo.structured import require


@dataclass(kw_only=True)
class CompareConfig:
    """What is compared, and where the comparison is written."""

    runs: list[str] = MISSING
    """Directories of runs."""
    out: str = MISSING
    """A new or empty folder, or one of an earlier comparison, which is replaced."""
    conditions: list[Condition] = field(default_factory=lambda: [Condition.real])
    labels: list[str] | None = None
    """Of the arms: each run under each condition, run by run."""
    reference: str | None = None
    """Label of the arm that the others are compared with; default: the first."""
    benchmarks: list[str] | None = None
    """Default: all that an arm has."""
    published: list[str] | None = None
    """Models whose published numbers stand beside ours; default: all, []: none."""
    correction: Correction = Correction.holm
    """For the number of tests: holm, benjamini_hochberg or none."""
    draws: int = 10_000
    """Of bootstrap and permutation; a tenth of it for metrics that are no means (ROC-AUC)."""
    examples: int = 50
    """Predictions to browse for each pair of arms, benchmark and shot count; 0: none."""
    pictures: bool = True
    """Whether to look for the images of those, in the data of the runs."""

    def __post_init__(self) -> None:
        require(self.draws >= 100, "draws", ">= 100", self.draws)
        require(self.examples >= 0, "examples", ">= 0", self.examples)


def main(config: CompareConfig) -> None:
    """Compare. Raises ``ValueError`` or ``OSError`` for what cannot be compared."""
    typed = HydraConfig.get().overrides.task
    print(compare(config, shlex.join(["python", "experiments/compare.py", *typed])))


def compare(config: CompareConfig, command: str) -> str:
    """Write the comparison; returns the table of shots and the page's place."""
    published = chosen(load_published(), config.published)
    comparison = read(
        [load_run(path) for path in config.runs],
        config.conditions,
        labels=config.labels,
        reference=config.reference,
        benchmarks=config.benchmarks,
    )
    names = [facts.name for facts in comparison.benchmarks]
    if config.published and not any(row.benchmark in names for row in published):
        raise ValueError(
            f"published: expected models with numbers on {names}, got {config.published}"
        )
    output = Output.claim(Path(config.out))
    settings = Settings(
        correction=config.correction,
        draws=Draws(config.draws, config.draws // 10),
        published=published,
        examples=config.examples,
    )
    data = Data(
        lambda: downloaded(assets.Asset.easy_vqa, assets.easy_vqa_folder),
        lambda: downloaded(assets.Asset.twemoji, assets.twemoji_folder),
    )
    write(comparison, settings, output, data if config.pictures else None, command)
    lines = [(output.folder / "shots.md").read_text(encoding="utf-8"), *comparison.notes]
    return "\n".join([*lines, f"Page: {output.folder / 'index.html'}"])


def downloaded(asset: assets.Asset, folder: Callable[[], Path]) -> Path:
    """The folder of an embedded data set, which is not fetched for pictures alone.

    Raises ``ValueError`` if it is not in the cache.
    """
    place = assets.cache_root() / "assets" / asset.value.folder_name
    if not (place / assets.MARKER).exists():
        raise ValueError(f"{place}: expected the data set {asset.name}, found none")
    return folder()


if __name__ == "__main__":
    entry_point(
        main,
        CompareConfig,
        "compare",
        verbatim=["out", "reference"],
        verbatim_lists=["runs", "labels"],
    )
