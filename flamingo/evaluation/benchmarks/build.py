"""The benchmarks of a configuration: binding here, those on data sets in ``build_datasets``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flamingo.choices import Collection
from flamingo.config import RunConfig
from flamingo.data.concepts import Concept, ConceptSet, folder_concepts, load_concepts
from flamingo.data.words import made_up_words
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.benchmarks.binding import BINDING_TASK, BindingBenchmark
from flamingo.evaluation.benchmarks.build_datasets import dataset_benchmarks
from flamingo.evaluation.draws import generator
from flamingo.evaluation.planner import Retrieve
from flamingo.evaluation.tasks import adapted
from flamingo.evaluation_config import BindingBenchmarkConfig, EvaluationConfig


def build_benchmarks(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    easy_vqa_folder: Callable[[], Path],
    twemoji_folder: Callable[[], Path],
    retrieve: Retrieve | None = None,
    *,
    folder_name: str | None = None,
) -> list[Benchmark]:
    """The benchmarks of ``config.evaluation``; asks only for the folders that are needed.

    ``retrieve`` gives retrieval features, for strategies that look at similarity. ``folder_name``:
    what the user's own directory was called where the run was evaluated, if it has moved. Raises
    ``ValueError`` for files that do not hold what their benchmark expects, for missing images, for
    two benchmarks of one name, and if the evaluation holds out other concepts than training did.
    """
    evaluation = config.evaluation
    benchmarks = dataset_benchmarks(evaluation, easy_vqa_folder, retrieve)
    words = made_up_words(tokenizer).held_out
    if evaluation.binding is not None:
        _check_split(config, evaluation.binding)
        load = partial(
            load_concepts, easy_vqa_folder=easy_vqa_folder, twemoji_folder=twemoji_folder
        )
        benchmarks += _collection(evaluation.binding, evaluation, words, load)
    if evaluation.folder is not None:
        benchmarks += _folder(evaluation.folder, evaluation, words, folder_name)
    (name, count), *_ = Counter(b.name for b in benchmarks).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"evaluation: expected benchmarks of different names, got {name!r} twice")
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
    config: BindingBenchmarkConfig,
    evaluation: EvaluationConfig,
    words: Sequence[str],
    name: str | None,
) -> list[Benchmark]:
    """Binding on all classes of the user's own directory, called ``name`` or as it is here."""
    if config.path is None:
        raise ValueError(
            "evaluation.folder: expected collection=folder and a path, "
            f"got collection={config.collection.value}"
        )
    folder = Path(config.path)
    name = folder.resolve().name if name is None else name
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
    seed, stored = evaluation.seed, evaluation.demonstrations.plans
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
            seeds=evaluation.demonstration_seeds,
            shots=config.shots or evaluation.shots,
            task=adapted(BINDING_TASK, evaluation),
            stored=None if stored is None else Path(stored),
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
