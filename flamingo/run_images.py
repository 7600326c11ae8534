"""The images behind predictions, found again by rebuilding the benchmarks of their run.

Predictions name items by their ids and hold no pixels. Where a run's data are still there, its
benchmarks are built from the settings it was evaluated with, a benchmark when one of its images is
asked for. That images are those the model was shown is checked: their names by the hash of the
prompt, and what files hold by a digest, where the version that predicted has written one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from transformers import PreTrainedTokenizerBase

from flamingo.backbones import assets
from flamingo.choices import Condition, Order, Strategy
from flamingo.config import RunConfig
from flamingo.evaluation.benchmarks import (
    Benchmark,
    BindingBenchmark,
    DatasetBenchmark,
    build_benchmarks,
)
from flamingo.evaluation.benchmarks.open_mi import OpenMIBenchmark
from flamingo.evaluation.cells import Contents
from flamingo.evaluation.perturbations import perturb
from flamingo.evaluation.prompts import Episode, Item, hash_of
from flamingo.evaluation_config import EvaluationConfig
from flamingo.run_checks import as_row
from flamingo.structured import build, nearest, optional_sections, plain
from flamingo.types import ImageRef, Media

FOLDER = "folder/"
"""Before the path of an image in a folder of classes, in its key."""
Settings = tuple[Path, Mapping[str, Any]]
"""A file, and what it says about an evaluation."""


@dataclass(frozen=True)
class Data:
    """Where a run's data are.

    The two functions give the folders of the embedded data sets; by default these are fetched if
    they are not in the cache. ``moved``: folders of the run's configuration that stand elsewhere
    here, ``{"/data/coco": "/mnt/coco"}``.
    """

    easy_vqa_folder: Callable[[], Path] = assets.easy_vqa_folder
    twemoji_folder: Callable[[], Path] = assets.twemoji_folder
    moved: Mapping[str, str] = field(default_factory=dict)

    def _moves(self) -> list[tuple[str, str]]:
        return [(old.rstrip("/"), new.rstrip("/")) for old, new in self.moved.items()]

    def misspelt(self, paths: Iterable[str]) -> list[str]:
        """What to say of each key of ``moved`` that is none of ``paths`` and above none."""
        known = {str(folder) for path in paths for folder in (Path(path), *Path(path).parents)}
        return [
            f"  moved: no path of the run's configuration is {old!r} or in it{nearest(old, known)}"
            for old in self.moved
            if old.rstrip("/") not in known
        ]

    def here(self, values: Any) -> Any:
        """Nested ``values`` of a configuration, with each path as it is on this machine."""
        if isinstance(values, Mapping):
            return {key: self.here(value) for key, value in values.items()}
        if isinstance(values, list):
            return [self.here(value) for value in values]
        return self.place(values) if isinstance(values, str) else values

    def place(self, path: str) -> str:
        """Where ``path`` is on this machine."""
        for old, new in self._moves():
            if path == old or path.startswith(f"{old}/"):
                return new + path.removeprefix(old)
        return path

    def id_here(self, name: str) -> str:
        """An item's id, which in a folder of classes is the path of its image."""
        return FOLDER + self.place(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else name

    def key_there(self, image: ImageRef) -> ImageRef:
        """``image`` by the key that it had where the run was evaluated."""
        key = image.key
        for old, new in self._moves():
            key = key.replace(f"{FOLDER}{new}/", f"{FOLDER}{old}/")
        return replace(image, key=key)


@dataclass(frozen=True)
class Shown:
    """The media of a prompt as the model was shown them; None for an item of text alone."""

    query_media: Media | None
    demonstration_media: tuple[Media | None, ...]

    @property
    def query(self) -> Image.Image | None:
        """The query's image in RGB. Raises ``ValueError`` or ``OSError`` if it is damaged."""
        return _opened(self.query_media)

    @property
    def demonstrations(self) -> list[Image.Image | None]:
        """The demonstrations' images in RGB, in the order of the prompt; raises as the query."""
        return [_opened(media) for media in self.demonstration_media]

    @property
    def in_prompt(self) -> list[Image.Image]:
        """One image an ``<image>`` token of the prompt, in its order: what a processor takes."""
        return [image for image in (*self.demonstrations, self.query) if image is not None]


def _opened(media: Media | None) -> Image.Image | None:
    """A benchmark's items have one frame."""
    return None if media is None else media.frames[0].open()


# ---------------------------------------------------------------------------- benchmarks


def without_plans(evaluation: EvaluationConfig) -> EvaluationConfig:
    """``evaluation`` for looking items up: no plan is read, and none needs retrieval features."""
    plain = replace(
        evaluation.demonstrations, strategy=Strategy.random, order=Order.drawn, fixed=[], plans=None
    )
    return replace(evaluation, demonstrations=plain)


def media_of(benchmark: Benchmark) -> dict[str, Media]:
    """The medium of every query, and of every item that can demonstrate, by its id."""
    match benchmark:
        case DatasetBenchmark():
            media = {f"test/{example.id}": Media(example.images) for example in benchmark.examples}
            return media | {i.id: i.media for i in benchmark.pool if i.media is not None}
        case BindingBenchmark():
            views = [view for concept in benchmark.concepts for view in concept.views]
            asked = [episode.query for episode in benchmark.episodes(0, benchmark.seeds[0])]
            media = {view.key: Media((view,)) for view in views}
            return media | {i.id: i.media for i in asked if i.media is not None}
        case OpenMIBenchmark():
            media = {f"test/{example.id}": Media(example.images) for example in benchmark.queries}
            support = benchmark.support.values()
            return media | {f"train/{example.id}": Media(example.images) for example in support}
    raise AssertionError(f"{benchmark.name}: a kind of benchmark whose items are not known here")


SECTIONS = [name for name in optional_sections(EvaluationConfig) if "." not in name]
"""Of the evaluation, those that each stand for a benchmark or a family of them."""


@dataclass(frozen=True)
class _Built:
    """A benchmark and its media by id."""

    benchmark: Benchmark
    media: Mapping[str, Media]


# ---------------------------------------------------------------------------- a run's images


class RunImages:
    """Finds the images of a run's predictions; builds each benchmark at most once.

    ``settings`` are tried in their order. Called with a prediction, a row of ``Run.episodes()`` or
    ``Run.predictions()``.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        settings: Sequence[Settings],
        tokenizer: Callable[[], PreTrainedTokenizerBase],
        data: Data,
    ) -> None:
        self._path, self._config, self._data = path, config, data
        self._settings, self._tokenizer = settings, tokenizer
        self._configs: dict[Path, RunConfig | str] = {}
        self._sections: dict[tuple[Path, str], dict[str, _Built] | str] = {}

    def __call__(self, row: Mapping[str, Any] | pd.Series) -> Shown:
        """The media of the prompt of ``row``, as its condition showed them.

        Raises ``ValueError`` for what is no row, and naming what is missing: data, a benchmark of
        the settings, an item, or images that are still the ones that the model was shown.
        """
        prediction = as_row(row)
        reasons = []
        for settings in self._settings:
            try:
                built = self._built(settings, prediction["benchmark"])
                return _shown(built, prediction, self._data)
            except (ValueError, OSError) as error:
                reasons.append(f"  by {settings[0]}: {error}")
        raise ValueError(
            "\n".join(
                [
                    f"{self._path}: expected the images of {prediction['benchmark']}, query "
                    f"{prediction['query']!r}, as the model was shown them, found none:",
                    *reasons,
                    *self._data.misspelt(self._paths()),
                ]
            )
        )

    def _built(self, settings: Settings, name: str) -> _Built:
        """The benchmark of that name. Builds a section at a time: others may lack their data."""
        file, told = settings
        config = self._evaluated_by(settings)
        if isinstance(config, str):
            raise ValueError(config)
        reasons = []
        given = [own for own in SECTIONS if getattr(config.evaluation, own) is not None]
        # Most benchmarks are called as their section: those first.
        for section in sorted(given, key=lambda section: not name.startswith(section)):
            if (file, section) not in self._sections:
                self._sections[file, section] = self._build(config, section, _folder_name(told))
            found = self._sections[file, section]
            if isinstance(found, str):
                reasons.append(f"{section}: {found}")
            elif name in found:
                return found[name]
        raise ValueError("; ".join(reasons) or f"it has no benchmark {name}")

    def _evaluated_by(self, settings: Settings) -> RunConfig | str:
        """The run's configuration with these settings, or why they are none of this version."""
        file, told = settings
        if file not in self._configs:
            values = {**plain(self._config), "evaluation": told}
            try:
                self._configs[file] = build(self._data.here(values), RunConfig)
            except ValueError as error:
                self._configs[file] = str(error)
        return self._configs[file]

    def _paths(self) -> Iterator[str]:
        """Texts of all configurations; paths are among them."""
        yield from _texts(plain(self._config))
        for _, told in self._settings:
            yield from _texts(told)

    def _build(
        self, config: RunConfig, section: str, folder_name: str | None
    ) -> dict[str, _Built] | str:
        """The benchmarks of a section by name, or why they cannot be built."""
        others = dict.fromkeys(own for own in SECTIONS if own != section)
        # What conditions ask of the others does not matter here.
        alone = replace(config.evaluation, **others, conditions=[Condition.real])
        try:
            benchmarks = build_benchmarks(
                replace(config, evaluation=without_plans(alone)),
                self._tokenizer(),
                self._data.easy_vqa_folder,
                self._data.twemoji_folder,
                folder_name=folder_name,
            )
            return {own.name: _Built(own, media_of(own)) for own in benchmarks}
        except (ValueError, OSError) as error:
            return str(error)


def _folder_name(told: Mapping[str, Any]) -> str | None:
    """What the benchmark of the user's own directory is called after, where it was evaluated."""
    path = (told.get("folder") or {}).get("path")
    return None if path is None else Path(path).resolve().name


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping | list):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _texts(value)


