"""The typed configuration: dataclasses are the schema and hold every default.

``conf/`` holds differences only. Hydra composes them against this schema (a typo or a wrong type
fails there); :func:`to_config` turns the result into the dataclasses, and each ``__post_init__``
refuses what makes no sense across fields, before any weight is loaded. Nothing changes a config
after it is built; derived values are properties.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from flamingo.structured import build


def _require(condition: bool, name: str, expected: str, actual: object) -> None:
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {actual!r}")


class MediaVisibility(Enum):
    """Which media a text token attends to (paper, section 2.3)."""

    immediate = "immediate"
    """The last medium before it alone: the paper's default."""
    all_previous = "all_previous"


class Activation(Enum):
    """Of the feed-forward layers of what trains."""

    squared_relu = "squared_relu"
    """The paper's."""
    gelu = "gelu"
    """OpenFlamingo's."""


class Precision(Enum):
    """Of the forward and backward pass; the trained weights are fp32."""

    auto = "auto"
    """bf16 where the device computes it natively, else fp32."""
    bf16 = "bf16"
    fp32 = "fp32"


class Schedule(Enum):
    """Of the learning rate after its warm-up."""

    constant = "constant"
    cosine = "cosine"
    linear = "linear"


class WandbMode(Enum):
    """Where runs are tracked besides ``metrics.jsonl``."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class Collection(Enum):
    """Labelled images that concepts can be drawn from."""

    twemoji = "twemoji"
    easy_vqa_concepts = "easy_vqa_concepts"
    """easy-VQA's shape x colour combinations."""
    folder = "folder"
    """Any directory with one sub-directory a class."""


# ---------------------------------------------------------------------------- backbones


@dataclass(kw_only=True)
class VisionConfig:
    """A frozen vision encoder: a hub name, a local folder, or ``efficientnet-lite0`` (embedded)."""

    name: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    layer: int = -1
    """Index into the hidden states of a transformer encoder; -1 is the last block's output."""
    keep_cls: bool = False
    final_norm: bool = False
    """Whether the encoder's last LayerNorm is applied (OpenFlamingo: not)."""


@dataclass(kw_only=True)
class LanguageConfig:
    """A frozen LM: a hub name, a local folder, or ``smollm2-135m-instruct`` (embedded)."""

    name: str = "HuggingFaceTB/SmolLM2-135M"
    revision: str | None = None


# ---------------------------------------------------------------------------- model


@dataclass(kw_only=True)
class ResamplerConfig:
    """Perceiver resampler; defaults are the paper's (section 2.1, appendix A.1.1)."""

    depth: int = 6
    num_latents: int = 64
    heads: int = 16
    dim_head: int = 96
    ff_mult: int = 4
    activation: Activation = Activation.squared_relu
    max_frames: int = 8
    """Length of the table of frame-time embeddings: the longest clip."""
    latent_std: float = 1.0
    """Standard deviation of the initial latents."""
    standardize_features: bool = False
    """Scale vision features per channel by statistics that are stored in the checkpoint."""

    def __post_init__(self) -> None:
        for name in ("depth", "num_latents", "heads", "dim_head", "ff_mult", "max_frames"):
            _require(getattr(self, name) >= 1, f"resampler.{name}", ">= 1", getattr(self, name))
        _require(self.latent_std > 0, "resampler.latent_std", "> 0", self.latent_std)


@dataclass(kw_only=True)
class CrossAttentionConfig:
    """Gated cross-attention; defaults are the paper's (section 2.2, appendix A.1.2).

    The blocks stand before LM layers ``layers`` if given, else before every layer ``i`` with
    ``(i + 1) % every == 0``. Exactly one of the two is set.
    """

    every: int | None = 1
    layers: list[int] | None = None
    heads: int = 16
    dim_head: int = 128
    ff_mult: int = 4
    activation: Activation = Activation.squared_relu
    gate_init: float = 0.0
    """Initial value of the gate's scalar (before tanh)."""
    attention_init_scale: float = 1.0
    """Factor on the initial weights of the attention's output projection. At 1 its output is about
    0.3 a channel, which an LM with a stream many times as large hardly hears."""
    feed_forward_init_scale: float = 1.0
    """Factor on the initial weights of the feed-forward's last linear; 0: silent at first."""
    language_model_norms: bool = False
    """Start a block's two norms at the scale of the norm in the LM layer behind it. In small LMs a
    few channels hold most of the stream; the LM's norms turn them down, a new LayerNorm does not
    and passes on little else."""
    media: MediaVisibility = MediaVisibility.immediate

    def __post_init__(self) -> None:
        for name in ("heads", "dim_head", "ff_mult"):
            _require(
                getattr(self, name) >= 1, f"cross_attention.{name}", ">= 1", getattr(self, name)
            )
        for name in ("attention_init_scale", "feed_forward_init_scale"):
            value = getattr(self, name)
            _require(value >= 0, f"cross_attention.{name}", ">= 0", value)
        if (self.every is None) == (self.layers is None):
            raise ValueError(
                "cross_attention: expected exactly one of every and layers, "
                f"got every={self.every!r}, layers={self.layers!r}"
            )
        if self.every is not None:
            _require(self.every >= 1, "cross_attention.every", ">= 1", self.every)
        if self.layers is not None:
            increasing = self.layers == sorted(set(self.layers)) and bool(self.layers)
            _require(
                increasing and self.layers[0] >= 0,
                "cross_attention.layers",
                "increasing layer indices, at least one",
                self.layers,
            )


