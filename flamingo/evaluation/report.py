"""The report of a run: ``report/index.html``, which needs no other file, and ``shots.png``."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from flamingo.choices import Condition, LanguageTraining
from flamingo.config import RunConfig
from flamingo.evaluation.metrics.scores import right
from flamingo.evaluation.points import Row, scores_of
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.prompts import Episode, Item, Template
from flamingo.evaluation.report_tables import counted, headline, power_table, sections
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.tables import hundred
from flamingo.naming import CONDITION_LABELS, naming
from flamingo.plots import figure_bytes, plot_gates, plot_loss, plot_shots

THUMBNAIL = 96
"""Side of the gallery's images in pixels."""
GALLERY_IMAGES = 6
"""The gallery shows the most shots whose episodes have at most this many images."""
GALLERY_RIGHT, GALLERY_WRONG = 3, 3


@dataclass(frozen=True)
class RunFacts:
    """What the report says about the run besides its results."""

    name: str
    step: int
    metrics: Sequence[Mapping[str, Any]]
    config: str
    facts: Mapping[str, str]
    """Label to value, shown in a list."""
    commands: Sequence[str]
    """To reproduce the run."""


def write_report(folder: Path, results: Row, outcome: Outcome, run: RunFacts) -> Path:
    """Write ``shots.png`` and ``index.html`` into ``folder``; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    shots = figure_bytes(plot_shots(results))
    (folder / "shots.png").write_bytes(shots)
    source = resources.files("flamingo.evaluation").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.from_string(source).render(
        run=run,
        results=results,
        shots=_data_uri(shots, "png"),
        loss=_data_uri(figure_bytes(plot_loss(run.metrics)), "png") if run.metrics else None,
        gates=_data_uri(figure_bytes(plot_gates(run.metrics)), "png") if run.metrics else None,
        gains=image_gains(run.metrics),
        headlines=[h for b in results["benchmarks"] if (h := headline(results, b)) is not None],
        sections=sections(results),
        power=power_table(results),
        gallery=gallery(outcome),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def image_gains(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By source, how many nats a learned token the images saved at the last validation."""
    prefix = "validation/image_gain/"
    logged = [{n: v for n, v in entry.items() if n.startswith(prefix)} for entry in metrics]
    last = next((gains for gains in reversed(logged) if gains), {})
    return {name.removeprefix(prefix): gain for name, gain in last.items()}


# ---------------------------------------------------------------------------- gallery


def gallery(outcome: Outcome) -> list[Row]:
    """For each benchmark some episodes that went right and some that went wrong.

    Those that the controls were run on come first: they say more.
    """
    chosen: dict[str, tuple[Cell, list[Prediction]]] = {}
    for cell, predictions in outcome.cells:
        shown = len(cell.episodes[0].demonstrations) + 1
        if cell.condition is Condition.real and (
            shown <= GALLERY_IMAGES or cell.benchmark.name not in chosen
        ):
            chosen[cell.benchmark.name] = (cell, predictions)
    return [_benchmark_gallery(cell, own, outcome) for cell, own in chosen.values()]


