"""Adapters of ``peft`` on a frozen language model: found, trained, taken off, put on again.

peft is optional. Its adapters stand inside the LM's own linear layers (``q_proj`` becomes a layer
with the frozen ``q_proj.base_layer`` and small trained matrices beside it), so the LM's class, its
decoder layers and our hooks on them stay what they were. This file reads that structure; only
:func:`attach` needs peft itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BASE = "base_layer"
"""What peft calls the layer that it stands around."""


def without_wrapper(language_model: nn.Module) -> PreTrainedModel:
    """The LM inside a ``peft.PeftModel`` (adapters stay in it), or the LM as it is.

    Raises:
        ValueError: for a wrapper whose method lives in the wrapper alone (prompt tuning and its
            like), and for what :func:`description` refuses.
    """
    inner = getattr(language_model, "get_base_model", None)
    if inner is None:
        description(cast(PreTrainedModel, language_model))
        return cast(PreTrainedModel, language_model)
    bare = cast(PreTrainedModel, inner())
    if description(bare) is None:
        kinds = [c.peft_type for c in getattr(language_model, "peft_config", {}).values()]
        raise ValueError(
            "language model: expected adapters inside its layers (LoRA and its like), got "
            f"{type(language_model).__name__} with {kinds}, which needs its wrapper"
        )
    return bare


def _adapted(language_model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that an adapter stands in, with their names."""
    for name, module in language_model.named_modules():
        if hasattr(module, "adapter_layer_names") and hasattr(module, BASE):
            yield name, module


def adapter_parameters(language_model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' own parameters, by their names in the LM; empty without adapters."""
    return {
        f"{layer}.{name}": parameter
        for layer, module in _adapted(language_model)
        for name, parameter in module.named_parameters()
        if not name.startswith(f"{BASE}.")
    }


def frozen_parameters(language_model: nn.Module) -> list[nn.Parameter]:
    """The LM's own parameters, adapters left out."""
    added = {id(parameter) for parameter in adapter_parameters(language_model).values()}
    return [p for p in language_model.parameters() if id(p) not in added]


def freeze_base(language_model: nn.Module) -> None:
    """No gradients for the LM's own weights, gradients for its adapters'; eval mode."""
    language_model.requires_grad_(False).eval()
    for parameter in adapter_parameters(language_model).values():
        parameter.requires_grad_(True)


def train_base(language_model: nn.Module) -> None:
    """Gradients for the LM's own weights; its mode stays (no dropout).

    Raises ``ValueError`` for an LM with adapters, and for quantised weights.
    """
    if next(_adapted(language_model), None) is not None:
        raise ValueError("language.train: expected frozen for an LM with adapters (they train)")
    kinds = {str(p.dtype) for p in language_model.parameters() if not p.is_floating_point()}
    if kinds:
        raise ValueError(f"language.train: expected frozen for quantised weights, got {kinds}")
    language_model.requires_grad_(True)


def set_training(language_model: nn.Module, mode: bool) -> None:
    """The mode of the adapters (their dropout); what they stand around is left alone."""
    for _, module in _adapted(language_model):
        for name, child in module.named_children():
            if name != BASE:
                child.train(mode)


def description(language_model: PreTrainedModel) -> dict[str, Any] | None:
    """The adapter's name and peft's configuration of it, as JSON values; None without adapters.

    Raises ``ValueError`` for several adapters, and for whole modules that an adapter trains
    (``modules_to_save``): the LM's own weights stay frozen here.
    """
    if next(_adapted(language_model), None) is None:
        return None
    configs = cast(dict[str, Any], getattr(language_model, "peft_config", {}))
    if len(configs) != 1:
        raise ValueError(f"language model: expected one adapter, got {sorted(configs)}")
    ((name, config),) = configs.items()
    whole = getattr(config, "modules_to_save", None)
    if whole:
        raise ValueError(f"modules_to_save: expected none (the LM stays frozen), got {list(whole)}")
    values = {key: _plain(value) for key, value in config.to_dict().items()}
    return {"name": name, "config": values}


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case set() | frozenset():
            return sorted(value)
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case _:
            return value


def attach(language_model: PreTrainedModel, described: dict[str, Any]) -> None:
    """Put an adapter that :func:`description` described on a bare LM, in float32, untrained.

    Raises ``ValueError`` where peft is not installed.
    """
    try:
        from peft import (  # pyright: ignore[reportMissingImports]
            PEFT_TYPE_TO_CONFIG_MAPPING,
            PeftType,
            inject_adapter_in_model,
        )
    except ImportError as error:
        raise ValueError(
            "language model: expected peft to be installed (pip install -e '.[peft]'), this "
            f"model has an adapter in its language model: {error}"
        ) from error
    values = described["config"]
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(values["peft_type"])](**values)
    inject_adapter_in_model(config, language_model, adapter_name=described["name"])
    for parameter in adapter_parameters(language_model).values():
        parameter.data = parameter.data.to(torch.float32)


def save_base(
    language_model: PreTrainedModel, folder: Path, *, max_shard_size: int | str = "50GB"
) -> None:
    """``language_model.save_pretrained`` as if it had no adapters."""
    if description(language_model) is None:
        language_model.save_pretrained(folder, max_shard_size=max_shard_size)
        return
    added = adapter_parameters(language_model)
    state: dict[str, Tensor] = {
        name.replace(f".{BASE}.", "."): value
        for name, value in language_model.state_dict().items()
        if name not in added
    }
    # A copy that shares modules and weights. It has a state of its own as an attribute, because
    # save_pretrained forgets the one it is given where the weights are quantised.
    bare = copy(language_model)
    bare._hf_peft_config_loaded = False
    bare.state_dict = lambda: state  # type: ignore[method-assign, assignment]
    bare.save_pretrained(folder, max_shard_size=max_shard_size)