@dataclass(kw_only=True)
class ModelConfig:
    """What trains."""

    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)


# ---------------------------------------------------------------------------- data


@dataclass(kw_only=True)
class SourceConfig:
    """What every training source has: its share of a step and of the loss."""

    sequences: int = 8
    """Sequences of this source in every optimisation step, over all processes."""
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.sequences >= 1, "sequences", ">= 1", self.sequences)
        _require(self.loss_weight > 0, "loss_weight", "> 0", self.loss_weight)


@dataclass(kw_only=True)
class EasyVQASourceConfig(SourceConfig):
    """easy-VQA questions packed as demonstrations and a query; answers are learned."""

    pairs: int = 4
    """Images in a sequence, each with its questions and answers."""
    questions_per_image: int = 1
    """Question-answer pairs after each image (fewer where an image has fewer questions)."""
    learn_all_text: bool = False
    """Learn questions too, not answers alone."""
    blank_rate: float = 0.0
    """Share of images shown as the blank one of evaluation. Its answers are then what the question
    alone gives away; a model that never saw it answers it in ways that mean nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pairs", "questions_per_image"):
            _require(getattr(self, name) >= 1, f"data.easy_vqa.{name}", ">= 1", getattr(self, name))
        rate = self.blank_rate
        _require(0 <= rate < 1, "data.easy_vqa.blank_rate", "in [0, 1)", rate)


def _check_collection(config: BindingSourceConfig | BindingBenchmarkConfig, name: str) -> None:
    if (config.collection is Collection.folder) != (config.path is not None):
        raise ValueError(
            f"{name}.path: expected a directory with collection=folder and only then, "
            f"got collection={config.collection.value}, path={config.path!r}"
        )
    _require(config.views >= 1, f"{name}.views", ">= 1", config.views)
    _require(config.held_out >= 0, f"{name}.held_out", ">= 0", config.held_out)
    if config.collection is Collection.easy_vqa_concepts:
        few = "fewer than easy-VQA's 24 concepts"
        _require(config.held_out < 24, f"{name}.held_out", few, config.held_out)


@dataclass(kw_only=True)
class BindingSourceConfig(SourceConfig):
    """Concept-binding episodes: made-up words name concepts that only the context tells."""

    collection: Collection = Collection.twemoji
    path: str | None = None
    """The class-per-folder directory, for ``collection=folder``."""
    min_ways: int = 2
    max_ways: int = 5
    images: int = 8
    """Images in a sequence."""
    views: int = 3
    """Random renderings of each emoji."""
    held_out: int = 250
    """Concepts never trained on (for easy-VQA's 24: at most 23)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_collection(self, "data.binding")
        _require(
            2 <= self.min_ways <= self.max_ways,
            "data.binding.min_ways, max_ways",
            "2 <= min_ways <= max_ways",
            (self.min_ways, self.max_ways),
        )
        _require(self.images > self.max_ways, "data.binding.images", "> max_ways", self.images)


@dataclass(kw_only=True)
class DataConfig:
    """The mixture: each source that is not null contributes to every step."""

    easy_vqa: EasyVQASourceConfig | None = None
    binding: BindingSourceConfig | None = None
    max_tokens: int = 512
    """A longer sequence is an error (nothing is cut silently)."""
    cache_features: bool = True
    """Encode each image once into the feature cache, instead of at every step."""
    feature_cache: str | None = None
    """Folder of the feature cache; default: below the user's cache folder."""
    workers: int = 0
    """Processes that prepare batches."""

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "data.max_tokens", ">= 1", self.max_tokens)
        _require(self.workers >= 0, "data.workers", ">= 0", self.workers)
        if self.feature_cache is not None and not self.cache_features:
            raise ValueError(
                "data.feature_cache: expected null with cache_features=false (nothing is cached), "
                f"got {self.feature_cache!r}"
            )


# ---------------------------------------------------------------------------- training


