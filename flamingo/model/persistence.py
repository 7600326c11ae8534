"""Saving and loading: what trains as safetensors, the frozen backbones by name and fingerprint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from flamingo.backbones import adapters
from flamingo.backbones import language as lm
from flamingo.backbones.precision import cast_parameters, loading_dtype
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder, save_vision_encoder
from flamingo.backbones.weight_files import check_shapes
from flamingo.model.card import model_card, write_card
from flamingo.model.configuration import FlamingoConfig

if TYPE_CHECKING:
    from flamingo.model.flamingo import FlamingoForConditionalGeneration

WEIGHTS = "model.safetensors"
LANGUAGE_FOLDER = "language_model"
VISION_FOLDER = "vision_encoder"


DOWNLOAD_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
WITHOUT_EFFECT = (
    *("trust_remote_code", "code_revision", "adapter_kwargs", "use_safetensors", "_from_pipeline"),
    *("_from_auto", "_commit_hash", "hub_kwargs"),
)
"""What transformers' Auto classes and pipelines pass along, and nothing here depends on."""


def download_options(given: dict[str, Any]) -> dict[str, Any]:
    """What of ``from_pretrained``'s options goes to ``snapshot_download``; others are refused."""
    unknown = sorted(
        name
        for name, value in given.items()
        if name not in (*DOWNLOAD_OPTIONS, *WITHOUT_EFFECT) and value is not None
    )
    if unknown:
        raise ValueError(
            f"from_pretrained: expected config, language_model, vision_encoder, dtype or one of "
            f"{', '.join(DOWNLOAD_OPTIONS)}, got also {unknown}"
        )
    return {
        name: value
        for name, value in given.items()
        if name in DOWNLOAD_OPTIONS and value is not None
    }


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its name; None for ``"auto"``, which is what the model was saved to be."""
    if not isinstance(dtype, str):
        return dtype
    if dtype == "auto":
        return None
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype):
        raise ValueError(f"dtype: expected a torch dtype or its name, got {dtype!r}")
    return named


def trained_tensors(model: FlamingoForConditionalGeneration) -> dict[str, Tensor]:
    """All that training makes: trained parameters and the resampler's feature statistics."""
    trained = dict(model.trainable_parameters())
    statistics = {f"resampler.{name}": value for name, value in model.resampler.named_buffers()}
    return trained | statistics


def trained_state(model: FlamingoForConditionalGeneration) -> dict[str, Tensor]:
    """:func:`trained_tensors` as they are saved."""
    return {
        name: tensor.detach().cpu().contiguous() for name, tensor in trained_tensors(model).items()
    }


