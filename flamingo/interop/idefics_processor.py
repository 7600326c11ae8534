"""Prompts for IDEFICS: its tokenizer and transform, and its way to write an image.

Loaded models answer prompts of their training's form, for the instruction-tuned ones::

    processor = load_idefics_processor("HuggingFaceM4/idefics-9b-instruct")
    text = "User:<image>What is this?<end_of_utterance>\\nAssistant:"
    model.generate(**processor(idefics_prompt(text), images), max_new_tokens=20)
"""

from __future__ import annotations

import re

from transformers import AutoTokenizer

from flamingo.backbones import idefics
from flamingo.model.processor import FlamingoProcessor
from flamingo.types import IMAGE_TOKEN

FAKE_TOKEN = "<fake_token_around_image>"
NO_CHATS = (
    "{{ raise_exception('chats: expected a prompt as idefics_prompt writes it, as IDEFICS does not "
    "know the tokens of <image>question answer<|endofchunk|>') }}"
)
_IMAGES = re.compile(f"(?:{FAKE_TOKEN})?(?:{IMAGE_TOKEN}(?:{FAKE_TOKEN})?)+")


def idefics_prompt(text: str) -> str:
    """``text`` with IDEFICS' token before, between and behind images; what has it stays.

    ``"<image><image>a"`` is ``"<fake..><image><fake..><image><fake..>a"``, as transformers'
    ``IdeficsProcessor`` writes two images in a row. The begin-of-sequence token that every prompt
    starts with is the tokenizer's to add (LLaMA's does).
    """
    return _IMAGES.sub(
        lambda run: FAKE_TOKEN + run[0].count(IMAGE_TOKEN) * f"{IMAGE_TOKEN}{FAKE_TOKEN}", text
    )


def load_idefics_processor(
    name_or_folder: str, *, revision: str | None = None
) -> FlamingoProcessor:
    """The checkpoint's tokenizer and image transform as our processor.

    Its ``apply_chat_template`` is an error, as turns of ours end in a token that IDEFICS does not
    know. Raises ``ValueError`` for a tokenizer that does not know ``<image>``.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_folder, revision=revision)
    unknown = [t for t in (IMAGE_TOKEN, FAKE_TOKEN) if t not in tokenizer.get_vocab()]
    if unknown:
        raise ValueError(
            f"{name_or_folder}: expected a tokenizer with {IMAGE_TOKEN} and {FAKE_TOKEN}, "
            f"it lacks {unknown}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is always masked
    transform = idefics.load_image_processor(name_or_folder, revision)
    return FlamingoProcessor(transform, tokenizer, chat_template=NO_CHATS)
