"""The typed configuration of an evaluation: benchmarks, demonstrations, controls and protocol.

A benchmark whose section is not null is run. Paths are of the files as they were published; a split
without annotations gets predictions and a submission file, and no score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from flamingo.choices import (
    CLEVRGroup,
    Collection,
    Condition,
    Exclusion,
    GQAGroup,
    KarpathySplit,
    Metric,
    Order,
    Pooling,
    POPESetting,
    Protocol,
    Similarity,
    Strategy,
    VLICLTask,
    VQAGroup,
)
from flamingo.structured import build, plain, require

# ---------------------------------------------------------------------------- demonstrations


@dataclass(kw_only=True)
class DemonstrationsConfig:
    """How the demonstrations of benchmarks with a pool are chosen and ordered."""

    strategy: Strategy = Strategy.random
    order: Order = Order.drawn
    exclusion: Exclusion = Exclusion.same_image
    seeds: list[int] | None = None
    """Each seed draws demonstrations anew for the same queries; default: ``evaluation.seed``."""
    pool: int = 0
    """Demonstrations come from at most this many training items, drawn by ``evaluation.seed``;
    0: all. (OpenFlamingo: 2,048 for random ones, all for RICES.)"""
    order_seed: int | None = None
    """Of the order shuffled: other orders of the same demonstrations; default: the draw's seed."""
    similarity: Similarity = Similarity.image
    """For the strategies rices and diverse, and the orders by similarity."""
    pooling: Pooling = Pooling.mean
    """Of the features of an image; cls needs ``vision.keep_cls``."""
    question_weight: float = 0.5
    """Of the question against the image, for ``similarity=mixed``."""
    relevance: float = 0.5
    """Strategy diverse: similarity to the query against that among the demonstrations."""
    candidates: int = 128
    """Strategy diverse: how many of the most similar are considered; at least the most shots."""
    faiss: str | None = None
    """Search in an index of faiss (``pip install -e '.[faiss]'``) by its factory: ``Flat`` is
    exact, ``HNSW32`` or ``IVF1024,Flat`` approximate; null: exact search in torch."""
    fixed: list[str] = field(default_factory=list)
    """Strategy fixed: ids of training items, in reading order."""
    plans: str | None = None
    """A folder of plans (``<benchmark>/seed=<n>.jsonl``: the run's ``planned/``, or a copy of the
    ``plans/`` of an evaluation) to use instead of drawing. Of what else is said here, ``seeds`` and
    ``pool`` still hold: which of them are read, and which items they may name."""

    def __post_init__(self) -> None:
        name = "evaluation.demonstrations"
        for part in ("question_weight", "relevance"):
            value = getattr(self, part)
            require(0 <= value <= 1, f"{name}.{part}", "a number of [0, 1]", value)
        require(self.pool >= 0, f"{name}.pool", ">= 0", self.pool)
        require(self.candidates >= 1, f"{name}.candidates", ">= 1", self.candidates)
        allowed = Strategy.balanced is not self.strategy
        require(allowed, f"{name}.strategy", "another (binding alone is balanced)", "balanced")
        fixed = self.strategy is Strategy.fixed
        if fixed != bool(self.fixed):
            raise ValueError(
                f"{name}.fixed: expected ids with strategy=fixed and only then, "
                f"got strategy={self.strategy.value} and {len(self.fixed)} ids"
            )
        if self.seeds is not None:
            distinct = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds)
            require(distinct, f"{name}.seeds", "different seeds, at least one", self.seeds)


# ---------------------------------------------------------------------------- binding


def check_collection(
    name: str, collection: Collection, path: str | None, views: int, held_out: int
) -> None:
    """Raise ``ValueError`` for concepts that cannot be drawn; ``name`` is the section's key."""
    if (collection is Collection.folder) != (path is not None):
        raise ValueError(
            f"{name}.path: expected a directory with collection=folder and only then, "
            f"got collection={collection.value}, path={path!r}"
        )
    require(views >= 1, f"{name}.views", ">= 1", views)
    require(held_out >= 0, f"{name}.held_out", ">= 0", held_out)
    if collection is Collection.easy_vqa_concepts:
        few = "fewer than easy-VQA's 24 concepts"
        require(held_out < 24, f"{name}.held_out", few, held_out)