def save(
    model: FlamingoForConditionalGeneration,
    folder: Path,
    *,
    include_backbones: bool,
    max_shard_size: int | str,
    name: str,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder; each file is complete before it takes its name.

    ``name`` is what the card calls the model. What trains is taken from ``state`` if it is given.
    """
    if state is None:
        trained = trained_state(model)
    else:
        names = trained_tensors(model)
        if lacking := sorted(set(names) - set(state)):
            raise ValueError(f"state_dict: expected all that trains, it lacks {lacking}")
        trained = {n: state[n].detach().cpu().contiguous() for n in names}
    if folder.is_file():
        raise ValueError(f"save_directory: expected a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{WEIGHTS}.tmp"
    save_file(trained, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / WEIGHTS)
    if include_backbones:
        if not model.config.trains_language_model:  # else it is among what trains
            adapters.save_base(
                model.language_model, folder / LANGUAGE_FOLDER, max_shard_size=max_shard_size
            )
        if model.vision_encoder is not None:
            save_vision_encoder(model.vision_encoder, folder / VISION_FOLDER)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    write_card(model_card(model, name=name, complete=include_backbones), folder)


def load(
    model_class: type[FlamingoForConditionalGeneration],
    name: str,
    *,
    config: FlamingoConfig | None,
    language_model: nn.Module | None,
    vision_encoder: VisionEncoder | None,
    dtype: torch.dtype | None,
    hub: dict[str, Any],
) -> FlamingoForConditionalGeneration:
    """Read a model folder (or hub name), with its own backbones or those it names."""
    folder = Path(name) if Path(name).exists() else Path(snapshot_download(name, **hub))
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: expected a saved Flamingo with {WEIGHTS}, found none")
    config = config or FlamingoConfig.from_pretrained(folder)
    state = load_file(folder / WEIGHTS)
    if language_model is None and not config.trains_language_model:
        held = loading_dtype(dtype or torch.float32)  # others are cast to at the end
        language_model = _load_language_model(folder, config, held)
    if vision_encoder is None:
        vision_encoder = _load_vision_encoder(folder, config, dtype)
    if language_model is not None:
        language_model = adapters.without_wrapper(language_model)  # of peft, if it has one
        _check_language_model(language_model, config)
    if vision_encoder is not None:
        check_fingerprint("vision encoder", config.vision_fingerprint, vision_encoder.fingerprint)
    model = model_class(config, language_model=language_model, vision_encoder=vision_encoder)
    load_trained_state(model, state, str(folder / WEIGHTS))
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model = model.eval()
    if dtype is not None:
        cast(model, dtype)
    return model


def _check_language_model(language_model: PreTrainedModel, config: FlamingoConfig) -> None:
    """Refuse one that was not trained with; put the saved adapter into a bare one."""
    if config.trains_language_model:
        return  # its weights are replaced by the saved ones
    check_fingerprint("language model", config.language_fingerprint, lm.fingerprint(language_model))
    if config.language_adapter is not None and adapters.description(language_model) is None:
        adapters.attach(language_model, config.language_adapter)


def cast(model: FlamingoForConditionalGeneration, dtype: torch.dtype) -> None:
    """Put all weights in ``dtype``, in place; of the language model the parameters alone."""
    for name, part in model.named_children():
        if name != "language_model":
            part.to(dtype)
    cast_parameters(model.language_model, dtype)


def _load_language_model(
    folder: Path, config: FlamingoConfig, dtype: torch.dtype
) -> PreTrainedModel:
    options = config.language_options
    if (folder / LANGUAGE_FOLDER).is_dir():
        options = lm.LanguageConfig(name=str(folder / LANGUAGE_FOLDER))
    if options is None or not options.name:
        raise ValueError(
            f"{folder}: the language model was built in memory and has no name to load it by: pass "
            "language_model=, or save with include_backbones=True"
        )
    own = config.text_config.to_dict()
    quantization = own.get("quantization_config")
    if quantization is not None:  # from other floats other codes would come
        dtype = as_dtype(own.get("dtype")) or dtype
    return lm.load_language_model(options, dtype, quantization=quantization)


def _load_vision_encoder(
    folder: Path, config: FlamingoConfig, dtype: torch.dtype | None
) -> VisionEncoder | None:
    options = config.vision_options
    if options is None:
        return None
    if (folder / VISION_FOLDER).is_dir():
        options = replace(options, name=str(folder / VISION_FOLDER), revision=None)
    return load_vision_encoder(options, dtype=dtype)


def check_fingerprint(what: str, expected: str | None, actual: str) -> None:
    """Raise ``ValueError`` when a backbone is not the one the model was trained with."""
    if expected is not None and expected != actual:
        raise ValueError(
            f"{what}: expected fingerprint {expected[:16]}..., got {actual[:16]}...: these are not "
            "the weights (or not the features) that this model was trained with"
        )


def load_trained_state(
    model: FlamingoForConditionalGeneration, state: dict[str, Tensor], source: str
) -> None:
    """Copy trained weights into ``model``; a difference in names or shapes is a ``ValueError``."""
    expected = {name: tuple(tensor.shape) for name, tensor in trained_tensors(model).items()}
    check_shapes(source, expected, {name: tuple(tensor.shape) for name, tensor in state.items()})
    model.load_state_dict(state, strict=False)
