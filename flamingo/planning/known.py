"""Shapes of the released backbones that ``conf/`` names, so that planning needs no hub.

Each is the released ``config.json`` of its repository on the Hugging Face hub, as far as it decides
shapes; what is left out equals the default of transformers' configuration class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class KnownShape:
    """One architecture under the names it was released as."""

    names: tuple[str, ...]
    """Hub names, or names of embedded assets."""
    model_type: str
    """As in ``config.json``."""
    values: Mapping[str, Any] = field(default_factory=dict)
    pixels: int | None = None
    """Side of the images that its processor gives, where it is not the configuration's."""


VISION = (
    KnownShape(
        ("openai/clip-vit-large-patch14",),
        "clip_vision_model",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    ),
    KnownShape(("google/siglip-base-patch16-224",), "siglip_vision_model"),
    # Positions for 518 px, which are interpolated: the processor crops 224 px.
    KnownShape(
        ("facebook/dinov2-base",), "dinov2", {"image_size": 518, "patch_size": 14}, pixels=224
    ),
    KnownShape(("google/vit-base-patch16-224-in21k",), "vit"),
)

LANGUAGE = (
    KnownShape(
        (
            "anas-awadalla/mpt-1b-redpajama-200b",
            "anas-awadalla/mpt-1b-redpajama-200b-dolly",
            "mosaicml/mpt-1b-redpajama-200b",
        ),
        "mosaic_gpt",
        {"attn_qk_ln": True, "no_bias": True, "vocab_size": 50432},
    ),
    KnownShape(
        (
            "togethercomputer/RedPajama-INCITE-Base-3B-v1",
            "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
        ),
        "gpt_neox",
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "use_parallel_residual": False,
            "vocab_size": 50432,
        },
    ),
    KnownShape(
        ("anas-awadalla/mpt-7b", "mosaicml/mpt-7b"),
        "mpt",
        {"d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432},
    ),
    KnownShape(
        (
            "HuggingFaceTB/SmolLM2-135M",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "smollm2-135m-instruct",
        ),
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    KnownShape(
        ("Qwen/Qwen2-0.5B",),
        "qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    KnownShape(("openai-community/gpt2",), "gpt2"),
    KnownShape(("facebook/opt-125m",), "opt"),
    KnownShape(
        ("EleutherAI/pythia-160m",),
        "gpt_neox",
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "rotary_pct": 0.25,
            "vocab_size": 50304,
        },
    ),
)


def known(name: str, shapes: tuple[KnownShape, ...]) -> KnownShape | None:
    """The shape that was released as ``name``, if it is one of ``shapes``."""
    return next((shape for shape in shapes if name in shape.names), None)