@dataclass(kw_only=True)
class BindingBenchmarkConfig:
    """n-way binding of held-out words, on seen and held-out concepts of a collection."""

    collection: Collection = Collection.twemoji
    path: str | None = None
    ways: list[int] = field(default_factory=lambda: [2, 5])
    queries: int = 200
    shots: list[int] | None = None
    """Instead of ``evaluation.shots``."""
    views: int = 9
    """Renderings of each emoji: ``k`` shots a class need ``k + 1`` images of it."""
    held_out: int = 250
    """As in training."""
    concepts: int = 100
    """Concepts of each split that episodes are drawn from (their images are encoded); 0: all."""

    _key = "evaluation.binding"

    def __post_init__(self) -> None:
        name = self._key
        check_collection(name, self.collection, self.path, self.views, self.held_out)
        enough = all(ways >= 2 for ways in self.ways) and bool(self.ways)
        require(enough, f"{name}.ways", ">= 2 each, at least one", self.ways)
        # Episodes are drawn without end: there is no "all" that 0 could mean.
        require(self.queries >= 1, f"{name}.queries", ">= 1", self.queries)


@dataclass(kw_only=True)
class FolderBenchmarkConfig(BindingBenchmarkConfig):
    """Binding on the user's own directory, ``path``, with a sub-directory a class."""

    collection: Collection = Collection.folder
    ways: list[int] = field(default_factory=lambda: [2])
    """At most as many as there are classes."""
    _key = "evaluation.folder"


# ---------------------------------------------------------------------------- data sets


@dataclass(kw_only=True)
class DatasetBenchmarkConfig:
    """What every benchmark on a data set has."""

    queries: int = 0
    """Test questions, drawn by ``evaluation.seed`` (fewer are the first of more); 0: all."""
    shots: list[int] | None = None
    """Instead of ``evaluation.shots``."""

    def __post_init__(self) -> None:
        require(self.queries >= 0, "evaluation: queries", ">= 0", self.queries)


@dataclass(kw_only=True)
class EasyVQABenchmarkConfig(DatasetBenchmarkConfig):
    """easy-VQA's 9,673 test questions, demonstrated by the training split; embedded data."""

    queries: int = 500


@dataclass(kw_only=True)
class VQAFiles:
    """A split in the format of the VQA API."""

    questions: str = MISSING
    annotations: str | None = None
    images: str = MISSING
    """The folder of ``COCO_<image_split>_<id>.jpg``."""
    image_split: str = MISSING
    """``train2014``, ``val2014`` or ``test2015``."""


@dataclass(kw_only=True)
class VQABenchmarkConfig(DatasetBenchmarkConfig):
    """VQAv2 and OK-VQA."""

    test: VQAFiles = field(default_factory=VQAFiles)
    train: VQAFiles = field(default_factory=VQAFiles)
    group: VQAGroup = VQAGroup.answer_type


@dataclass(kw_only=True)
class AnnotatedImages:
    """A split as one file of annotations and a folder of images."""

    annotations: str = MISSING
    images: str = MISSING


@dataclass(kw_only=True)
class FilesBenchmarkConfig(DatasetBenchmarkConfig):
    """VizWiz, TextVQA, Hateful Memes."""

    test: AnnotatedImages = field(default_factory=AnnotatedImages)
    train: AnnotatedImages = field(default_factory=AnnotatedImages)


@dataclass(kw_only=True)
class GQABenchmarkConfig(FilesBenchmarkConfig):
    """GQA; ``annotations`` are the question files."""

    group: GQAGroup = GQAGroup.structural


