"""The typed configuration: dataclasses are the schema and hold every default.

``conf/`` holds differences only. Hydra composes them against this schema (a typo or a wrong type
fails there); :func:`to_config` turns the result into the dataclasses, and each ``__post_init__``
refuses what makes no sense across fields, before any weight is loaded. Nothing changes a config
after it is built; derived values are properties.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from flamingo.choices import (
    Activation,
    Collection,
    Gate,
    LanguageTraining,
    MediaVisibility,
    Mixing,
    Norm,
    Pooling,
    Precision,
    ResamplerKind,
    Schedule,
    Sharding,
    WandbMode,
)
from flamingo.evaluation_config import EvaluationConfig, check_collection
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    ClipsSourceConfig,
    COCOCaptionsSourceConfig,
    InterleavedSourceConfig,
    MMC4SourceConfig,
    OBELICSSourceConfig,
    SourceConfig,
    StreamSourceConfig,
    VQASourceConfig,
)
from flamingo.structured import build, require, section

# ---------------------------------------------------------------------------- backbones


@dataclass(kw_only=True)
class VisionConfig:
    """A frozen vision encoder: a hub name, a local folder (of transformers, for CLIP also
    of open_clip), or ``efficientnet-lite0`` (embedded)."""

    name: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    layer: int = -1
    """Index into the hidden states of a transformer encoder; -1 is the last block's output."""
    keep_cls: bool = False
    final_norm: bool = False
    """Whether the encoder's last LayerNorm is applied (OpenFlamingo: not)."""
    grid: int | None = None
    """Average the patches to a grid of so many on a side; null: all patches, as they come."""

    def __post_init__(self) -> None:
        require(self.grid is None or self.grid >= 1, "vision.grid", ">= 1 or null", self.grid)


@dataclass(kw_only=True)
class LanguageConfig:
    """An LM: a hub name, a local folder, or ``smollm2-135m-instruct`` (embedded)."""

    name: str = "HuggingFaceTB/SmolLM2-135M"
    revision: str | None = None
    train: LanguageTraining = LanguageTraining.frozen
    """Whether it trains. Then it is held in fp32, and its weights are saved with what trains."""


# ---------------------------------------------------------------------------- model