def _shown(built: _Built, row: Mapping[str, Any], data: Data) -> Shown:
    names = [*row["demonstrations"], row["query"]]
    found = {name: built.media.get(data.id_here(name)) for name in names}
    if missing := [name for name, medium in found.items() if medium is None]:
        raise ValueError(
            f"{len(missing)} of {len(names)} items are not among those of the benchmark, such as "
            f"{missing[0]!r}"
        )
    *shown, query = [Item(name, found[name], "", "") for name in names]
    episode = Episode(query, tuple(shown), int(row["shots"]))
    seen = _perturbed(episode, Condition(row["condition"]), built.benchmark)
    media = [item.media for item in (*seen.demonstrations, seen.query)]
    hashed = [Media(tuple(map(data.key_there, own.frames))) for own in media if own is not None]
    if hash_of(row["prompt"], hashed, row["candidates"]) != row["prompt_hash"]:
        raise ValueError("its items are other images now than those that the model was shown")
    contents = Contents()
    contents.read([seen])
    if row.get("contents") and contents([seen]) != row["contents"]:
        raise ValueError("its images show something else now than when the model was shown them")
    return Shown(media[-1], tuple(media[:-1]))


def _perturbed(episode: Episode, condition: Condition, benchmark: Benchmark) -> Episode:
    """With the images of ``condition``; the ids of a prediction are in its order already."""
    match condition:
        case (
            Condition.real
            | Condition.shuffled_answers
            | Condition.flipped_answers
            | Condition.swapped_questions
            | Condition.reversed_order
        ):
            return episode
        case _:
            seed, name = benchmark.seed, benchmark.name
            seen = perturb(episode, condition, seed, name, benchmark.borrowed)
            assert seen is not None, "predicted under a condition that changes nothing"
            return seen
