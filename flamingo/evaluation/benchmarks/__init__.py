"""Benchmarks, one file each, and the one place that builds them from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flamingo.config import BindingBenchmarkConfig, Collection, EvaluationConfig, RunConfig
from flamingo.data.concepts import Concept, ConceptSet, folder_concepts, load_concepts
from flamingo.data.words import made_up_words
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.benchmarks.binding import BindingBenchmark
from flamingo.evaluation.benchmarks.easy_vqa import EasyVQABenchmark
from flamingo.evaluation.demonstrations import generator

__all__ = ["Benchmark", "BindingBenchmark", "EasyVQABenchmark", "build_benchmarks"]


def build_benchmarks(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    easy_vqa_folder: Callable[[], Path],
    twemoji_folder: Callable[[], Path],
) -> list[Benchmark]:
    """The benchmarks of ``config.evaluation``; asks only for the folders that are needed.

    Raises ``ValueError`` if the evaluation holds out other concepts than training did.
    """
    evaluation = config.evaluation
    benchmarks: list[Benchmark] = []
    if evaluation.easy_vqa is not None:
        benchmarks.append(
            EasyVQABenchmark(
                easy_vqa_folder(),
                queries=evaluation.easy_vqa.queries,
                seed=evaluation.seed,
                shots=evaluation.easy_vqa.shots or evaluation.shots,
            )
        )
    words = made_up_words(tokenizer).held_out
    if evaluation.binding is not None:
        _check_split(config, evaluation.binding)
        load = partial(
            load_concepts, easy_vqa_folder=easy_vqa_folder, twemoji_folder=twemoji_folder
        )
        benchmarks += _collection(evaluation.binding, evaluation, words, load)
    if evaluation.folder is not None:
        benchmarks += _folder(evaluation.folder, evaluation, words)
    return benchmarks


def _collection(
    config: BindingBenchmarkConfig,
    evaluation: EvaluationConfig,
    words: Sequence[str],
    load: Callable[..., ConceptSet],
) -> list[Benchmark]:
    """Binding on the seen and on the held-out concepts of a collection."""
    concepts = load(
        config.collection,
        held_out=config.held_out,
        views=config.views,
        path=config.path,
        easy_vqa_split="test",
    )
    collection = config.collection
    benchmarks = []
    for split, members in (("seen", concepts.seen), ("held_out", concepts.held_out)):
        title = f"{_TITLES[collection]}, {split.replace('_', '-')} concepts"
        if members:
            name = f"{collection.value}_{split}"
            benchmarks += _bindings(config, evaluation, name, title, members, words)
    return benchmarks


def _folder(
    config: BindingBenchmarkConfig, evaluation: EvaluationConfig, words: Sequence[str]
) -> list[Benchmark]:
    """Binding on all classes of the user's own directory."""
    if config.path is None:
        raise ValueError(
            "evaluation.folder: expected collection=folder and a path, "
            f"got collection={config.collection.value}"
        )
    folder = Path(config.path)
    name = folder.resolve().name
    classes = folder_concepts(folder)
    return _bindings(config, evaluation, f"folder_{name}", f"Classes of {name}", classes, words)


_TITLES = {
    Collection.twemoji: "Emoji",
    Collection.easy_vqa_concepts: "easy-VQA shapes",
    Collection.folder: "Folder",
}


def _bindings(
    config: BindingBenchmarkConfig,
    evaluation: EvaluationConfig,
    name: str,
    title: str,
    concepts: Sequence[Concept],
    words: Sequence[str],
) -> list[Benchmark]:
    """One benchmark for each number of ways."""
    seed = evaluation.seed
    if config.concepts:
        # The first of a permutation: more concepts contain fewer.
        order = generator(seed, name, "concepts").sample(list(concepts), len(concepts))
        concepts = order[: config.concepts]
    return [
        BindingBenchmark(
            name=f"{name}_{ways}_ways",
            title=f"{title}, {ways} ways",
            concepts=concepts,
            words=words,
            ways=ways,
            queries=config.queries,
            seed=seed,
            shots=config.shots or evaluation.shots,
        )
        for ways in config.ways
    ]


def _check_split(config: RunConfig, binding: BindingBenchmarkConfig) -> None:
    trained = config.data.binding
    if trained is None or trained.collection is not binding.collection:
        return
    if (trained.held_out, trained.path) != (binding.held_out, binding.path):
        raise ValueError(
            "evaluation.binding: expected the concepts that training held out "
            f"(held_out={trained.held_out}, path={trained.path!r}), "
            f"got held_out={binding.held_out}, path={binding.path!r}"
        )