def _benchmark_gallery(cell: Cell, predictions: list[Prediction], outcome: Outcome) -> Row:
    controls = {
        (other.condition, prediction.query): prediction
        for other, own in outcome.cells
        if other.benchmark.name == cell.benchmark.name and other.shots == cell.shots
        for prediction in own
        if other.condition is not Condition.real
    }
    controlled = {query for _, query in controls}
    verdicts = _verdicts(cell, predictions)
    ordered = sorted(range(len(predictions)), key=lambda i: predictions[i].query not in controlled)
    right = [i for i in ordered if verdicts[i].right is not False][:GALLERY_RIGHT]
    wrong = [i for i in ordered if verdicts[i].right is False][:GALLERY_WRONG]
    return {
        "title": cell.benchmark.title,
        "shots": counted(cell.shots, cell.benchmark.unit),
        "episodes": [
            _shown(cell.episodes[i], predictions[i], cell.benchmark.task.template, controls)
            | {"right": verdicts[i].right, "score": verdicts[i].score}
            for i in (*right, *wrong)
        ],
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """``right`` is None without annotation. ``score`` is told where it is neither 0 nor 1."""

    right: bool | None
    score: str


def _verdicts(cell: Cell, predictions: Sequence[Prediction]) -> list[Verdict]:
    scores = scores_of(cell, predictions)
    if scores is None:
        return [Verdict(None, "")] * len(predictions)
    metric = cell.benchmark.task.metric
    words = naming(metric)
    return [
        Verdict(
            right(metric, s), "" if words.share and s in (0, 1) else f"{words.name} {hundred(s)}"
        )
        for s in scores
    ]


def _shown(
    episode: Episode,
    prediction: Prediction,
    template: Template,
    controls: Mapping[tuple[Condition, str], Prediction],
) -> Row:
    def shown(item: Item) -> Row:
        thumbnail = None if item.media is None else _thumbnail(item.media.frames[0].open())
        return {
            "image": None if thumbnail is None else _data_uri(thumbnail, "jpeg"),
            "question": template.question_text(item.question),
            "answer": item.answer,
        }

    return {
        "demonstrations": [shown(item) for item in episode.demonstrations],
        "query": shown(episode.query),
        "prediction": prediction,
        "controls": [
            (_control_label(condition, control, prediction), control)
            for condition in Condition
            if (control := controls.get((condition, prediction.query))) is not None
        ],
    }


def _control_label(condition: Condition, control: Prediction, real: Prediction) -> str:
    """The condition's name; a shuffle can be the identity, and then no answer has to change."""
    label = CONDITION_LABELS[condition.value]
    if condition is Condition.shuffled_answers and control.prompt_hash == real.prompt_hash:
        return f"{label} (this shuffle changed nothing)"
    return label


def _thumbnail(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    scale = THUMBNAIL / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def facts_of(config: RunConfig, provenance: Mapping[str, Any], results: Row) -> dict[str, str]:
    """The run in a few lines: backbones, machine, code, seeds."""
    launch = provenance["launches"][-1] if provenance.get("launches") else {}
    git = launch.get("git") or {}
    packages = launch.get("packages", {})
    named = [name for name in ("flamingo", "torch", "transformers") if name in packages]
    timing = results["timing"]
    facts = {
        "vision encoder": f"{config.vision.name} (frozen)",
        "language model": f"{config.language.name} ({_training(config.language.train)})",
        "training": f"{results['step']} steps, seed {config.seed}",
        "evaluation": f"seed {results['seed']}, computed in {results['settings']['precision']}",
        "protocol": f"{config.evaluation.protocol.value} (prompts, decoding, normalisation)",
        "demonstrations": _demonstrations(config),
        "code": (git.get("commit") or "")[:12] + (", with changes" if git.get("dirty") else ""),
        "packages": ", ".join(f"{name} {packages[name]}" for name in named),
    }
    if timing["new_predictions"]:
        facts["speed"] = (
            f"{timing['new_predictions']} predictions in {timing['seconds']:.0f} s "
            f"({timing['queries_per_second']} a second)"
        )
    return {name: value for name, value in facts.items() if value}


def _training(train: LanguageTraining) -> str:
    return train.value if train is LanguageTraining.frozen else f"trained: {train.value}"


def _demonstrations(config: RunConfig) -> str:
    told = config.evaluation.demonstrations
    if told.plans is not None:
        return f"as planned in {told.plans}"
    pool = f"the first {told.pool} of a random order" if told.pool else "all"
    seeds = ", ".join(map(str, config.evaluation.demonstration_seeds))
    return f"{told.strategy.value}, order {told.order.value}, pool: {pool}; seeds {seeds}"
