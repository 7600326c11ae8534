"""How a run that is asked by hand decodes its answers."""

from __future__ import annotations

from functools import partial

import pytest

from flamingo.asking import Respondent, decoding_of, open_answer, read
from flamingo.choices import Protocol
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.prompts import Episode, Item
from flamingo.evaluation.scoring import Reader
from flamingo.evaluation_config import EvaluationConfig
from flamingo.testing import draw, tiny_vision_encoder
from flamingo.types import ImageRef, Media
from tests.evaluation import tiny


def test_an_answer_is_decoded_as_the_evaluation_decodes_questions() -> None:
    ours, theirs = EvaluationConfig(), EvaluationConfig(protocol=Protocol.open_flamingo)
    assert decoding_of(ours) == Decoding(max_new_tokens=10)
    assert decoding_of(theirs) == Decoding(max_new_tokens=5, beams=3)
    changed = EvaluationConfig(beams=4, max_new_tokens=7)
    assert decoding_of(changed) == Decoding(max_new_tokens=7, beams=4)


def test_its_length_can_be_told_otherwise() -> None:
    own = EvaluationConfig(beams=4, max_new_tokens=7)
    assert decoding_of(own, 2) == Decoding(max_new_tokens=2, beams=4)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_prompt_beyond_learned_positions_is_refused_with_its_answer(family: str) -> None:
    model = tiny.model(family, max_position_embeddings=16)
    reader = Reader(model, tiny.tokenizer(), MediaLatents(model, tiny.load_media()))
    respondent = partial(Respondent, reader, tiny_vision_encoder(), 128)
    image = Media((ImageRef("own", partial(draw, "red", "circle", 0)),))
    query = Item("own", image, "what is it?", "")
    tokens = len(read(respondent(Decoding(max_new_tokens=1)), Episode(query, (), 0)).input_ids)
    fits = respondent(Decoding(max_new_tokens=16 - tokens))
    assert open_answer(fits, read(fits, Episode(query, (), 0)))
    expected = "prompt: expected at most the 16 positions that the language model has learned"
    with pytest.raises(ValueError, match=expected):
        read(respondent(Decoding(max_new_tokens=17 - tokens)), Episode(query, (), 0))
    words = ("red", " ".join(["red"] * (17 - tokens)))
    with pytest.raises(ValueError, match=expected):
        read(fits, Episode(query, (), 0, candidates=words))
