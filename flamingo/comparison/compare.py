"""A whole comparison: from runs to all that is written of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from flamingo.choices import Condition
from flamingo.comparison.arms import Arm, Facts, cautions, make_arms, shared_benchmarks
from flamingo.comparison.differences import Draws, differences, paired
from flamingo.comparison.estimates import Measured, measured
from flamingo.comparison.examples import Cell, choose
from flamingo.comparison.formats import Table, csv, latex, markdown
from flamingo.comparison.output import Output
from flamingo.comparison.page import Content, render
from flamingo.comparison.pictures import Data, Item, Thumbnails, find_images
from flamingo.comparison.published import Published
from flamingo.comparison.rates import Rates, rates
from flamingo.comparison.samples import Sample, read_samples
from flamingo.comparison.tables import difference_table, group_table, rate_table, shot_table
from flamingo.evaluation.corrections import Correction
from flamingo.plots import Figure, figure_bytes, plot_arms
from flamingo.runs import Run
from flamingo.types import ImageRef

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What is compared, read and checked, before anything is computed.

    ``pairs``: the reference and another arm on their common queries.
    """

    arms: Sequence[Arm]
    reference: Arm
    benchmarks: Sequence[Facts]
    samples: Sequence[Sample]
    pairs: Sequence[tuple[Sample, Sample]]
    notes: Sequence[str]


def read(
    runs: Sequence[Run],
    conditions: Sequence[Condition],
    *,
    labels: Sequence[str] | None = None,
    reference: str | None = None,
    benchmarks: Sequence[str] | None = None,
) -> Comparison:
    """Read all predictions and pair them; ``reference`` is an arm's label, by default the first's.

    Raises ``ValueError`` as :func:`make_arms`, :func:`shared_benchmarks`, :func:`read_samples` and
    :func:`paired` do, for an unknown reference, and for an arm that has nothing in common with it.
    """
    arms = make_arms(runs, conditions, labels)
    by_label = {arm.label: arm for arm in arms}
    if reference is not None and reference not in by_label:
        raise ValueError(f"reference: expected one of {list(by_label)}, got {reference!r}")
    first = arms[0] if reference is None else by_label[reference]
    facts = shared_benchmarks(arms, benchmarks)
    by_arm = {arm.label: [s for own in facts for s in read_samples(arm, own)] for arm in arms}
    pairs = []
    for arm in arms:
        if arm is first:
            continue
        own = paired(by_arm[first.label], by_arm[arm.label])
        if not own:
            raise ValueError(
                f"{arm.label!r}: expected a benchmark and shot count that {first.label!r} has too, "
                f"got none: {_cells(by_arm[first.label])} against {_cells(by_arm[arm.label])}"
            )
        pairs += own
    samples = [sample for own in by_arm.values() for sample in own]
    notes = [*cautions(arms), *_partial(pairs, samples)]
    return Comparison(arms, first, facts, samples, pairs, notes)


def _cells(samples: Sequence[Sample]) -> str:
    return ", ".join(f"{s.facts.name} at {s.shots}" for s in samples) or "nothing"


def _partial(pairs: Sequence[tuple[Sample, Sample]], samples: Sequence[Sample]) -> list[str]:
    """Where paired differences are on fewer queries than the tables of single arms."""
    whole = {(s.arm.label, s.facts.name, s.shots): len(s.queries) for s in samples}
    # A line an arm and benchmark; its shot counts nearly always have as many queries as each other.
    told: dict[str, dict[str, None]] = {}
    for pair in pairs:
        first, second = [whole[s.arm.label, s.facts.name, s.shots] for s in pair]
        common = len(pair[0].queries)
        if max(first, second) > common:
            counts = f"{common} of {first} and {second} ({pair[0].facts.title})"
            told.setdefault(pair[1].arm.label, {})[counts] = None
    return [
        f"Differences from {label} are on the queries that both have: {', '.join(counts)}."
        for label, counts in told.items()
    ]


# ---------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Settings:
    """How a comparison is computed and shown."""

    correction: Correction = Correction.holm
    draws: Draws = field(default_factory=Draws)
    published: Sequence[Published] = ()
    examples: int = 50
    """Of each pair of arms, benchmark and shot count; 0: no browser."""


