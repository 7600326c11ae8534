"""A trained run as others load it: its model and processor in one folder, under a card that tells
what it was trained on and what its evaluation gave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from flamingo.choices import Condition, LanguageTraining, Metric, Mixing
from flamingo.config import RunConfig
from flamingo.evaluation.tables import hundred, table
from flamingo.model.card import Results, model_card, write_card
from flamingo.model.hub import check_login, upload
from flamingo.naming import ALL, naming
from flamingo.runs import Run
from flamingo.source_config import ShardsConfig, SourceConfig


def publish(
    run: Run,
    folder: Path,
    *,
    step: int | None = None,
    include_backbones: bool = False,
    license: str | None = None,
    push_to: str | None = None,
    private: bool | None = None,
) -> str:
    """Write the model of ``run`` into ``folder`` and upload it to ``push_to``; returns what to say.

    Args:
        step: of the checkpoint; default: the newest.
        include_backbones: whether the frozen backbones are written too.
        license: an identifier of the hub's list, for the card.
        push_to: a repository of the hub; None: nothing is uploaded.
        private: whether the repository is made private if it is new.

    Raises:
        ValueError: for a folder that has something in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"to: expected a new or empty folder, got {folder}")
    at = run.checkpoint(step).step
    local = _local_backbones(run.config)
    if push_to is not None:
        if local and not include_backbones:
            raise ValueError(
                f"include_backbones: expected true with push_to={push_to}, got false: "
                f"{' and '.join(local)} is a folder of this machine"
            )
        check_login(push_to)
    model, processor = run.model(at)
    results = results_of(run, at)
    model.save_pretrained(folder, include_backbones=include_backbones)
    processor.save_pretrained(folder)
    card = model_card(
        model,
        name=push_to or folder.resolve().name,
        complete=include_backbones,
        data=origin_words(run) or data_words(run.config, at),
        results=results,
        license=license,
    )
    write_card(card, folder)
    said = [f"{folder}: the model of step {at}, its processor and a card"]
    if local and not include_backbones:
        said.append(
            f"Others cannot load it: {' and '.join(local)} is a folder of this machine; "
            "include_backbones=true writes the backbones too"
        )
    if results is None:
        said.append(f"The card has no results: the run is not evaluated at step {at}")
    if push_to is not None:
        said.append(f"Uploaded: {upload(folder, push_to, private=private)}")
    return "\n".join(said)


def _local_backbones(config: RunConfig) -> list[str]:
    """Those that are loaded from a folder here; a language model that trained is saved itself."""
    names = {"vision": config.vision.name}
    if config.language.train is LanguageTraining.frozen:
        names["language"] = config.language.name
    return [f"{part}.name={name}" for part, name in names.items() if Path(name).exists()]


def results_of(run: Run, step: int) -> Results | None:
    """The run's ``results.json`` for a card; None without one, or if it is of another step."""
    if not run.directory.results.exists():
        return None
    results = run.results
    return card_results(results) if results["step"] == step else None


def card_results(results: Mapping[str, Any]) -> Results:
    """The table of ``results.json`` and its numbers for the hub's index.

    The index has a metric for each shot count of the undisturbed prompts over all queries.
    """
    benchmarks = {benchmark["name"]: benchmark for benchmark in results["benchmarks"]}
    prompts = [f"- {b['title']}: `{b['prompt']}`".replace("\n", "\\n") for b in benchmarks.values()]
    text = [
        "By condition and number of demonstrations (of each class, in binding and classification), "
        "100 times each score ± its standard error, clustered by image:",
        "",
        table(dict(results)),
        "",
        "A demonstration as the model reads it, the query without its answer behind them:",
        "",
        *prompts,
    ]
    scores = [
        _score(row, benchmarks[row["benchmark"]])
        for row in results["model"]
        if row["condition"] == Condition.real.value
        and row["group"] == ALL
        and row["mean"] is not None
    ]
    return Results("\n".join(text), tuple(scores))


def _score(row: Mapping[str, Any], benchmark: Mapping[str, Any]) -> EvalResult:
    metric = Metric(benchmark["metric"])
    captions = metric is Metric.cider
    return EvalResult(
        task_type="image-to-text" if captions else "visual-question-answering",
        dataset_type=benchmark["name"],
        dataset_name=benchmark["title"],
        metric_type=metric.value,
        metric_value=float(hundred(row["mean"])),
        metric_name=f"{naming(metric).scale}; {benchmark['unit']}: {row['shots']}",
    )


def origin_words(run: Run) -> str | None:
    """Where the model of a converted run is from; None for one that was trained here."""
    if not run.directory.conversion.exists():
        return None
    source = Path(json.loads(run.directory.conversion.read_text())["source"])
    name = source.as_posix() if not source.exists() else source.name
    return f"Converted from `{name}`, whose authors tell what it was trained on."


TEXTS = ("prompt",)
"""Fields of sources whose text is no path; of paths the last part alone is told."""


def data_words(config: RunConfig, step: int) -> str:
    """What a run's model has read, as Markdown: a line a source, with all that decides it."""
    lines = [
        f"Trained for {step:,} steps (seed {config.seed}, learning rate {config.training.lr:g})."
    ]
    sources = {field.name: getattr(config.data, field.name) for field in fields(config.data)}
    for name, source in sources.items():
        if isinstance(source, SourceConfig):
            options = {field.name: getattr(source, field.name) for field in fields(source)}
            count = options.pop("sequences")
            told = ", ".join(
                f"{key.replace('_', ' ')} {value if key in TEXTS else _plain(value)}"
                for key, value in options.items()
            )
            lines.append(f"- {name.replace('_', ' ')}: {count} sequences a step ({told})")
    in_turn = config.data.mixing is Mixing.round_robin and len(lines) > 2
    if len(lines) > 1:
        lines.insert(
            1, "Each step reads one of these, in turn:\n" if in_turn else "Each step reads:\n"
        )
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, ShardsConfig):
        return value.hub or ", ".join(Path(file).name for file in value.files) or "none"
    return Path(value).name if isinstance(value, str) else str(getattr(value, "name", value))
