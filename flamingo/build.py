"""The one builder: from a configuration to the parts of a run, by ``match`` and plain calls."""

from __future__ import annotations

import logging
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.backbones import assets
from flamingo.backbones.attention import choose_training_attention
from flamingo.backbones.language import learned_positions, load_tokenizer
from flamingo.backbones.precision import resolve_dtype
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.choices import Sharding
from flamingo.config import DataConfig, RunConfig
from flamingo.data.features import FeatureStore, PixelLoader
from flamingo.data.mixture import Mixture, build_sources
from flamingo.data.sources.documents import Opened, open_streams
from flamingo.evaluation.benchmarks.training import training_questions
from flamingo.images import BLANK
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.model.processor import place_special_tokens
from flamingo.types import ImageRef, MediaLoader

logger = logging.getLogger(__name__)

MANY_READERS = 64
"""Lanes that read one shard before it is warned of."""
STATISTICS_IMAGES = 512
"""Images that feature statistics are taken from when there is no cache of all of them."""


@dataclass(frozen=True)
class Parts:
    """What training needs, built from one configuration."""

    model: FlamingoForConditionalGeneration
    processor: FlamingoProcessor
    mixture: Mixture
    load_media: MediaLoader


def build_parts(
    config: RunConfig,
    device: torch.device,
    documents: Mapping[str, Opened] | None = None,
    *,
    resume: bool = False,
) -> Parts:
    """Everything a training run needs, the model on ``device``.

    ``documents`` is what :func:`open_data` gives; None: they are opened now, first of all.
    With ``resume`` the model's feature statistics are left to the checkpoint that is loaded next.
    Raises ``ValueError`` for what does not fit together, before the first step.
    """
    if documents is None:
        documents = open_data(config.data)
    model, processor = build_model(config, device)
    mixture = build_mixture(config, processor, documents)
    assert model.vision_encoder is not None
    # Validation shows the blank image too; it is none of the images that statistics are taken of.
    shown = [*mixture.images(), BLANK]
    load_media = build_media_loader(config.data, model.vision_encoder, shown)
    if config.model.resampler.standardize_features and not resume:
        images = mixture.images() + mixture.stream_images(STATISTICS_IMAGES)
        mean, std = feature_statistics(model.vision_encoder, load_media, images, config.seed)
        model.resampler.set_feature_statistics(mean.to(device), std.to(device))
    return Parts(model, processor, mixture, load_media)


def build_model(
    config: RunConfig, device: torch.device
) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    """A new model on ``device`` and its processor. ``config.seed`` decides its initial weights.

    The frozen language model is held in the dtype that training computes in, what trains in fp32.
    """
    # Both first: fetching an embedded asset may draw random numbers, once.
    tokenizer = load_tokenizer(config.language)
    encoder = load_vision_encoder(config.vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FlamingoForConditionalGeneration.from_backbones(
            vision=encoder,
            language=config.language,
            resampler=config.model.resampler,
            cross_attention=config.model.cross_attention,
            dtype=resolve_dtype(config.training.precision, device),
        )
    positions = learned_positions(model.language_model)
    if positions is not None and config.data.max_tokens > positions:
        raise ValueError(
            f"data.max_tokens: expected at most the {positions} positions that the language model "
            f"has learned, got {config.data.max_tokens}"
        )
    choose_training_attention(model.language_model, device)
    tokenizer = place_special_tokens(
        tokenizer,
        image_token_id=model.config.image_token_id,
        end_of_chunk_token_id=model.config.end_of_chunk_token_id,
    )
    for name, part in model.named_children():
        if name != "language_model" or config.training.sharding is Sharding.none:
            part.to(device)  # training puts a sharded language model there in parts
    return model, FlamingoProcessor(encoder.image_processor, tokenizer)


def open_data(config: DataConfig) -> dict[str, Opened]:
    """The data of the streams, opened: files of annotations, which may take a minute, are read.

    Raises ``ValueError`` naming the section where there is no data.
    """
    return open_streams(config, training_questions)


def shards_of(documents: Mapping[str, Opened]) -> dict[str, Sequence[str]]:
    """The names of the shards that each stream is trained on, of what :func:`open_data` gives."""
    return {name: seen.shards for name, ((seen, _), _) in documents.items()}


def build_mixture(
    config: RunConfig, processor: FlamingoProcessor, documents: Mapping[str, Opened]
) -> Mixture:
    """The training data. Embedded data sets are fetched if a source needs them."""
    sources = build_sources(
        config.data,
        config.seed,
        processor.tokenizer,
        easy_vqa_folder=assets.easy_vqa_folder,
        twemoji_folder=assets.twemoji_folder,
        documents=documents,
        max_frames=config.model.resampler.most_frames,
    )
    workers = config.data.workers
    for name, stream in config.data.streams.items():
        if workers and stream.lanes % workers:
            logger.warning(
                "data.workers: %d workers read one another's lanes of data.%s: as many as divide "
                "its lanes would be faster, and give the same",
                *(workers, name),
            )
        (seen, _), unseen = documents[name]
        lanes = stream.lanes * stream.sequences
        _warn_of_readers(f"data.{name}.shards", len(seen.shards), lanes, "lanes or sequences")
        if unseen is not None:
            place = f"data.{name}: what is held out"
            _warn_of_readers(place, len(unseen[0].shards), stream.sequences, "sequences")
    data = config.data
    return Mixture(sources, data.sources, processor.tokenizer, data.max_tokens, data.mixing)


def _warn_of_readers(place: str, shards: int, lanes: int, fewer: str) -> None:
    """Lanes that share a shard read all of it, each for its part."""
    if lanes > MANY_READERS * shards:
        logger.warning(
            "%s: %d lanes read %d shards, each by %d of them, of which every one takes its part: "
            "more shards, or fewer %s, would be faster",
            *(place, lanes, shards, math.ceil(lanes / shards), fewer),
        )


def feature_cache(config: DataConfig) -> Path:
    """Folder of the feature cache, shared by runs, training and evaluation."""
    if config.feature_cache is not None:
        return Path(config.feature_cache).expanduser()
    return assets.cache_root() / "features"


def build_media_loader(
    config: DataConfig, encoder: VisionEncoder, images: Sequence[ImageRef]
) -> MediaLoader:
    """Cached features of ``images`` (those the cache lacks are encoded now), or their pixels."""
    if config.cache_features:
        return FeatureStore.build(images, encoder, feature_cache(config))
    return PixelLoader(encoder.transform)


def feature_statistics(
    encoder: VisionEncoder, load_media: MediaLoader, images: Sequence[ImageRef], seed: int
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Mean and deviation of each feature channel over ``images``, the training images.

    Without a cache, over a random sample of them. A channel that never changes keeps its scale.
    """
    if isinstance(load_media, FeatureStore):
        mean, std = load_media.statistics(image.key for image in images)
    else:
        sample = random.Random(seed).sample(list(images), min(STATISTICS_IMAGES, len(images)))
        with tempfile.TemporaryDirectory() as folder:
            mean, std = FeatureStore.build(sample, encoder, folder).statistics()
    return mean, torch.where(std > 0, std, 1.0)


def parameter_counts(model: FlamingoForConditionalGeneration) -> dict[str, tuple[int, bool]]:
    """Parameters of each part of the model, and whether it trains."""
    trained = set(model.trainable_parameters())
    counts: dict[str, tuple[int, bool]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        counts[part] = (counts.get(part, (0, False))[0] + parameter.numel(), name in trained)
    return counts