@dataclass(kw_only=True)
class TrainingConfig:
    """Optimisation, validation and checkpoints."""

    steps: int = 1000
    lr: float = 1e-4
    warmup_steps: int = 100
    schedule: Schedule = Schedule.cosine
    min_lr_fraction: float = 0.0
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip_norm: float = 1.0
    micro_batches: int = 1
    """A step's sequences are processed in this many parts (gradient accumulation)."""
    precision: Precision = Precision.auto
    gradient_checkpointing: bool = False
    log_every: int = 10
    eval_every: int = 0
    """Steps between validation losses on unseen sequences; 0: never."""
    eval_batches: int = 4
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "log_every", "checkpoint_every", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        _require(self.lr > 0, "training.lr", "> 0", self.lr)
        _require(self.clip_norm > 0, "training.clip_norm", "> 0", self.clip_norm)
        _require(
            0 <= self.warmup_steps < self.steps,
            "training.warmup_steps",
            f"0 <= warmup_steps < steps ({self.steps})",
            self.warmup_steps,
        )
        _require(
            0 <= self.min_lr_fraction <= 1,
            "training.min_lr_fraction",
            "between 0 and 1",
            self.min_lr_fraction,
        )
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(two, "training.betas", "two numbers of [0, 1)", self.betas)
        _require(self.weight_decay >= 0, "training.weight_decay", ">= 0", self.weight_decay)
        _require(self.eval_every >= 0, "training.eval_every", ">= 0", self.eval_every)
        _require(self.eval_batches >= 1, "training.eval_batches", ">= 1", self.eval_batches)


# ---------------------------------------------------------------------------- evaluation


@dataclass(kw_only=True)
class EasyVQABenchmarkConfig:
    """easy-VQA's test questions."""

    queries: int = 500
    """Test questions, drawn by the benchmark seed; 0: all 9,673."""
    shots: list[int] | None = None
    """Instead of ``evaluation.shots``."""


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

    def __post_init__(self) -> None:
        _check_collection(self, "evaluation.binding")
        _require(
            all(ways >= 2 for ways in self.ways) and bool(self.ways),
            "evaluation.binding.ways",
            ">= 2 each, at least one",
            self.ways,
        )
        _require(self.queries >= 0, "evaluation.binding.queries", ">= 0", self.queries)


@dataclass(kw_only=True)
class FolderBenchmarkConfig(BindingBenchmarkConfig):
    """Binding on the user's own directory, ``path``, with a sub-directory a class."""

    collection: Collection = Collection.folder
    ways: list[int] = field(default_factory=lambda: [2])
    """At most as many as there are classes."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """In-context evaluation; every control of ``evaluation/perturbations.py`` always runs."""

    shots: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 8])
    """Demonstrations (easy-VQA) or demonstrations a class (binding)."""
    easy_vqa: EasyVQABenchmarkConfig | None = None
    binding: BindingBenchmarkConfig | None = None
    folder: FolderBenchmarkConfig | None = None
    seed: int = 0
    """Draws queries and demonstrations."""
    control_queries: int = 0
    """Queries that the controls are run on, the first of all; 0: all."""
    batch_size: int = 16
    max_new_tokens: int = 5
    max_tokens: int = 2048
    """A longer prompt does not fit: its shot count is left out, and the report says so."""

    def __post_init__(self) -> None:
        _require(
            bool(self.shots) and self.shots == sorted(set(self.shots)) and self.shots[0] >= 0,
            "evaluation.shots",
            "increasing shot counts",
            self.shots,
        )
        for name in ("batch_size", "max_new_tokens", "max_tokens"):
            _require(getattr(self, name) >= 1, f"evaluation.{name}", ">= 1", getattr(self, name))
        if self.folder is not None:
            actual = self.folder.collection
            name = "evaluation.folder.collection"
            _require(actual is Collection.folder, name, "folder", actual.value)


# ---------------------------------------------------------------------------- the run


@dataclass(kw_only=True)
class TrackingConfig:
    """Experiment tracking."""

    wandb: WandbMode = WandbMode.disabled
    project: str = "flamingo"


@dataclass(kw_only=True)
class RunConfig:
    """One training run and its evaluation."""

    name: str = MISSING
    """Names the run's directory, ``<runs>/<name>/seed=<seed>``."""
    seed: int = 0
    runs: str = "runs"
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        one_folder = self.name == Path(self.name).name and self.name not in ("", "..")
        _require(one_folder, "name", "the name of one folder, without slashes", self.name)
        _require(self.seed >= 0, "seed", ">= 0", self.seed)
        sources = [s for s in (self.data.easy_vqa, self.data.binding) if s is not None]
        sequences = sum(source.sequences for source in sources)
        if sources and self.training.micro_batches > sequences:
            raise ValueError(
                f"training.micro_batches: expected at most a step's {sequences} sequences, "
                f"got {self.training.micro_batches}"
            )

    @property
    def directory(self) -> Path:
        """The run's folder: a seed of the same settings is a run beside it."""
        return Path(self.runs) / self.name / f"seed={self.seed}"


# ---------------------------------------------------------------------------- to and from YAML


def to_config(composed: DictConfig) -> RunConfig:
    """The composed configuration as dataclasses, checked. Raises ``ValueError`` with the field."""
    return build(composed, RunConfig)


def config_to_yaml(config: RunConfig) -> str:
    """A config as YAML, every value spelled out. :func:`config_from_yaml` reads it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_from_yaml(text: str) -> RunConfig:
    """The config written by :func:`config_to_yaml`. Raises ``ValueError`` as :func:`to_config`."""
    loaded = OmegaConf.create(text)
    if not isinstance(loaded, DictConfig):
        raise ValueError(f"configuration: expected a mapping of keys, got {text[:40]!r}")
    return to_config(loaded)
