"""From an interleaved sequence to ids, labels and media: one way for training and evaluation."""

from __future__ import annotations

import re
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from flamingo.types import (
    END_OF_CHUNK_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN,
    InterleavedSequence,
    Media,
    Text,
    TokenizedSequence,
)

_END_OF_CHUNK = re.compile(f"({re.escape(END_OF_CHUNK_TOKEN)})")


def tokenize(
    sequence: InterleavedSequence, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> TokenizedSequence:
    """Ids, labels and media of ``sequence``.

    Text segments are tokenised one by one, so that labels end exactly where learned text ends; a
    leading space therefore belongs to the segment it introduces (``" yes"``). Each medium gives
    one ``<image>`` id. A BOS comes first where the tokenizer adds one. Of the special tokens only
    ``<|endofchunk|>`` is recognised in text; another one (``<|im_end|>``) is ordinary characters.

    Raises ``ValueError`` if a text contains ``<image>`` (media stand for themselves), if the
    tokenizer lacks a special token, and if there are more than ``max_tokens`` tokens: nothing is
    ever cut.
    """
    image_id = special_token_id(tokenizer, IMAGE_TOKEN)
    input_ids = _leading_ids(tokenizer)
    labels = [IGNORE_INDEX] * len(input_ids)
    for segment in sequence.segments:
        match segment:
            case Media():
                ids, learn = [image_id], False
            case Text():
                ids, learn = _text_ids(segment.text, tokenizer), segment.learn
        input_ids += ids
        labels += ids if learn else [IGNORE_INDEX] * len(ids)
    if len(input_ids) > max_tokens:
        raise ValueError(
            f"sequence: expected at most {max_tokens} tokens (data.max_tokens or "
            f"evaluation.max_tokens), got {len(input_ids)} with {len(sequence.media)} media"
        )
    return TokenizedSequence(tuple(input_ids), tuple(labels), sequence.media)


def cut(
    sequence: InterleavedSequence, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> InterleavedSequence:
    """The beginning of ``sequence`` whose ids are its first ``max_tokens`` ones, media included.

    The text across the limit ends where a token does, and media behind it go. That may be a few
    tokens before the limit: not within a character of several bytes, nor where the shorter text
    would be tokenised otherwise. Raises ``ValueError`` as :func:`tokenize`.
    """
    left = max_tokens - len(_leading_ids(tokenizer))
    kept: list[Text | Media] = []
    for segment in sequence.segments:
        if left <= 0:
            break
        if isinstance(segment, Media):
            kept.append(segment)
            left -= 1
            continue
        count = len(_text_ids(segment.text, tokenizer))
        if count > left:
            text = _first_tokens(segment.text, tokenizer, left)
            if text:
                kept.append(replace(segment, text=text))
            break
        kept.append(segment)
        left -= count
    return InterleavedSequence(tuple(kept))


def special_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token of ours. Raises ``ValueError`` if the tokenizer has it not."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(token_id, int) or token_id == tokenizer.unk_token_id:
        raise ValueError(
            f"tokenizer: expected it to have the special token {token!r}, got a vocabulary of "
            f"{len(tokenizer)} entries without it"
        )
    return token_id


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if IMAGE_TOKEN in text:
        raise ValueError(
            f"Text.text: expected media as Media segments, got {IMAGE_TOKEN!r} in {text!r}"
        )
    ids: list[int] = []
    for piece in _END_OF_CHUNK.split(text):
        if piece == END_OF_CHUNK_TOKEN:
            ids.append(special_token_id(tokenizer, END_OF_CHUNK_TOKEN))
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
    return ids


def _first_tokens(text: str, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """The longest beginning of ``text`` whose ids are its first ones, ``count`` at most."""
    ids = _text_ids(text, tokenizer)
    ends: list[int] = []  # of each token, in characters
    start = 0
    for piece in _END_OF_CHUNK.split(text):
        if piece == END_OF_CHUNK_TOKEN:
            ends.append(start + len(piece))
        elif piece:
            offsets = tokenizer(
                piece,
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            )["offset_mapping"]
            ends += [start + end for _, end in offsets]
        start += len(piece)
    for kept in range(count, 0, -1):
        beginning = text[: ends[kept - 1]]
        if _text_ids(beginning, tokenizer) == ids[:kept]:
            return beginning
    return ""


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """``[BOS]`` if the tokenizer puts one in front by itself (OPT, Llama), else nothing."""
    bos = tokenizer.bos_token_id
    first = tokenizer("a")["input_ids"][0]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    return [bos] if isinstance(bos, int) and first == bos != bare else []
