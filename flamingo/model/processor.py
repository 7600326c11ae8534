"""``FlamingoProcessor``: text and images, as people write them, to what the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from flamingo.backbones.clip_crop import as_clip_crops
from flamingo.images import as_rgb
from flamingo.types import END_OF_CHUNK_TOKEN, IMAGE_TOKEN


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, vocabulary_size: int
) -> PreTrainedTokenizerBase:
    """Give a tokenizer the two special tokens of a new model: behind the LM's own vocabulary.

    Raises ``ValueError`` when the tokenizer has more tokens than the LM has rows.
    """
    return place_special_tokens(
        tokenizer, image_token_id=vocabulary_size, end_of_chunk_token_id=vocabulary_size + 1
    )


def place_special_tokens(
    tokenizer: PreTrainedTokenizerBase, *, image_token_id: int, end_of_chunk_token_id: int
) -> PreTrainedTokenizerBase:
    """Give a tokenizer the two special tokens, at the ids that a model's configuration names.

    New models have them behind the LM's matrix, released OpenFlamingo models behind the
    tokenizer's last token and so inside a padded matrix. Unused names fill what lies between the
    tokenizer's last token and them. A tokenizer without a padding token pads with its
    end-of-sequence token (padding is always masked).

    Raises:
        ValueError: when the tokenizer has other tokens at these ids, or these tokens elsewhere.
    """
    wanted = {end_of_chunk_token_id: END_OF_CHUNK_TOKEN, image_token_id: IMAGE_TOKEN}
    if len(wanted) != 2:
        raise ValueError(
            "image_token_id, end_of_chunk_token_id: expected two ids, got "
            f"{image_token_id} for both"
        )
    vocabulary = tokenizer.get_vocab()
    own = {token: vocabulary[token] for token in wanted.values() if token in vocabulary}
    in_order = sorted(wanted.items())
    if own and own != {token: place for place, token in in_order}:
        raise ValueError(f"tokenizer: expected {_places(wanted)}, got {own}")
    if not own:
        if len(tokenizer) > in_order[0][0]:
            raise ValueError(
                f"tokenizer: expected {_places(wanted)} behind its own tokens, "
                f"got {len(tokenizer)} tokens"
            )
        unused = 0
        for place, token in in_order:
            gap = range(unused, unused := unused + place - len(tokenizer))
            tokenizer.add_tokens([f"<|unused_{i}|>" for i in gap], special_tokens=True)
            tokenizer.add_tokens([token], special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or END_OF_CHUNK_TOKEN
    return tokenizer


def _places(wanted: dict[int, str]) -> str:
    return " and ".join(f"{token} at {place}" for place, token in sorted(wanted.items()))


CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set parts = [{'type': 'text', 'text': message.content}] if message.content is string"
    " else message.content -%}"
    "{%- if message.role == 'assistant' -%}{{ ' ' }}{%- endif -%}"
    "{%- for part in parts -%}"
    "{{ '"
    + IMAGE_TOKEN
    + "' if part.type == 'image' else part.text }}"
    + "{%- endfor -%}"
    + "{%- if message.role == 'assistant' -%}{{ '"
    + END_OF_CHUNK_TOKEN
    + "' }}{%- endif -%}"
    + "{%- endfor -%}"
)
"""A chat as an in-context prompt: ``<image>question answer<|endofchunk|><image>question``. Earlier
turns are the demonstrations, as the evaluation's prompts have them."""