@dataclass(kw_only=True)
class CLEVRBenchmarkConfig(FilesBenchmarkConfig):
    """CLEVR; ``annotations`` are the question files."""

    group: CLEVRGroup = CLEVRGroup.question_type
    counting: bool = False
    """Only the questions that count."""
    scenes: bool = False
    """``annotations`` are the scene files: how many objects has each scene (VTAB's count)?"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one = not (self.counting and self.scenes)
        require(one, "evaluation.clevr", "counting (questions) or scenes, not both", "both")


@dataclass(kw_only=True)
class CaptionBenchmarkConfig(DatasetBenchmarkConfig):
    """COCO captions and Flickr30k in Karpathy's splits."""

    captions: str = MISSING
    """``dataset_coco.json`` or ``dataset_flickr30k.json``."""
    images: str = MISSING
    test_splits: list[KarpathySplit] = field(default_factory=lambda: [KarpathySplit.test])
    test_info: str | None = None
    """COCO alone: ``image_info_test2014.json``, whose images (in ``test2014`` below ``images``) are
    captioned for the server instead of ``test_splits``."""
    train_splits: list[KarpathySplit] = field(default_factory=lambda: [KarpathySplit.train])


@dataclass(kw_only=True)
class POPEBenchmarkConfig(DatasetBenchmarkConfig):
    """POPE. It has no training split: demonstrations are other questions, of other images."""

    questions: str = MISSING
    """The folder of ``coco_pope_<setting>.json``."""
    images: str = MISSING
    settings: list[POPESetting] = field(default_factory=lambda: list(POPESetting))


@dataclass(kw_only=True)
class ClassificationBenchmarkConfig(DatasetBenchmarkConfig):
    """Image classification; a split is a directory with a sub-directory a class."""

    test: str = MISSING
    """A directory of images alone has no labels: its images get predictions and no score."""
    train: str = MISSING
    class_names: str | None = None
    """A JSON object from sub-directory to class name."""


@dataclass(kw_only=True)
class VLICLBenchmarkConfig(DatasetBenchmarkConfig):
    """VL-ICL Bench: each task is a benchmark."""

    folder: str = MISSING
    tasks: list[VLICLTask] = field(default_factory=lambda: list(VLICLTask))


@dataclass(kw_only=True)
class Columns:
    """The column of each part of an example; "" for what the data set does not have.

    ``image``: an image or a list of them. ``question``: text. ``answers``: text, a whole number, a
    class label, or a list of texts or of ``{"answer": text}``; null (or a class label of -1) where
    the annotation is missing. ``id``: text or a number ("": the row's number). ``group``: text, a
    number or a class label. ``image_id``: text or a number that names the image, for where several
    rows have the same one ("": each row has its own).
    """

    image: str = "image"
    question: str = "question"
    answers: str = "answers"
    id: str = ""
    group: str = ""
    image_id: str = ""


@dataclass(kw_only=True)
class HuggingFaceBenchmarkConfig(DatasetBenchmarkConfig):
    """Any question answering data set that the ``datasets`` library loads."""

    source: str = MISSING
    """A hub name or a local folder."""
    name: str = MISSING
    """Of the benchmark: its folder of predictions."""
    test_split: str = "validation"
    train_split: str | None = "train"
    """Null: the other rows of the test split demonstrate."""
    configuration: str | None = None
    revision: str | None = None
    columns: Columns = field(default_factory=Columns)
    metric: Metric = Metric.exact_match


# ---------------------------------------------------------------------------- the evaluation


@dataclass(kw_only=True)
class EnsembleConfig:
    """Several prompts a query, their answers put together."""

    permutations: int | None = None
    """Orders of the demonstrations, the first the plan's; null: the protocol's (native: 1)."""
    templates: list[str] = field(default_factory=list)
    """More templates, each with ``{question}`` and, at its end, ``{answer}``."""

    def __post_init__(self) -> None:
        name = "evaluation.ensemble"
        orders = self.permutations
        require(orders is None or orders >= 1, f"{name}.permutations", ">= 1 or null", orders)
        for template in self.templates:
            shape = template.endswith("{answer}") and "{question}" in template
            require(shape, f"{name}.templates", "'...{question}...{answer}'", template)


