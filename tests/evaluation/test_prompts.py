"""Prompts are what training showed, token for token."""

from __future__ import annotations

import pytest

from flamingo.config import BindingSourceConfig, EasyVQASourceConfig
from flamingo.data.concepts import Concept, ConceptSet
from flamingo.data.sequence import tokenize
from flamingo.data.sources.binding import BindingSource
from flamingo.data.sources.easy_vqa import EasyVQASource
from flamingo.data.words import Words
from flamingo.evaluation.prompts import (
    BINDING,
    QUESTION,
    Episode,
    Item,
    Template,
    prompt,
    prompt_hash,
    prompt_text,
)
from flamingo.testing import synthetic_images
from flamingo.types import END_OF_CHUNK_TOKEN, InterleavedSequence, Media, Text
from tests.tiny_world import save_cache

from . import tiny

IMAGES = synthetic_images(12)


def item(index: int, question: str, answer: str) -> Item:
    return Item(f"i{index}", Media((IMAGES[index],)), question, answer)


def test_the_literal_prompts() -> None:
    query = item(2, "is there a circle?", "no")
    demonstrations = (item(0, "what color is it?", "red"), item(1, "", "dax"))
    asked = Episode(query, demonstrations[:1], 1)
    assert prompt_text(prompt(asked, QUESTION)) == (
        "<image>what color is it? red<|endofchunk|><image>is there a circle?"
    )
    bound = Episode(item(2, "", "wug"), demonstrations[1:], 1)
    assert prompt_text(prompt(bound, BINDING)) == (
        "<image>This is a dax<|endofchunk|><image>This is a"
    )
    assert prompt(asked, QUESTION).media == (Media((IMAGES[0],)), Media((IMAGES[2],)))


def episode_of(sequence: InterleavedSequence) -> Episode:
    """A training sequence read as demonstrations and a query (its last item)."""
    items = []
    segments = list(sequence.segments)
    for start in range(0, len(segments), 3):
        medium, question, answer = segments[start : start + 3]
        assert isinstance(medium, Media)
        assert isinstance(question, Text)
        assert isinstance(answer, Text)
        word = answer.text.removeprefix(" ").removesuffix(END_OF_CHUNK_TOKEN)
        items.append(Item(str(start), medium, question.text, word))
    return Episode(items[-1], tuple(items[:-1]), len(items) - 1)


def binding_sequence() -> InterleavedSequence:
    concepts = tuple(Concept(str(i), tuple(IMAGES[i::6])) for i in range(6))
    words = Words(tuple(tiny.WORDS), (), frozenset())
    config = BindingSourceConfig(max_ways=3, images=5, held_out=0)
    return BindingSource(config, 0, ConceptSet(concepts, ()), words).sequence(3)


@pytest.mark.parametrize("source", ["binding", "easy_vqa"])
def test_a_prompt_has_the_ids_of_training_up_to_the_last_answer(source: str, tmp_path) -> None:
    tokenizer = tiny.tokenizer()
    if source == "binding":
        sequence, template = binding_sequence(), BINDING
    else:
        save_cache(tmp_path)
        folder = next(tmp_path.rglob("train")).parent
        config = EasyVQASourceConfig(pairs=3)
        sequence, template = EasyVQASource(config, 0, folder).sequence(5), QUESTION
    episode = episode_of(sequence)
    trained = tokenize(sequence, tokenizer, 500)
    asked = tokenize(prompt(episode, template), tokenizer, 500)
    answer = tokenizer(
        template.answer_text(episode.query.answer), add_special_tokens=False
    ).input_ids
    end = tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)
    assert (*asked.input_ids, *answer, end) == trained.input_ids
    assert asked.media == trained.media


def test_a_hash_changes_with_text_images_and_candidates() -> None:
    base = Episode(item(0, "q", "a"), (item(1, "q", "b"),), 1)
    other_image = Episode(item(2, "q", "a"), (item(1, "q", "b"),), 1)
    other_answer = Episode(item(0, "q", "a"), (item(1, "q", "c"),), 1)
    hashes = {
        prompt_hash(prompt(base, QUESTION), ()),
        prompt_hash(prompt(other_image, QUESTION), ()),
        prompt_hash(prompt(other_answer, QUESTION), ()),
        prompt_hash(prompt(base, QUESTION), ("a", "b")),
        prompt_hash(prompt(base, Template("{question}?", " {answer}")), ()),
    }
    assert len(hashes) == 5
    assert prompt_hash(prompt(base, QUESTION), ()) == prompt_hash(prompt(base, QUESTION), ())