class FlamingoProcessor(ProcessorMixin):
    """A tokenizer that knows ``<image>`` and ``<|endofchunk|>``, and the encoder's transform.

    Chats (``apply_chat_template``) become prompts with demonstrations (:data:`CHAT_TEMPLATE`). A
    template that does not place ``<image>`` is one of the bare LM, and ours stands in its place.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        template = chat_template if IMAGE_TOKEN in (chat_template or "") else CHAT_TEMPLATE
        super().__init__(
            as_clip_crops(image_processor), tokenizer, chat_template=template, **kwargs
        )

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        *,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str = "pt",
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenise prompts and transform their images.

        Args:
            text: one prompt or several; each ``<image>`` stands for one image.
            images: the images of each prompt in reading order (for one prompt, a flat list, or
                its only image), read as ``flamingo.images.open_image`` reads files. None or empty:
                no prompt has any.
            padding: as the tokenizer's.
            padding_side: ``"left"`` to generate, ``"right"`` to train.
            return_tensors: only ``"pt"``.
            videos, audio: None; transformers' chats and pipelines pass them.
            kwargs: go to the tokenizer.

        Returns:
            ``input_ids`` and ``attention_mask`` (row, token), and, with images, ``pixel_values``
            (row, image, frame, 3, height, width), zeros where a row has fewer images.

        Raises:
            ValueError: when a prompt and its images do not match in number, before or after it is
                tokenised (truncation), and for images as ``flamingo.images.as_rgb``.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors: expected 'pt', got {return_tensors!r}")
        if videos is not None or audio is not None:
            raise ValueError("videos, audio: expected none, this model reads images and text")
        prompts = [text] if isinstance(text, str) else list(text)
        by_prompt = _by_prompt(images, len(prompts))
        for row, (prompt, own) in enumerate(zip(prompts, by_prompt, strict=True)):
            if prompt.count(IMAGE_TOKEN) != len(own):
                raise ValueError(
                    f"row {row}: expected an image for each of its {prompt.count(IMAGE_TOKEN)} "
                    f"{IMAGE_TOKEN}, got {len(own)} images"
                )
        inputs = self.tokenizer(
            prompts, padding=padding, padding_side=padding_side, return_tensors="pt", **kwargs
        )
        self._check_kept(inputs["input_ids"], by_prompt)
        data = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if any(by_prompt):
            data["pixel_values"] = self._pixels(by_prompt)
        return BatchFeature(data)

    def _check_kept(self, input_ids: torch.Tensor, by_prompt: list[list[Image.Image]]) -> None:
        place = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        kept = (input_ids == place).sum(dim=1).tolist()
        for row, (found, own) in enumerate(zip(kept, by_prompt, strict=True)):
            if found != len(own):  # its text would be read with the images of another part
                raise ValueError(
                    f"row {row}: expected a token {IMAGE_TOKEN} for each of its {len(own)} images, "
                    f"got {found}; was the prompt truncated?"
                )

    def _pixels(self, by_prompt: list[list[Image.Image]]) -> torch.Tensor:
        flat = [
            as_rgb(image, f"row {row}, image {n}")
            for row, own in enumerate(by_prompt)
            for n, image in enumerate(own)
        ]
        transformed = self.image_processor(flat, return_tensors="np")["pixel_values"]
        pixels = torch.from_numpy(np.asarray(transformed))
        padded = pixels.new_zeros(len(by_prompt), max(map(len, by_prompt)), 1, *pixels.shape[1:])
        start = 0
        for row, own in enumerate(by_prompt):
            padded[row, : len(own), 0] = pixels[start : start + len(own)]
            start += len(own)
        return padded

    @property
    def model_input_names(self) -> list[str]:  # type: ignore[override]
        return ["input_ids", "attention_mask", "pixel_values"]


def _by_prompt(images: Any, prompts: int) -> list[list[Image.Image]]:
    images = [images] if isinstance(images, Image.Image) else list(images or ())
    if not images:
        return [[] for _ in range(prompts)]
    if isinstance(images[0], Image.Image):
        if prompts != 1:
            raise ValueError(
                f"images: expected a list for each of {prompts} prompts, got a flat one"
            )
        return [images]
    if len(images) != prompts:
        raise ValueError(
            f"images: expected a list for each of {prompts} prompts, got {len(images)}"
        )
    return [list(own) for own in images]