@dataclass(kw_only=True)
class ResamplerConfig:
    """Perceiver resampler; defaults are the paper's (section 2.1, appendix A.1.1).

    Of the other kinds ``mlp`` reads ``depth``, ``ff_mult`` and ``activation``, ``pooling``
    ``num_latents``, and all ``standardize_features``; fields that a kind does not read mean
    nothing.
    """

    kind: ResamplerKind = ResamplerKind.perceiver
    depth: int = 6
    num_latents: int = 64
    heads: int = 16
    dim_head: int = 96
    ff_mult: int = 4
    activation: Activation = Activation.squared_relu
    qk_norm: bool = False
    """A LayerNorm on queries and one on keys, over the channels of a head (IDEFICS)."""
    max_frames: int = 8
    """Length of the table of frame-time embeddings: the longest clip."""
    latent_std: float = 1.0
    """Standard deviation of the initial latents."""
    standardize_features: bool = False
    """Scale vision features per channel by statistics that are stored in the checkpoint."""

    def __post_init__(self) -> None:
        for name in ("depth", "num_latents", "heads", "dim_head", "ff_mult", "max_frames"):
            require(getattr(self, name) >= 1, f"resampler.{name}", ">= 1", getattr(self, name))
        require(self.latent_std > 0, "resampler.latent_std", "> 0", self.latent_std)

    @property
    def most_frames(self) -> int | None:
        """Frames of the longest clip that can be read; None: any number."""
        match self.kind:
            case ResamplerKind.perceiver:
                return self.max_frames
            case ResamplerKind.pooling:
                return None
            case ResamplerKind.mlp | ResamplerKind.identity:
                return 1


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
    ff_width: int | None = None
    """Inner width of the feed-forward; null: ``ff_mult`` times the LM's width."""
    ff_gated: bool = False
    """``down(act(gate(x)) * up(x))`` (Shazeer 2020), as LLaMA's, instead of two linears."""
    activation: Activation = Activation.squared_relu
    norm: Norm = Norm.layer
    """What normalises the stream before either branch (and, with ``qk_norm``, the heads)."""
    norm_eps: float = 1e-5
    qk_norm: bool = False
    """A norm on queries and one on keys, over the channels of a head (IDEFICS)."""
    gate: Gate = Gate.scalar
    gate_init: float = 0.0
    """Initial value of the gate (before tanh); without gates it has no meaning."""
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
            require(
                getattr(self, name) >= 1, f"cross_attention.{name}", ">= 1", getattr(self, name)
            )
        require(self.norm_eps > 0, "cross_attention.norm_eps", "> 0", self.norm_eps)
        if self.ff_width is not None:
            require(self.ff_width >= 1, "cross_attention.ff_width", ">= 1", self.ff_width)
        for name in ("attention_init_scale", "feed_forward_init_scale"):
            value = getattr(self, name)
            require(value >= 0, f"cross_attention.{name}", ">= 0", value)
        if (self.every is None) == (self.layers is None):
            raise ValueError(
                "cross_attention: expected exactly one of every and layers, "
                f"got every={self.every!r}, layers={self.layers!r}"
            )
        if self.every is not None:
            require(self.every >= 1, "cross_attention.every", ">= 1", self.every)
        if self.layers is not None:
            increasing = self.layers == sorted(set(self.layers)) and bool(self.layers)
            require(
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
class EasyVQASourceConfig(SourceConfig):
    """easy-VQA questions packed as demonstrations and a query; answers are learned."""

    _key = "data.easy_vqa"

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
            self._require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        rate = self.blank_rate
        self._require(0 <= rate < 1, "blank_rate", "in [0, 1)", rate)


@dataclass(kw_only=True)
class BindingSourceConfig(SourceConfig):
    """Concept-binding episodes: made-up words name concepts that only the context tells."""

    _key = "data.binding"

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
        check_collection(self._key, self.collection, self.path, self.views, self.held_out)
        self._require(
            2 <= self.min_ways <= self.max_ways,
            "min_ways, max_ways",
            "2 <= min_ways <= max_ways",
            (self.min_ways, self.max_ways),
        )
        self._require(self.images > self.max_ways, "images", "> max_ways", self.images)


@dataclass(kw_only=True)
class DataConfig:
    """The mixture: each source that is not null contributes to every step, or in turn."""

    easy_vqa: EasyVQASourceConfig | None = None
    binding: BindingSourceConfig | None = None
    interleaved: InterleavedSourceConfig | None = None
    mmc4: MMC4SourceConfig | None = None
    obelics: OBELICSSourceConfig | None = None
    captions: CaptionShardsSourceConfig | None = None
    coco_captions: COCOCaptionsSourceConfig | None = None
    vqa: VQASourceConfig | None = None
    clips: ClipsSourceConfig | None = None
    mixing: Mixing = Mixing.accumulate
    """Whether a step has all sources, or one of them."""
    max_tokens: int = 512
    """A longer sequence is an error, of a stream dropped (nothing is cut silently)."""
    cache_features: bool = True
    """Encode each image once into the feature cache, instead of at every step."""
    feature_cache: str | None = None
    """Folder of the feature cache; default: below the user's cache folder."""
    workers: int = 0
    """Processes that prepare steps, each one ahead. A step lies in /dev/shm until it is taken: of
    pixels 0.6 MB an image."""

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "data.max_tokens", ">= 1", self.max_tokens)
        require(self.workers >= 0, "data.workers", ">= 0", self.workers)
        if self.feature_cache is not None and not self.cache_features:
            raise ValueError(
                "data.feature_cache: expected null with cache_features=false (nothing is cached), "
                f"got {self.feature_cache!r}"
            )
        if self.cache_features and self.streams:
            names = ", ".join(f"data.{name}" for name in self.streams)
            raise ValueError(
                f"data.cache_features: expected false with {names} (a stream's images are "
                "not known beforehand: they are encoded in each step), got true"
            )
        for name, stream in self.streams.items():
            require(
                stream.max_tokens is None or stream.max_tokens <= self.max_tokens,
                f"data.{name}.max_tokens",
                f"at most data.max_tokens ({self.max_tokens})",
                stream.max_tokens,
            )

    @property
    def streams(self) -> dict[str, StreamSourceConfig]:
        """The configured sources of documents by their names, in the order of the mixture."""
        every = {name: getattr(self, name) for name in STREAMS}
        return {name: own for name, own in every.items() if own is not None}

    @property
    def sources(self) -> list[SourceConfig]:
        """The configured sources, in the order of the mixture."""
        drawn = (self.easy_vqa, self.binding)
        return [*(source for source in drawn if source is not None), *self.streams.values()]