@dataclass(kw_only=True)
class EvaluationConfig:
    """In-context evaluation."""

    shots: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8])
    """Demonstrations, or (binding) demonstrations a class."""
    protocol: Protocol = Protocol.native
    conditions: list[Condition] = field(
        default_factory=lambda: [
            Condition.real,
            Condition.blank_query,
            Condition.shuffled_answers,
        ]
    )
    """What the model gets to see: the prompt as it is, and perturbations as controls."""
    demonstrations: DemonstrationsConfig = field(default_factory=DemonstrationsConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    easy_vqa: EasyVQABenchmarkConfig | None = None
    binding: BindingBenchmarkConfig | None = None
    folder: FolderBenchmarkConfig | None = None
    vqav2: VQABenchmarkConfig | None = None
    ok_vqa: VQABenchmarkConfig | None = None
    vizwiz: FilesBenchmarkConfig | None = None
    textvqa: FilesBenchmarkConfig | None = None
    gqa: GQABenchmarkConfig | None = None
    coco: CaptionBenchmarkConfig | None = None
    flickr30k: CaptionBenchmarkConfig | None = None
    hateful_memes: FilesBenchmarkConfig | None = None
    pope: POPEBenchmarkConfig | None = None
    clevr: CLEVRBenchmarkConfig | None = None
    classification: ClassificationBenchmarkConfig | None = None
    vl_icl: VLICLBenchmarkConfig | None = None
    hugging_face: HuggingFaceBenchmarkConfig | None = None
    seed: int = 0
    """Draws queries and, unless ``demonstrations.seeds`` says otherwise, demonstrations."""
    control_queries: int = 0
    """Queries that the controls are run on, the first of all; 0: all."""
    batch_size: int = 16
    max_new_tokens: int | None = None
    """Of an open answer, instead of the protocol's for the benchmark."""
    beams: int | None = None
    """Of an open answer, instead of the protocol's; 1: greedy."""
    normalize_by_length: bool | None = None
    """Rank candidates by the mean, not the sum, of their tokens' log-likelihoods; null: as the
    protocol does."""
    max_tokens: int = 2048
    """A longer prompt does not fit: its shot count is left out, and the report says so."""

    def __post_init__(self) -> None:
        given = {section.name: getattr(self, section.name) for section in fields(self)}
        own = {name: getattr(section, "shots", None) for name, section in given.items()}
        shots = {
            f"evaluation.{name}.shots": asked for name, asked in own.items() if asked is not None
        }
        for name, asked in ({"evaluation.shots": self.shots} | shots).items():
            rising = bool(asked) and asked == sorted(set(asked)) and asked[0] >= 0
            require(rising, name, "increasing shot counts", asked)
        for name in ("batch_size", "max_tokens"):
            require(getattr(self, name) >= 1, f"evaluation.{name}", ">= 1", getattr(self, name))
        for name in ("max_new_tokens", "beams"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"evaluation.{name}", ">= 1 or null", value)
        told = [condition.value for condition in self.conditions]
        once = len(set(told)) == len(told) and Condition.real in self.conditions
        require(once, "evaluation.conditions", "each once, real among them", told)
        if Condition.text_only_zero_shot in self.conditions:
            zero = any(0 in asked for asked in (self.shots, *shots.values()))
            require(zero, "evaluation.shots", "0 among them for text_only_zero_shot", self.shots)
        if self.folder is not None:
            actual = self.folder.collection
            name = "evaluation.folder.collection"
            require(actual is Collection.folder, name, "folder", actual.value)

    @property
    def demonstration_seeds(self) -> list[int]:
        """Of the draws of demonstrations, at least one."""
        return self.demonstrations.seeds or [self.seed]


# ---------------------------------------------------------------------------- the command


@dataclass(kw_only=True)
class EvaluateConfig:
    """What ``experiments/evaluate.py`` is told. (Here, as a launched job has to find it.)"""

    run: str = MISSING
    """The run's directory."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""
    data_root: str = "data"
    """Where the files of ``benchmark=`` look for the data sets."""
    plan_only: bool = False
    """Write the plans of demonstrations and end."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def recorded(evaluation: EvaluationConfig) -> dict[str, Any]:
    """``settings.evaluation`` of a ``results.json``, enums by name: not the size of batches, on
    which results do not depend."""
    return {key: value for key, value in plain(evaluation).items() if key != "batch_size"}


def settings_of(results: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``settings.evaluation`` of the ``results.json`` at ``path``; later fields by default.

    Raises ``ValueError`` naming file and field for one that is not known any more.
    """
    try:
        return recorded(build(results["settings"]["evaluation"], EvaluationConfig))
    except ValueError as error:
        raise ValueError(f"{path}: settings.evaluation.{error}") from error
