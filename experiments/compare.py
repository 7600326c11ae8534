"""Compare runs and conditions: tables, tests, shot curves, and a page to browse predictions.

    python experiments/compare.py runs=[runs/a/seed=0,runs/b/seed=0] out=comparison/
    python experiments/compare.py runs=[runs/a/seed=0] conditions=[real,blank_query] out=...
    python experiments/compare.py runs=[runs/a/seed=0] out=... published=[OpenFlamingo-9B]
    python experiments/compare.py sweep=ablation_gate_init out=...         # arms of several seeds
    python experiments/compare.py sweep=ablation_gate_init name=short training.steps=300 out=...
    python experiments/compare.py sweep=experiments/results/ablation_gate_init.json out=...

An arm is a run under a condition; each is compared with the first (or with reference=), on the
queries both have. Runs must have been evaluated (experiments/evaluate.py). Nothing is predicted:
this reads results.json, and from predictions/ what it counts. out= gets tables as Markdown, LaTeX
and CSV, the curves as shots.png and shots.svg, and index.html with all of it and the single
predictions side by side.

sweep= names a sweep of conf/sweeps (docs/ablations.md) whose runs are in root=, or the JSON file of
its results. What experiments/ablate.py was told of the runs (name=short training.steps=300,
evaluation.control_queries=0) is told here too. out= gets the scores of all arms over their seeds,
their paired differences to the reference with intervals over seeds and images, a forest plot and
results.json.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING as MISSING_DEFAULT
from dataclasses import dataclass, field, fields
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING

from flamingo.ablation.outcome import (
    compare_finished,
    comparison_text,
    progress_of_all,
    write_comparison,
)
from flamingo.ablation.sweep import compose_sweep
from flamingo.backbones import assets
from flamingo.choices import Condition
from flamingo.command_line import entry_point, in_lists
from flamingo.comparison.compare import Settings, read, write
from flamingo.comparison.differences import Draws
from flamingo.comparison.output import Output
from flamingo.comparison.pictures import Data
from flamingo.comparison.published import chosen, load_published
from flamingo.comparison.sweep import read_results
from flamingo.evaluation.corrections import Correction
from flamingo.runs import load_run
from flamingo.structured import require


@dataclass(kw_only=True)
class CompareConfig:
    """What is compared, and where the comparison is written."""

    runs: list[str] | None = None
    """Directories of runs."""
    sweep: str | None = None
    """Instead of ``runs``: a sweep, or the JSON file of its results."""
    name: str | None = None
    """Of a sweep's runs, where it is not that of the experiment."""
    seeds: list[int] | None = None
    """Of a sweep's runs, where they are not those of its file."""
    root: str = "runs"
    """Where the runs of a sweep are."""
    overrides: list[str] = field(default_factory=list)
    """What a sweep's runs were told; beside sweep=, every key=value that is not one of these keys
    is put here."""
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
        one = (self.runs is None) != (self.sweep is None)
        require(one, "runs, sweep", "exactly one of them", (self.runs, self.sweep))
        if self.sweep is None:
            self._refuse(OF_SWEEPS, "with runs=, which names its runs")
        else:
            self._refuse(OF_RUNS, "with sweep=, which compares all that its arms have")
        if self.sweep is not None and self.sweep.endswith(".json"):
            self._refuse(OF_SWEEPS, "with a file of results, which holds what was found")
        require(self.draws >= 100, "draws", ">= 100", self.draws)
        require(self.examples >= 0, "examples", ">= 0", self.examples)

    def _refuse(self, names: Sequence[str], why: str) -> None:
        """Raises ``ValueError`` for a key that would be passed over."""
        defaults = {own.name: own for own in fields(self)}
        for name in names:
            own, value = defaults[name], getattr(self, name)
            factory = own.default_factory
            expected = own.default if factory is MISSING_DEFAULT else factory()
            require(value == expected, name, f"none {why}", value)


OF_SWEEPS = ("name", "seeds", "root", "overrides")
OF_RUNS = (
    *("conditions", "labels", "reference", "benchmarks", "published"),
    *("correction", "draws", "examples", "pictures"),
)


def main(config: CompareConfig) -> None:
    """Compare. Raises ``ValueError`` or ``OSError`` for what cannot be compared."""
    typed = HydraConfig.get().overrides.task
    if config.sweep is not None:
        print(compare_arms(config.sweep, config))
    else:
        print(compare(config, shlex.join(["python", "experiments/compare.py", *typed])))


def compare_arms(sweep: str, config: CompareConfig) -> str:
    """Write the comparison of a sweep; returns its tables and the folder."""
    if sweep.endswith(".json"):
        results, missing = read_results(Path(sweep)), []
    else:
        composed = compose_sweep(
            sweep,
            config.overrides,
            runs=config.root,
            run_name=config.name,
            seeds=config.seeds,
        )
        results, missing = compare_finished(composed, progress_of_all(composed))
    output = Output.claim(Path(config.out))
    write_comparison(results, output)
    return f"{comparison_text(results, missing)}\nFiles: {output.folder}"


def compare(config: CompareConfig, command: str) -> str:
    """Write the comparison; returns the table of shots and the page's place."""
    published = chosen(load_published(), config.published)
    comparison = read(
        [load_run(path) for path in config.runs or []],
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


def gathered(arguments: Sequence[str]) -> list[str]:
    """``arguments`` as :class:`CompareConfig` takes them: a sweep's as experiments/ablate.py does.

    Beside runs= nothing is in_lists: there, a key that is none of ours is a mistake.
    """
    of_a_sweep = any(argument.startswith("sweep=") for argument in arguments)
    return in_lists(arguments, CompareConfig) if of_a_sweep else [*arguments]


if __name__ == "__main__":
    try:
        sys.argv[1:] = gathered(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    entry_point(
        main,
        CompareConfig,
        "compare",
        verbatim=["out", "reference", "sweep", "root"],
        verbatim_lists=["runs", "labels"],
    )
