"""Small random stand-ins for everything that is otherwise downloaded.

A vision encoder, language models of thirteen families, a tokenizer and a learnable data set, all
built in memory from a seed within a second. They have the interfaces of the real ones, so that a
test of ours or of a project that uses this package needs no download. Nothing here touches the
global random state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ViTImageProcessorPil

from flamingo.backbones.mosaic_gpt import MosaicGPTConfig
from flamingo.backbones.vision import VisionEncoder
from flamingo.config import VisionConfig
from flamingo.types import END_OF_CHUNK_TOKEN, ImageRef, InterleavedSequence, Media, Text

VOCABULARY = 512
"""Entries of the tiny tokenizer and rows of the tiny language models."""
PAD_TOKEN, EOS_TOKEN = "<pad>", "<|endoftext|>"
PAD_ID, EOS_ID = 0, 1
IMAGE_SIZE = 32
COLOURS = {"red": (220, 30, 30), "green": (20, 170, 40), "blue": (30, 50, 220), "grey": (128,) * 3}
SHAPES = ("circle", "square", "triangle")


# ---------------------------------------------------------------------------- vision


class TinyTokens(nn.Module):
    """A random patch convolution: colours and shapes can be read linearly from its features."""

    def __init__(self, dim: int, patches: int, seed: int) -> None:
        super().__init__()
        side = math.isqrt(patches)
        if side * side != patches or IMAGE_SIZE % side:
            raise ValueError(
                f"patches: expected the square of a divisor of {IMAGE_SIZE}, got {patches}"
            )
        self.projection = nn.Conv2d(
            3, dim, kernel_size=IMAGE_SIZE // side, stride=IMAGE_SIZE // side
        )
        self._randomize(seed)

    @torch.no_grad()
    def _randomize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        fan_in = self.projection.weight[0].numel()
        self.projection.weight.normal_(std=4 * fan_in**-0.5, generator=generator)
        assert self.projection.bias is not None
        self.projection.bias.normal_(std=0.5, generator=generator)

    def forward(
        self, pixel_values: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image patch dim"]:
        grid = self.projection(pixel_values.to(self.projection.weight.dtype))
        return torch.tanh(grid).flatten(2).transpose(1, 2)


def tiny_vision_encoder(dim: int = 24, patches: int = 16, seed: int = 0) -> VisionEncoder:
    """A random frozen encoder: images of 32 px, ``patches`` (a square) tokens of ``dim``."""
    return VisionEncoder(
        VisionConfig(name="tiny"),
        TinyTokens(dim, patches, seed),
        dim=dim,
        patches=patches,
        image_processor=ViTImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
    )


# ---------------------------------------------------------------------------- language

FAMILIES = (
    "llama",
    "qwen2",
    "mistral",
    "gemma",
    "phi",
    "gpt2",
    "gpt_neox",
    "opt",
    "mpt",
    "mosaic_gpt",
    "falcon",
    "bloom",
    "gptj",
)


def tiny_language_model(
    family: str = "llama",
    *,
    layers: int = 4,
    hidden: int = 32,
    vocab_size: int = VOCABULARY,
    dropout: float = 0.0,
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """A random language model of a family, in evaluation mode, fp32.

    ``dropout`` sets every dropout the family has; ``overrides`` go to its config as they are
    (``tie_word_embeddings=False``, ``attn_implementation="eager"``). Biases and norm gains are
    random too, so that a forgotten one is noticed. Raises ``ValueError`` for an unknown family.
    """
    config_class, values = _family_config(family, layers, hidden, dropout)
    values |= {
        "vocab_size": vocab_size,
        "initializer_range": 0.15,  # activations of size 1 at this width; 0.02 is near-uniform
        "bos_token_id": EOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = config_class(**(values | overrides))
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    if family == "mpt":  # the config types the probability that its layers use as an int
        for module in model.modules():
            for name in ("attn_dropout_p", "hidden_dropout"):
                if hasattr(module, name):
                    setattr(module, name, dropout)
    return model.eval()


def _family_config(
    family: str, layers: int, hidden: int, dropout: float
) -> tuple[type[transformers.PreTrainedConfig], dict[str, Any]]:
    heads, positions = 4, 1024
    common: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }
    attention: dict[str, Any] = {"intermediate_size": 2 * hidden, "attention_dropout": dropout}
    gpt: dict[str, Any] = {
        "n_embd": hidden,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": positions,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
    }
    falcon: dict[str, Any] = {"hidden_dropout": dropout, "attention_dropout": dropout}
    match family:
        case "llama":
            return transformers.LlamaConfig, common | attention | {"num_key_value_heads": 2}
        case "qwen2":
            return transformers.Qwen2Config, common | attention | {"num_key_value_heads": 2}
        case "mistral":
            return transformers.MistralConfig, common | attention | {"num_key_value_heads": 2}
        case "gemma":
            gemma = {"num_key_value_heads": 1, "head_dim": hidden // heads}
            return transformers.GemmaConfig, common | attention | gemma
        case "phi":
            phi = {"resid_pdrop": dropout, "embd_pdrop": dropout}
            return transformers.PhiConfig, common | attention | phi
        case "gpt_neox":
            return transformers.GPTNeoXConfig, common | attention | {"hidden_dropout": dropout}
        case "gpt2":
            return transformers.GPT2Config, gpt
        case "gptj":
            return transformers.GPTJConfig, gpt | {"rotary_dim": hidden // heads // 2}
        case "opt":
            opt = {"ffn_dim": 2 * hidden, "word_embed_proj_dim": hidden, "dropout": dropout}
            return transformers.OPTConfig, common | opt | {"attention_dropout": dropout}
        case "mpt":
            return transformers.MptConfig, {
                "d_model": hidden,
                "n_layers": layers,
                "n_heads": heads,
                "max_seq_len": positions,
            }
        case "mosaic_gpt":
            return MosaicGPTConfig, {
                "d_model": hidden,
                "n_layers": layers,
                "n_heads": heads,
                "max_seq_len": positions,
                "attn_qk_ln": True,
                "resid_pdrop": dropout,  # refused unless 0: the family has none here
                "no_bias": True,
            }
        case "falcon":
            return transformers.FalconConfig, common | falcon
        case "bloom":
            sizes = {"hidden_size": hidden, "n_layer": layers, "n_head": heads}
            return transformers.BloomConfig, sizes | falcon
        case _:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")


# ---------------------------------------------------------------------------- tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of :data:`VOCABULARY` entries, trained on the few sentences below.

    Every string survives encoding and decoding; colours, shapes and common words of the prompts
    are one token with their leading space, and so are forty made-up words. It adds no
    BOS, as GPT-2's does not.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        bos_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained_tokenizer() -> str:
    words = [*COLOURS, *SHAPES, *"yes no is in the this a image black yellow brown teal".split()]
    words += "rectangle what shape colour color does there not it contain present".split()
    words += [f"{a}{b}{c}" for a, c in zip("bdfgmpvz", "xnkgbdlm", strict=True) for b in "aeiou"]
    corpus = [f"This is a {word}. What {word} is {word}? {word} {word}" for word in words]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # Merges run out before the vocabulary is full: filler entries, which no text produces, keep
    # the tokenizer and the language models the same size.
    tokenizer.add_tokens([f"<unused{i}>" for i in range(VOCABULARY - tokenizer.get_vocab_size())])
    return tokenizer.to_str()


def save_tiny_language_model(folder: str | Path, family: str = "llama", **options: Any) -> Path:
    """Write model and tokenizer as an HF folder; ``options`` are :func:`tiny_language_model`'s."""
    tiny_language_model(family, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return Path(folder)


# ---------------------------------------------------------------------------- data


def draw(colour: str, shape: str, seed: int) -> Image.Image:
    """A ``colour`` ``shape`` of random size and place on white, 32 x 32 px RGB."""
    generator = np.random.default_rng(seed)
    size = int(generator.integers(14, 22))
    left, top = (int(v) for v in generator.integers(1, IMAGE_SIZE - size - 1, size=2))
    box = (left, top, left + size, top + size)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    canvas = ImageDraw.Draw(image)
    match shape:
        case "circle":
            canvas.ellipse(box, fill=COLOURS[colour])
        case "square":
            canvas.rectangle(box, fill=COLOURS[colour])
        case "triangle":
            corners = [(left, top + size), (left + size, top + size), (left + size // 2, top)]
            canvas.polygon(corners, fill=COLOURS[colour])
        case _:
            raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    return image


def synthetic_images(n: int) -> list[ImageRef]:
    """``n`` coloured shapes, keyed ``synthetic/<colour>-<shape>/<index>``, the same at every call.

    Any twelve in a row show all twelve combinations.
    """
    combinations = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    images = []
    for index in range(n):
        colour, shape = combinations[index % len(combinations)]
        key = f"synthetic/{colour}-{shape}/{index}"
        images.append(ImageRef(key=key, open=partial(draw, colour, shape, index)))
    return images


@dataclass(frozen=True)
class SyntheticSource:
    """``<image>This is a red circle<|endofchunk|>``, ``pairs`` times; `` red circle`` is learned.

    A :class:`flamingo.types.Source`. What is learned can only be known from the images.
    """

    pairs: int = 2
    number_of_images: int = 24
    seed: int = 0
    name: str = "synthetic"

    def images(self) -> Sequence[ImageRef]:
        return synthetic_images(self.number_of_images)

    def sequence(self, index: int) -> InterleavedSequence:
        generator = np.random.default_rng((self.seed, index))
        images = self.images()
        segments: list[Text | Media] = []
        for chosen in generator.integers(len(images), size=self.pairs):
            image = images[chosen]
            answer = image.key.split("/")[1].replace("-", " ")
            segments += [
                Media((image,)),
                Text("This is a"),
                Text(f" {answer}{END_OF_CHUNK_TOKEN}", learn=True),
            ]
        return InterleavedSequence(tuple(segments))
