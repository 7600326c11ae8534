from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast

from flamingo.data.words import NOT_MADE_UP, made_up_words

PATTERN = re.compile(r"[bcdfghjklmnprstvwyz][aeiou][bcdfgklmnprstvxz]")


def test_words_are_pronounceable_and_not_english(tokenizer: PreTrainedTokenizerFast) -> None:
    words = made_up_words(tokenizer)
    everything = words.seen + words.held_out
    assert all(PATTERN.fullmatch(word) for word in everything)
    assert all(PATTERN.fullmatch(word) for word in NOT_MADE_UP)
    assert not {"cat", "dog", "red", "yes", "not", "sex"} & set(everything)
    assert not NOT_MADE_UP & set(everything)


def test_seen_and_held_out_words_are_disjoint_and_about_four_to_one(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    words = made_up_words(tokenizer)
    assert len(words.seen) + len(words.held_out) == 200
    assert not set(words.seen) & set(words.held_out)
    assert 25 <= len(words.held_out) <= 55


def test_words_of_one_token_come_first_and_the_others_are_named(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def single(word: str) -> bool:
        return len(tokenizer(f" {word}")["input_ids"]) == 1

    few = made_up_words(tokenizer, needed=10)
    assert not few.multi_token
    assert all(single(word) for word in few.seen + few.held_out)
    many = made_up_words(tokenizer)
    assert set(few.seen) <= set(many.seen)
    assert set(few.held_out) <= set(many.held_out)
    assert many.multi_token == {w for w in many.seen + many.held_out if not single(w)}


def test_the_split_belongs_to_the_word_and_not_to_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    words = made_up_words(tokenizer)
    tokenizer.add_tokens([" baf", " dop"])
    again = made_up_words(tokenizer)
    assert {"baf", "dop"} <= set(again.seen + again.held_out)
    assert not set(words.seen) & set(again.held_out)
    assert not set(words.held_out) & set(again.seen)


def test_which_words_are_held_out_never_changes(tokenizer: PreTrainedTokenizerFast) -> None:
    """Models trained before are evaluated on words that they were not trained on."""
    tokenizer.add_tokens([" baf", " dop", " lub", " vop"])
    words = made_up_words(tokenizer)
    assert {"baf", "dop"} <= set(words.seen)
    assert {"lub", "vop"} <= set(words.held_out)
