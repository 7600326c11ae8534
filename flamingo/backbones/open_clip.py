"""CLIP vision towers as open_clip stores them, as transformers' ``CLIPVisionModel``.

A folder with ``open_clip_config.json`` and ``open_clip_model.safetensors`` (or
``open_clip_pytorch_model.bin``), as open_clip puts on the hub. OpenFlamingo took its encoder from
open_clip; the same weights in transformers' format give the same features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from flamingo.backbones.weight_files import read_files

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PREFIX = "visual."

_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SHAPE_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_NO_MATTER = {"patch_dropout", "output_tokens"}
"""Of ``vision_cfg``: what does not change the tokens in evaluation."""


def is_open_clip(folder: Path) -> bool:
    """Whether a folder has open_clip's files and not transformers' beside them."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_open_clip_config(folder: Path) -> CLIPVisionConfig:
    """The vision tower's shape. Raises ``ValueError`` for one that is no plain transformer."""
    return _vision_config(json.loads((folder / CONFIG).read_text())["model_cfg"], folder)


def load_open_clip(folder: Path) -> CLIPVisionModel:
    """The vision tower in a folder of open_clip's, in fp32.

    Raises ``ValueError`` for a tower that is no plain vision transformer, for a folder without
    weights, for a pickle of more than tensors, and for weights that do not fit the configuration.
    """
    config = read_open_clip_config(folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: expected one of {', '.join(WEIGHTS)}, found none")
    weights = read_files(str(folder), [file])
    model = CLIPVisionModel(config)
    try:
        converted = vision_state({n: weights[n] for n in weights.shapes if n.startswith(PREFIX)})
        model.load_state_dict({name: tensor.float() for name, tensor in converted.items()})
    except RuntimeError as error:
        raise ValueError(f"{file}: {error}") from error
    return model.eval()


def vision_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's ``visual.*`` by the names of ``CLIPVisionModel``; the rest is left out.

    The fused projection of queries, keys and values becomes three, and the projection behind the
    pooled output, which the tower has no place for, is dropped. Raises ``ValueError`` for a name of
    the tower that it does not know.
    """
    converted: dict[str, Tensor] = {}
    for full, tensor in state.items():
        if not full.startswith(PREFIX) or full == f"{PREFIX}proj":
            continue
        name = full.removeprefix(PREFIX)
        if name.startswith("transformer.resblocks."):
            index, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
            block = f"encoder.layers.{index}"
            if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = rest.removeprefix("attn.in_proj_")
                for part, values in zip("qkv", tensor.chunk(3), strict=True):
                    converted[f"{block}.self_attn.{part}_proj.{kind}"] = values.clone()
                continue
            converted[f"{block}.{_renamed(rest, _IN_BLOCK, full)}"] = tensor
        else:
            converted[_renamed(name, _OUTSIDE, full)] = tensor
    return converted


def open_clip_processor(folder: Path) -> CLIPImageProcessorPil:
    """The transform that belongs to the folder's tower.

    Raises ``ValueError`` unless it is open_clip's usual one: the shorter side resized (bicubic) to
    the tower's size, the centre cut out.
    """
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    preprocess: dict[str, Any] = values.get("preprocess_cfg", {})
    for name, usual in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if preprocess.get(name, usual) != usual:
            raise ValueError(
                f"{folder / CONFIG}: preprocess_cfg.{name}: expected {usual!r}, "
                f"got {preprocess[name]!r}"
            )
    side = values["model_cfg"]["vision_cfg"].get("image_size", 224)
    given = {f"image_{name}": preprocess[name] for name in ("mean", "std") if name in preprocess}
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **given
    )


def _vision_config(model: dict[str, Any], folder: Path) -> CLIPVisionConfig:
    vision = model["vision_cfg"]
    unknown = sorted(set(vision) - _SHAPE_KEYS - _NO_MATTER)
    if unknown or not isinstance(vision.get("layers"), int):
        raise ValueError(
            f"{folder / CONFIG}: vision_cfg: expected a plain vision transformer (keys "
            f"{sorted(_SHAPE_KEYS)}), got layers={vision.get('layers')!r} and {unknown}"
        )
    width = vision["width"]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=vision["layers"],
        num_attention_heads=width // vision.get("head_width", 64),
        image_size=vision.get("image_size", 224),
        patch_size=vision["patch_size"],
        # OpenAI's weights were trained with the quick one; open_clip's configuration says so.
        hidden_act="quick_gelu" if model.get("quick_gelu", False) else "gelu",
    )


def _renamed(name: str, names: Mapping[str, str], full: str) -> str:
    for old, new in names.items():
        if name == old or name in (f"{old}.weight", f"{old}.bias"):
            return new + name.removeprefix(old)
    raise ValueError(f"open_clip weights: expected those of a CLIP vision tower, got {full}")