def compute(comparison: Comparison, settings: Settings) -> tuple[list[Table], Figure, list[Cell]]:
    """The tables, the curves, and the examples to browse."""
    numbers: list[Measured] = [
        number for sample in comparison.samples for number in measured(sample)
    ]
    tested = differences(comparison.pairs, settings.correction, draws=settings.draws)
    several = len(comparison.arms) > 1
    shots = shot_table(comparison.benchmarks, numbers, settings.published)
    tables = [
        shots,
        difference_table(tested, settings.correction),
        group_table(numbers),
        rate_table(
            [
                found
                for facts in comparison.benchmarks
                for sample in comparison.samples
                if sample.facts.name == facts.name and (found := _rates(sample, comparison))
            ],
            comparison.reference.label if several else None,
        ),
    ]
    figure = plot_arms(
        [asdict(facts) for facts in comparison.benchmarks],
        shots.records,
        published=[row.model for row in settings.published],
    )
    cells = [choose(*pair, settings.examples) for pair in comparison.pairs if settings.examples]
    return [table for table in tables if table is not None], figure, cells


def _rates(sample: Sample, comparison: Comparison) -> Rates | None:
    reference = next(
        (
            first
            for first, second in comparison.pairs
            if second.arm is sample.arm
            and (second.facts.name, second.shots) == (sample.facts.name, sample.shots)
        ),
        None,
    )
    return rates(sample, reference)


# ---------------------------------------------------------------------------- files


def write(
    comparison: Comparison, settings: Settings, output: Output, data: Data | None, command: str
) -> None:
    """All tables, ``shots.png``, ``shots.svg`` and ``index.html``; pictures only with ``data``."""
    tables, figure, cells = compute(comparison, settings)
    images, notes = _images(cells, data) if data is not None else ({}, [])
    # What takes long is done: an earlier comparison there makes room now.
    for table in tables:
        for suffix, render_table in (("md", markdown), ("tex", latex), ("csv", csv)):
            output.write(f"{table.name}.{suffix}", render_table(table))
    png = figure_bytes(figure)
    output.write("shots.png", png)
    output.write("shots.svg", figure_bytes(figure, "svg"))
    thumbnails = Thumbnails(output.folder / "images")

    def picture(benchmark: str, name: str) -> str | None:
        image = images.get((benchmark, name))
        return None if image is None else thumbnails.of(image)

    content = Content(
        arms=comparison.arms,
        tables=tables,
        curves=png,
        cells=cells,
        published=[row for row in settings.published if row.benchmark in _names(comparison)],
        notes=[*comparison.notes, *notes],
        command=command,
    )
    page = render(content, picture)
    output.note(sorted(thumbnails.written.values()))
    output.write("index.html", page)


def _names(comparison: Comparison) -> set[str]:
    return {facts.name for facts in comparison.benchmarks}


def _images(cells: Sequence[Cell], data: Data) -> tuple[dict[Item, ImageRef], list[str]]:
    """The images of all that ``cells`` show, and which could not be found, for readers."""
    needed: dict[str, set[Item]] = {}
    runs: dict[str, Run] = {}
    for cell in cells:
        for sample, own in (
            (cell.first, [example.first for example in cell.examples]),
            (cell.second, [example.second for example in cell.examples]),
        ):
            path = str(sample.arm.run.path)
            runs[path] = sample.arm.run
            names = {n for p in own for n in (p.query, *p.demonstrations)}
            needed.setdefault(path, set()).update((sample.facts.name, n) for n in names)
    found: dict[Item, ImageRef] = {}
    notes = []
    for path, items in needed.items():
        missing = sorted(items - found.keys())
        try:
            found |= find_images(runs[path], missing, data) if missing else {}
        except (ValueError, OSError) as error:
            logger.warning("%s: no pictures: %s", path, error)
            notes.append(f"Pictures of {path} are named, not shown: {error}.")
    lost = len(set().union(*needed.values()) - found.keys()) if needed else 0
    if lost and not notes:
        notes.append(f"{lost} pictures were not found in the data and are named instead.")
    return found, notes
