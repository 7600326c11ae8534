"""How costs grow: with shots, with queries and seeds, with padding."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from tqdm import tqdm

from flamingo.benchmarking.cases import Works
from flamingo.benchmarking.contender import CannotDo, Contender, Who
from flamingo.benchmarking.counting import peak_memory
from flamingo.benchmarking.plot import COLOURS, MARKERS
from flamingo.benchmarking.runner import PEERS
from flamingo.benchmarking.timing import Effort, Run, alternate, timed
from flamingo.benchmarking.world import World
from flamingo.files import write_atomically

MIB = 2**20


@dataclass(kw_only=True)
class CurvesConfig:
    """Where on each axis is measured."""

    shots: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8, 16, 32])
    """Decoding, per token. Prompts have as many tokens at every one."""
    queries: list[int] = field(default_factory=lambda: [8, 16, 32])
    seeds: list[int] = field(default_factory=lambda: [1, 2, 4])
    """How many."""
    shot_counts: list[int] = field(default_factory=lambda: [1, 2, 3])
    """How many of 32, 16, 8, ... shots one evaluation has."""
    padded: list[int] = field(default_factory=lambda: [6, 12, 24, 48])
    """Images that the documents of a training step are padded to."""
    peers_padded: int = 12
    """The most that others than ours are given: they resample all of it."""


@dataclass(frozen=True)
class Point:
    """One contender at one place of a curve."""

    curve: str
    who: str
    x: int
    seconds: list[float]
    memory: int | None = None
    resampled: int | None = None
    """Images that went through the resampler."""
    vision_seconds: float | None = None
    """Of the resampler within the whole."""


def measure_curves(world: World, works: Works, config: CurvesConfig, effort: Effort) -> list[Point]:
    """All curves, one place after the other, contenders in alternation at each."""
    points: list[Point] = []
    total = len(config.shots) + len(config.padded)
    total += len(config.queries) + len(config.seeds) + len(config.shot_counts)
    with tqdm(total=total, desc="curves", unit="place") as bar:
        for point in config.shots:
            points += decoding(world, works, point, effort)
            bar.update()
        for padded in config.padded:
            points += padding(world, works, padded, config.peers_padded, effort)
            bar.update()
        for curve, x, evaluation in _evaluations(works, config):
            points.append(evaluating(world, works, curve, x, evaluation))
            bar.update()
    return points


def decoding(world: World, works: Works, shots: int, effort: Effort) -> list[Point]:
    """Seconds a token behind prompts that show ``shots`` demonstrations and the query.

    The text is that of the most shots, images taken out from its beginning, so that what grows is
    the images alone.
    """
    most = max(works.sizes.many_shots, shots)
    work = works.prompts(most, works.sizes.decoded_tokens)
    is_image = work.input_ids == works.tokens.image
    dropped = is_image & (is_image.cumsum(dim=1) <= most - shots)
    work = replace(
        work,
        input_ids=work.input_ids.masked_fill(dropped, works.tokens.first),
        features=work.features[:, most - shots :],
    )
    runs = _runs(world, lambda contender: contender.decode(work))
    seconds = _alternate(runs, effort, works)
    return [Point("decode", who, shots, own) for who, own in seconds.items()]


def padding(world: World, works: Works, padded: int, peers: int, effort: Effort) -> list[Point]:
    """A training step on the documents, padded to ``padded`` images a row."""
    work = replace(works, sizes=replace(works.sizes, document_images=padded)).documents()
    chosen = {
        who: contender
        for who, contender in world.contenders.items()
        if who is Who.ours or (padded <= peers and who is not Who.bare)
    }
    runs = _runs(replace(world, contenders=chosen), lambda own: own.training_step(work))
    seconds = _alternate(runs, effort, works)
    return [
        Point("padding", who, padded, own, peak_memory(runs[who], works.device))
        for who, own in seconds.items()
    ]


def _alternate(runs: dict[str, Run], effort: Effort, works: Works) -> dict[str, list[float]]:
    """Seconds of those that did not fail; who failed, and why, is printed."""
    seconds, failed = alternate(runs, effort, works.device, may_fail=PEERS)
    for who, error in failed.items():
        tqdm.write(f"{who} failed: {type(error).__name__}: {error}")
    return seconds


def _runs(world: World, make: Callable[[Contender], Run]) -> dict[str, Run]:
    """Of those that can."""
    runs = {}
    for who, contender in world.contenders.items():
        try:
            runs[who.value] = make(contender)
        except CannotDo:
            continue
    return runs


# ---------------------------------------------------------------------------- evaluations


def _evaluations(works: Works, config: CurvesConfig) -> Sequence[tuple[str, int, Any]]:
    many = works.sizes.many_shots
    fewest = config.queries[0]
    return [
        *(("queries", n, works.evaluation(n)) for n in config.queries),
        *(("seeds", n, works.evaluation(fewest, seeds=range(n))) for n in config.seeds),
        *(
            ("shot counts", n, works.evaluation(fewest, [many // 2**i for i in range(n)]))
            for n in config.shot_counts
        ),
    ]


def evaluating(world: World, works: Works, curve: str, x: int, work: Any) -> Point:
    """Our evaluation once, and how much of it is resampling."""
    run = world.contenders[Who.ours].evaluate(work)
    with _Watched(world.ours.resampler, works) as watched:
        seconds = timed(run, works.device)
    ours = Who.ours.value
    return Point(curve, ours, x, [seconds], None, watched.images, watched.seconds)


class _Watched:
    """Counts what goes through a module while it is entered, and the time."""

    def __init__(self, module: nn.Module, works: Works) -> None:
        self.images = 0
        self.seconds = 0.0
        self._module, self._device = module, works.device
        self._forward = module.forward

    def __enter__(self) -> _Watched:
        def forward(features: Tensor) -> Tensor:
            found: list[Tensor] = []
            run = Run(lambda _: found.append(self._forward(features)))
            self.seconds += timed(run, self._device)
            self.images += len(features)
            return found[0]

        self._module.forward = forward
        return self

    def __exit__(self, *error: object) -> None:
        self._module.forward = self._forward


# ---------------------------------------------------------------------------- output

PANELS = {
    "decode": ("shots", "decoding, ms a token"),
    "padding": ("images a row is padded to", "training step on documents, s"),
    "memory": ("images a row is padded to", "training step, MiB at its peak"),
    "queries": ("queries", "evaluation, s"),
    "seeds": ("seeds", "evaluation, s"),
    "shot counts": ("shot counts", "evaluation, s"),
}


def draw_curves(points: Sequence[Point], settings: dict[str, Any], folder: Path) -> None:
    """curves.json and curves.png in ``folder``."""
    values = {"settings": settings, "points": [asdict(point) for point in points]}
    write_atomically(folder / "curves.json", json.dumps(values, indent=1) + "\n")
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (panel, (below, beside)) in zip(
        figure.subplots(2, 3).flat, PANELS.items(), strict=True
    ):
        _draw(axes, points, panel)
        axes.set_xlabel(below)
        axes.set_ylabel(beside)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(folder / "curves.png", dpi=150)


def _draw(axes: Axes, points: Sequence[Point], panel: str) -> None:
    curve = "padding" if panel == "memory" else panel
    scale = 1000 if panel == "decode" else 1
    for who, marker in MARKERS.items():
        own = [p for p in points if p.curve == curve and p.who == who.value]
        if panel == "memory":
            own = [p for p in own if p.memory is not None]
            values = [(p.memory or 0) / MIB for p in own]
        else:
            values = [scale * statistics.median(p.seconds) for p in own]
        if own:
            x = [p.x for p in own]
            axes.plot(x, values, marker=marker, color=COLOURS[who], label=who.value)
            if any(p.vision_seconds is not None for p in own):
                vision = [p.vision_seconds or 0.0 for p in own]
                axes.plot(x, vision, "--", marker=marker, color=COLOURS[who], label="resampling")
