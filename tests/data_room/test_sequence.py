from __future__ import annotations

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from flamingo.data.sequence import cut, tokenize
from flamingo.testing import synthetic_images, tiny_tokenizer
from flamingo.types import IGNORE_INDEX, InterleavedSequence, Media, Text

IMAGE, END = 512, 513
A, B = (Media((image,)) for image in synthetic_images(2))


def test_labels_are_exactly_the_learned_text(tokenizer: PreTrainedTokenizerFast) -> None:
    yes, this = tokenizer.convert_tokens_to_ids(["Ġyes", "This"])
    sequence = InterleavedSequence(
        (A, Text("This"), Text(" yes<|endofchunk|>", learn=True), B, Text("This yes"))
    )
    result = tokenize(sequence, tokenizer, max_tokens=100)
    assert result.input_ids == (IMAGE, this, yes, END, IMAGE, this, yes)
    assert result.labels == (-100, -100, yes, END, -100, -100, -100)
    assert result.media == (A, B)
    assert IGNORE_INDEX == -100


def test_text_is_tokenised_as_it_is_in_one_string(tokenizer: PreTrainedTokenizerFast) -> None:
    sequence = InterleavedSequence((Text("What is this?"), Text(" yes<|endofchunk|>a", learn=True)))
    whole = tokenizer("What is this? yes<|endofchunk|>a", add_special_tokens=False)["input_ids"]
    assert tokenize(sequence, tokenizer, 100).input_ids == tuple(whole)


def test_the_limit_is_an_error_and_never_cuts(tokenizer: PreTrainedTokenizerFast) -> None:
    sequence = InterleavedSequence((A, Text(" yes yes", learn=True)))
    assert len(tokenize(sequence, tokenizer, 3).input_ids) == 3
    with pytest.raises(ValueError, match="at most 2 tokens .* got 3 with 1 media"):
        tokenize(sequence, tokenizer, 2)


def test_an_image_token_in_text_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="got '<image>' in 'look: <image>'"):
        tokenize(InterleavedSequence((Text("look: <image>"),)), tokenizer, 100)


def test_other_special_tokens_in_text_are_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    result = tokenize(InterleavedSequence((Text("<pad><|endoftext|>"),)), tokenizer, 100)
    assert not {0, 1} & set(result.input_ids)
    assert tokenizer.decode(result.input_ids) == "<pad><|endoftext|>"


def test_a_bos_that_the_tokenizer_adds_comes_first(tokenizer: PreTrainedTokenizerFast) -> None:
    sequence = InterleavedSequence((A, Text(" yes"), Text(" no", learn=True)))
    without = tokenize(sequence, tokenizer, 100)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
    )
    with_bos = tokenize(sequence, tokenizer, 100)
    assert with_bos.input_ids == (1, *without.input_ids)
    assert with_bos.labels == (-100, *without.labels)


def test_a_tokenizer_without_our_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="special token '<image>'"):
        tokenize(InterleavedSequence((A,)), tiny_tokenizer(), 100)


# ---------------------------------------------------------------------------- cutting


def ids(sequence: InterleavedSequence, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    return tokenize(sequence, tokenizer, 1000).input_ids


def test_what_is_cut_has_the_first_ids_of_the_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = "What colour's this?  Zürich, 東京\n\n", "no<|endofchunk|> 🦩🦩!", "  "
    sequence = InterleavedSequence((Text(texts[0]), A, Text(texts[1], learn=True), B))
    sequence = InterleavedSequence((*sequence.segments, Text(texts[2])))
    whole = ids(sequence, tokenizer)
    for limit in range(len(whole) + 2):
        kept = cut(sequence, tokenizer, limit)
        made = ids(kept, tokenizer)
        assert made == whole[: len(made)]
        assert limit - 3 <= len(made) <= limit or made == whole  # a character is four bytes
        assert len(kept.media) == made.count(IMAGE)
        assert all(s.learn is (s.text[0] == "n") for s in kept.segments if isinstance(s, Text))
    assert cut(sequence, tokenizer, len(whole)) == sequence


def test_a_bos_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 1)]
    )
    sequence = InterleavedSequence((A, Text(" yes yes")))
    (yes,) = tokenizer.convert_tokens_to_ids(["Ġyes"])
    assert ids(cut(sequence, tokenizer, 3), tokenizer) == (1, IMAGE, yes)
    assert cut(sequence, tokenizer, 1) == InterleavedSequence(())
