"""The model of a configuration without its weights: built on torch's meta device.

Modules there have shapes and no storage, so a model of any size is built within seconds, and its
parameters are counted, not estimated. Shapes come from a local folder's ``config.json``, else from
the table of released backbones (:mod:`flamingo.planning.known`), else from the hub's.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    IdeficsConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from flamingo.backbones import idefics
from flamingo.backbones import language as lm
from flamingo.backbones.efficientnet import IMAGE_SIZE, EfficientNetLite0
from flamingo.backbones.open_clip import is_open_clip, read_open_clip_config
from flamingo.backbones.vision import EFFICIENTNET_FILE, EMBEDDED, TransformerTokens
from flamingo.backbones.vision_families import VisionFamily, vision_family, without_head
from flamingo.config import LanguageConfig, RunConfig, VisionConfig
from flamingo.model.configuration import FlamingoConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.planning.known import LANGUAGE, VISION, KnownShape, known
from flamingo.structured import plain

META = torch.device("meta")


@dataclass(frozen=True)
class EncoderShape:
    """A vision encoder as far as it costs something."""

    parameters: int
    patches: int
    """Tokens of an image."""
    dim: int
    flops: int
    """Of one image, forward: matrix products and convolutions."""


@dataclass(frozen=True)
class Shapes:
    """A configuration's parts without weights."""

    model: FlamingoForConditionalGeneration
    """On the meta device, without its encoder."""
    encoder: EncoderShape


def build_shapes(config: RunConfig) -> Shapes:
    """The shapes of ``config``. Raises ``ValueError`` for a backbone whose shape nothing tells."""
    encoder = encoder_shape(config.vision)
    return Shapes(model=empty_flamingo(config, encoder.dim), encoder=encoder)


def empty_flamingo(
    config: RunConfig,
    vision_dim: int,
    *,
    device: torch.device = META,
    dtype: torch.dtype = torch.float32,
) -> FlamingoForConditionalGeneration:
    """``FlamingoForConditionalGeneration.from_backbones`` on the meta device, with two new tokens
    behind the LM's vocabulary.

    On another ``device`` the weights are random, the language model's of ``dtype``.
    """
    language_config = read_language_config(config.language)
    with device:
        language = AutoModelForCausalLM.from_config(language_config, dtype=dtype)
        vocabulary = lm.vocabulary_size(language)
        flamingo = FlamingoConfig(
            text_config=deepcopy(language.config),
            language=plain(config.language),
            resampler=plain(config.model.resampler),
            cross_attention=plain(config.model.cross_attention),
            vision_dim=vision_dim,
            new_token_ids=[vocabulary, vocabulary + 1],
            image_token_id=vocabulary,
            end_of_chunk_token_id=vocabulary + 1,
        )
        return FlamingoForConditionalGeneration(flamingo, language_model=language)


# ---------------------------------------------------------------------------- configurations


def read_language_config(config: LanguageConfig) -> PreTrainedConfig:
    """The LM's transformers configuration. Raises ``ValueError`` where it cannot be had."""
    found = _read_config("language.name", config.name, config.revision, LANGUAGE)
    if isinstance(found, IdeficsConfig):
        return idefics.language_config(found)
    return found


def _read_config(
    field: str, name: str, revision: str | None, shapes: tuple[KnownShape, ...]
) -> PreTrainedConfig:
    shape = known(name, shapes)
    if shape is not None and not Path(name).exists():
        return AutoConfig.for_model(shape.model_type, **shape.values)
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        names = ", ".join(sorted(name for shape in shapes for name in shape.names))
        raise ValueError(
            f"{field}: expected a local folder with config.json, a name on a hub within reach, or "
            f"one whose shape is known without it ({names}), got {name!r}: {error}"
        ) from error


# ---------------------------------------------------------------------------- vision


def encoder_shape(config: VisionConfig) -> EncoderShape:
    """Parameters, tokens and FLOPs of the encoder, from one image on the meta device."""
    tokens, pixels = empty_encoder(config)
    image = torch.empty(1, 3, pixels, pixels, device=META)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        features = tokens(image)
    return EncoderShape(
        parameters=sum(p.numel() for p in tokens.parameters()),
        patches=features.shape[1] if config.grid is None else config.grid**2 + config.keep_cls,
        dim=features.shape[2],
        flops=counter.get_total_flops(),
    )


def empty_encoder(config: VisionConfig, *, device: torch.device = META) -> tuple[nn.Module, int]:
    """What ``flamingo.backbones.vision.load_vision_encoder`` runs, and the side of its images in
    pixels. On the meta device; on another its weights are random."""
    folder = Path(config.name)
    if config.name == EMBEDDED or (folder / EFFICIENTNET_FILE).is_file():
        with device:
            return EfficientNetLite0(), IMAGE_SIZE
    pixels = None
    if is_open_clip(folder):
        found: PreTrainedConfig = read_open_clip_config(folder)
    else:
        found = _read_config("vision.name", config.name, config.revision, VISION)
        shape = known(config.name, VISION)
        pixels = shape.pixels if shape else None
    model, family = _empty_transformer(found, config.name, device)
    tokens = TransformerTokens(model, family, config)
    return tokens, pixels or _processor_pixels(folder) or int(model.config.image_size)


def _empty_transformer(
    found: PreTrainedConfig, name: str, device: torch.device
) -> tuple[PreTrainedModel, VisionFamily]:
    """The tower of a configuration, without weights."""
    if isinstance(found, IdeficsConfig):
        found = idefics.vision_config(found)
    family = vision_family(found.model_type, name)
    # Of a model of images and text, its tower.
    vision: Any = deepcopy(getattr(found, "vision_config", found))
    # Eager attention: its matrix products are counted, those of fused CPU kernels are not.
    vision._attn_implementation = "eager"
    with device:
        return without_head(family.model(vision, **family.options)), family


def _processor_pixels(folder: Path) -> int | None:
    """Side of the images that a local folder's processor gives, if it says so."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    settings = json.loads(file.read_text())
    size = settings.get("crop_size" if settings.get("do_center_crop") else "size")
    return size.get("height") if isinstance(size, dict) else None
