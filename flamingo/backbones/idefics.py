"""The two backbones inside an IDEFICS checkpoint (transformers' Idefics, version 1).

IDEFICS (Laurençon et al. 2023, arXiv:2306.16527) is LLaMA with gated cross-attention and a CLIP
vision tower, in one checkpoint. Its decoder layers compute what transformers' Llama computes and
its tower what transformers' CLIP does, under the same names, so these classes hold them here: an
IDEFICS checkpoint can be named wherever a language model or a vision encoder is.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    IdeficsConfig,
    IdeficsImageProcessorPil,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor

from flamingo.backbones.weight_files import WeightFiles, find_file, open_weights

VISION_PREFIX = "model.vision_model."

Model = TypeVar("Model", bound=PreTrainedModel)


def read_config(name: str, revision: str | None = None) -> IdeficsConfig:
    """The checkpoint's configuration. Raises ``ValueError`` if it is of another model."""
    config = AutoConfig.from_pretrained(name, revision=revision)
    if not isinstance(config, IdeficsConfig):
        raise ValueError(f"{name}: expected model_type 'idefics', got {config.model_type!r}")
    return config


def language_config(config: IdeficsConfig) -> LlamaConfig:
    """The decoder as a Llama: as many key-value heads as heads, no biases."""
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        use_cache=config.use_cache,
    )


def vision_config(config: IdeficsConfig) -> CLIPVisionConfig:
    """The tower as CLIP's."""
    vision = config.vision_config
    assert vision is not None and not isinstance(vision, dict)
    return CLIPVisionConfig(
        hidden_size=vision.embed_dim,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        num_channels=vision.num_channels,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_act=vision.hidden_act,
        layer_norm_eps=vision.layer_norm_eps,
    )


def is_language_key(key: str) -> bool:
    """Whether a key of the checkpoint belongs to the decoder, where it has the same name."""
    own = ("model.layers.", "model.norm.", "model.embed_tokens.weight", "lm_head.weight")
    return key.startswith(own)


def load_language_model(
    name: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    """The decoder of an IDEFICS checkpoint, without its cross-attention and additional tokens.

    Raises ``ValueError`` for weights that are missing.
    """
    config = read_config(name, revision)
    weights = open_weights(name, revision)
    keys = {key: key for key in weights.shapes if is_language_key(key) and not is_derived(key)}
    if config.tie_word_embeddings:
        keys.pop("lm_head.weight", None)
    return _load(LlamaForCausalLM, language_config(config), weights, keys, dtype)


def load_vision_tower(name: str, revision: str | None = None) -> CLIPVisionModel:
    """The vision tower of an IDEFICS checkpoint, in fp32.

    Raises ``ValueError`` for weights that are missing.
    """
    config = read_config(name, revision)
    weights = open_weights(name, revision)
    keys = {
        key: key.removeprefix(VISION_PREFIX)
        for key in weights.shapes
        if key.startswith(VISION_PREFIX) and not is_derived(key)
    }
    return _load(CLIPVisionModel, vision_config(config), weights, keys, torch.float32)


def is_derived(key: str) -> bool:
    """Whether a key is a table of positions, which old checkpoints hold and models compute."""
    return key.endswith(("rotary_emb.inv_freq", "vision_model.embeddings.position_ids"))


def load_image_processor(name: str, revision: str | None = None) -> BaseImageProcessor:
    """The image transform of an IDEFICS checkpoint, as an ordinary processor of transformers.

    A checkpoint without ``preprocessor_config.json`` gets IDEFICS' transform (squeezed to a square
    by bicubic interpolation, CLIP's mean and deviation) at its tower's size.
    """
    if find_file(name, "preprocessor_config.json", revision) is not None:
        own = AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil")
    else:
        size = vision_config(read_config(name, revision)).image_size
        assert isinstance(size, int)  # of no other does transformers build a tower
        own = IdeficsImageProcessorPil(image_size=size)
    fields = ("size", "resample", "do_resize", "do_rescale", "rescale_factor")
    fields += ("do_normalize", "image_mean", "image_std", "do_convert_rgb")
    settings = own.to_dict()
    # IDEFICS' own processors return a bare tensor where all others return a BatchFeature.
    return ViTImageProcessorPil(**{field: settings[field] for field in fields})


def _load(
    kind: type[Model],
    config: LlamaConfig | CLIPVisionConfig,
    weights: WeightFiles,
    keys: dict[str, str],
    dtype: torch.dtype,
) -> Model:
    """A model of ``kind`` from the tensors of ``keys`` (source -> own name), held once."""
    state = {target: weights[source] for source, target in keys.items()}
    # With output_loading_info it gives two things, which its annotation does not say.
    loaded: Any = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    model, report = loaded
    problems = {what: sorted(map(str, found)) for what, found in report.items() if found}
    if problems:
        raise ValueError(f"{weights.source}: expected the weights of a {kind.__name__}, {problems}")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # off the mapped file, which may change
    model.config.name_or_path = weights.source
    model.name_or_path = weights.source
    return model.requires_grad_(False).eval()
