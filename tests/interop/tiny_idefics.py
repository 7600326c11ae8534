"""Random tiny IDEFICS checkpoints made by transformers' own class, and batches for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from transformers.models.idefics.processing_idefics import (
    image_attention_mask_for_packed_input_ids,
    incremental_to_binary_attention_mask,
)

VOCABULARY, ADDITIONAL = 60, 3
IMAGE = VOCABULARY + 1
PAD, EOS = 0, 2
SIZE = 16
LEFT_PADDED = (
    [PAD] * 3 + [1, 7, IMAGE, 8, 9, 60, IMAGE, 11],
    [1, 5, IMAGE, 6, 7, 8, 9, 10, 11, 12, 13],
)
RIGHT_PADDED = ([1, 7, IMAGE, 8, 9, 60, IMAGE, 11] + [PAD] * 3, LEFT_PADDED[1])


def config(**options: Any) -> IdeficsConfig:
    """A tiny configuration; ``vision`` and ``perceiver`` go to its parts."""
    vision = {"embed_dim": 24, "intermediate_size": 20, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}  # fmt: skip
    perceiver = {"resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 3,
                 "resampler_head_dim": 4}  # fmt: skip
    defaults = {"vocab_size": VOCABULARY, "additional_vocab_size": ADDITIONAL, "hidden_size": 32,
                "intermediate_size": 44, "num_hidden_layers": 4, "num_attention_heads": 4,
                "cross_layer_interval": 2, "pad_token_id": PAD, "eos_token_id": EOS}  # fmt: skip
    return IdeficsConfig(
        vision_config=vision | options.pop("vision", {}),
        perceiver_config=perceiver | options.pop("perceiver", {}),
        **(defaults | options),
    )


def model(settings: IdeficsConfig, seed: int = 0) -> IdeficsForVisionText2Text:
    """Random in every parameter, norms, biases and gates too, so that none can be missed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = IdeficsForVisionText2Text(settings).eval()
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                spread = 1.0 if "alpha" in name else 0.2
                parameter.add_(spread * torch.randn_like(parameter))
    return reference


def save(folder: Path, seed: int = 0, **options: Any) -> IdeficsForVisionText2Text:
    """Write a checkpoint; gives the model that it is of."""
    reference = model(config(**options), seed)
    reference.save_pretrained(folder)
    return reference


def pixels(rows: int, images: int, size: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, images, 3, size, size, generator=generator)


def image_mask(ids: Tensor, images: int, image: int = IMAGE) -> Tensor:
    """``image_attention_mask`` as transformers' ``IdeficsProcessor`` makes it."""
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda _: image, eos_token_id=EOS)
    times, _ = image_attention_mask_for_packed_input_ids(ids, tokenizer, "pt")
    return incremental_to_binary_attention_mask(times, "pt", num_classes=images)


def batch(rows: tuple[list[int], ...], image: int = IMAGE, seed: int = 0) -> dict[str, Tensor]:
    """Ids, attention mask and pixels of two images a row, in transformers' form."""
    ids = torch.tensor(rows)
    ids = torch.where(ids == IMAGE, image, ids)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": pixels(len(rows), 2, seed=seed),
        "image_attention_mask": image_mask(ids, 2, image),
    }


def ours(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs as our model takes them: a frame an image, no mask."""
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return {**kept, "pixel_values": inputs["pixel_values"][:, :, None]}
