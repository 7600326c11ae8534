"""OpenFlamingo's ids of the special tokens, as its own calls give them."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flamingo.interop.tokens import TokenIds, open_flamingo_token_ids
from flamingo.model.processor import place_special_tokens
from flamingo.testing import tiny_tokenizer


def neox_like(pad: str | None = None) -> PreTrainedTokenizerFast:
    """As GPT-NeoX's: added tokens (runs of spaces) behind the vocabulary, and no padding token."""
    vocabulary = {"<|endoftext|>": 0, "<|padding|>": 1, "a": 2, "b": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(["  ", "   ", "    "])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token=pad
    )


def as_open_flamingo_does(tokenizer: PreTrainedTokenizerFast) -> TokenIds:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endofchunk|>", "<image>"]})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    return TokenIds(tokenizer.encode("<|endofchunk|>")[-1], tokenizer.encode("<image>")[-1])


@pytest.mark.parametrize("build", [neox_like, lambda: neox_like("<|padding|>"), tiny_tokenizer])
def test_the_ids_are_those_of_open_flamingos_own_calls(build):
    tokenizer = build()
    before = len(tokenizer)
    ids = open_flamingo_token_ids(tokenizer)
    assert ids == TokenIds(end_of_chunk=before, image=before + 1)
    assert ids == as_open_flamingo_does(build())
    assert len(tokenizer) == before, "the tokenizer that was asked about must not change"


def test_a_tokenizer_that_has_the_tokens_keeps_them():
    tokenizer = neox_like()
    expected = as_open_flamingo_does(tokenizer)
    assert open_flamingo_token_ids(tokenizer) == expected


def test_a_tokenizer_placed_at_these_ids_reads_prompts_as_open_flamingos_does():
    theirs = neox_like()
    as_open_flamingo_does(theirs)
    ids = open_flamingo_token_ids(neox_like())
    ours = place_special_tokens(
        neox_like(), image_token_id=ids.image, end_of_chunk_token_id=ids.end_of_chunk
    )
    prompt = "<image>a b<|endofchunk|><image>b"
    assert ours(prompt).input_ids == theirs(prompt).input_ids == [8, 2, 3, 7, 8, 3]
    assert ours.pad_token == "<|endoftext|>"