STREAMS = tuple(
    name
    for name, hint in get_type_hints(DataConfig).items()
    if issubclass(section(hint) or object, StreamSourceConfig)
)
"""The fields of :class:`DataConfig` that are sources of documents, in its order."""


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
    micro_batch_tokens: int | None = None
    """Instead of ``micro_batches``: in as many parts as it takes with at most so many tokens each,
    padding included, rows of like length together."""
    packing: int | None = None
    """Pack sequences side by side into rows of at most so many tokens, as documents that do not
    see each other. Null: a row each."""
    precision: Precision = Precision.auto
    gradient_checkpointing: bool = False
    """Activations of LM layers and of what trains are computed again for the backward pass."""
    sharding: Sharding = Sharding.none
    """What each of several processes holds; alone, a process holds all."""
    compile: bool = False
    """Resampler and gated blocks through torch.compile."""
    timeout_minutes: float = 30.0
    """How long a process waits for the others before it gives up."""
    log_every: int = 10
    eval_every: int = 0
    """Steps between validation losses; 0: never."""
    eval_batches: int = 4
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        for name in ("steps", "micro_batches", "log_every", "checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"training.{name}", ">= 1", getattr(self, name))
        require(self.lr > 0, "training.lr", "> 0", self.lr)
        require(self.clip_norm > 0, "training.clip_norm", "> 0", self.clip_norm)
        require(
            0 <= self.warmup_steps < self.steps,
            "training.warmup_steps",
            f"0 <= warmup_steps < steps ({self.steps})",
            self.warmup_steps,
        )
        require(
            0 <= self.min_lr_fraction <= 1,
            "training.min_lr_fraction",
            "between 0 and 1",
            self.min_lr_fraction,
        )
        if self.micro_batch_tokens is not None:
            one = self.micro_batches == 1
            field = "training.micro_batches"
            require(one, field, "1 with training.micro_batch_tokens", self.micro_batches)
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(two, "training.betas", "two numbers of [0, 1)", self.betas)
        require(self.weight_decay >= 0, "training.weight_decay", ">= 0", self.weight_decay)
        require(self.timeout_minutes > 0, "training.timeout_minutes", "> 0", self.timeout_minutes)
        require(self.eval_every >= 0, "training.eval_every", ">= 0", self.eval_every)
        require(self.eval_batches >= 1, "training.eval_batches", ">= 1", self.eval_batches)


# ---------------------------------------------------------------------------- the run


@dataclass(kw_only=True)
class TrackingConfig:
    """Experiment tracking."""

    wandb: WandbMode = WandbMode.disabled
    project: str = "flamingo"
    peak_tflops: float | None = None
    """What one device can do, in 10^12 operations a second in the precision that is trained in, for
    the logged MFU. Null: a GPU's by its data sheet (``flamingo/planning/devices.py``), a CPU's
    measured at the start."""

    def __post_init__(self) -> None:
        peak = self.peak_tflops
        require(peak is None or peak > 0, "tracking.peak_tflops", "> 0 or null", peak)


LARGEST_SEED = 2**32 - 2**16


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
        require(one_folder, "name", "the name of one folder, without slashes", self.name)
        # Libraries that are seeded with it, each process with its number added, take 32 bits.
        require(0 <= self.seed < LARGEST_SEED, "seed", f"0 to {LARGEST_SEED - 1:,}", self.seed)
        if self.evaluation.demonstrations.pooling is Pooling.cls and not self.vision.keep_cls:
            raise ValueError(
                "evaluation.demonstrations.pooling: expected mean with vision.keep_cls=false, "
                "got cls"
            )
        sources = self.data.sources
        sequences = sum(source.sequences for source in sources)
        if sources and self.training.micro_batches > sequences:
            raise ValueError(
                f"training.micro_batches: expected at most a step's {sequences} sequences, "
                f"got {self.training.micro_batches}"
            )
        if sources:
            self._check_room()
        most, clips = self.model.resampler.most_frames, self.data.clips
        if clips is not None and most is not None:
            kind = self.model.resampler.kind.value
            require(clips.frames <= most, "data.clips.frames", f"<= {most} ({kind})", clips.frames)
        if self.training.eval_every and sources and not any(s.has_unseen for s in sources):
            raise ValueError(
                "training.eval_every: expected 0 without unseen sequences (set a source's, such as "
                f"data.interleaved.validation), got {self.training.eval_every}"
            )

    def _check_room(self) -> None:
        """Every sequence has to fit into a row, and every row into a micro-batch."""
        longest, name = self.data.max_tokens, "data.max_tokens"
        for key in ("packing", "micro_batch_tokens"):
            room = getattr(self.training, key)
            if room is not None:
                require(room >= longest, f"training.{key}", f">= {name} ({longest})", room)
                longest, name = room, f"training.{key}"

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
