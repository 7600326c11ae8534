"""The answer to one question: against the model run on the whole text, and other parts of it."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import Tensor

from flamingo.asking import Respondent
from flamingo.demo.answering import Answered, Shown, answer
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.prompts import QUESTION
from flamingo.model.attention_maps import attention_maps
from flamingo.testing import draw, tiny_vision_encoder
from flamingo.types import IMAGE_TOKEN
from tests.evaluation import tiny

DEMONSTRATIONS = (
    Shown(draw("red", "circle", 0), "what colour is it?", "red"),
    Shown(draw("blue", "square", 1), "what colour is it?", "blue"),
)
QUERY = Shown(draw("green", "circle", 2), "what colour is it?")
TOKENS = 3


@pytest.fixture(scope="module")
def respondent() -> Respondent:
    decoding = Decoding(max_new_tokens=TOKENS)
    return Respondent(tiny.reader(), tiny_vision_encoder(), max_tokens=128, decoding=decoding)


@pytest.fixture(scope="module")
def opened(respondent: Respondent) -> Answered:
    return answer(respondent, DEMONSTRATIONS, QUERY, alternatives=4)


def prompt_ids(respondent: Respondent) -> list[int]:
    text = "".join(
        f"{IMAGE_TOKEN}{own.question} {own.answer}<|endofchunk|>" for own in DEMONSTRATIONS
    )
    pieces = (f"{text}{IMAGE_TOKEN}{QUERY.question}").replace("?", "?\0").split("\0")
    ids: list[int] = []  # question and answer are tokenised apart
    for piece in pieces:
        ids += respondent.reader.tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def features(respondent: Respondent) -> Tensor:
    encoder, shown = respondent.encoder, (*DEMONSTRATIONS, QUERY)
    pixels = torch.stack([encoder.transform(own.image) for own in shown])
    return encoder(pixels).half().float()[None, :, None]  # rounded as stored features are


def logits(respondent: Respondent, ids: list[int]) -> Tensor:
    with torch.no_grad():
        model = respondent.reader.model
        out = model(input_ids=torch.tensor([ids]), vision_features=features(respondent)).logits[0]
    out[:, model.never_generated] = -math.inf
    return out.log_softmax(dim=-1)


def test_probabilities_are_those_of_the_model_run_on_the_whole_text(respondent, opened) -> None:
    start, end = prompt_ids(respondent), respondent.reader.model.config.end_of_chunk_token_id
    assert 2 <= len(opened.alternatives) <= 5
    for own in (opened.said, *opened.alternatives):
        ids = [*own.ids, end][:TOKENS]
        likely = logits(respondent, [*start, *ids])[len(start) - 1 : -1]
        total = likely[range(len(ids)), ids].sum().exp().item()
        assert own.probability == pytest.approx(total, rel=1e-4)


def test_alternatives_differ_and_the_answer_is_among_them(opened) -> None:
    probabilities = [own.probability for own in opened.alternatives]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) <= 1
    texts = [own.text for own in opened.alternatives]
    assert len(set(texts)) == len(texts)
    assert opened.text in texts


def test_one_alternative_is_the_best_of_several(respondent) -> None:
    two = answer(respondent, DEMONSTRATIONS, QUERY, alternatives=2)
    one = answer(respondent, DEMONSTRATIONS, QUERY, alternatives=1)
    assert {own.text for own in one.alternatives} == {one.text, two.alternatives[0].text}


def test_the_answer_is_decoded_as_it_is_told_whatever_the_alternatives(monkeypatch) -> None:
    reader = tiny.reader()
    end = reader.model.config.end_of_chunk_token_id
    asked = reader.tokenizer("?", add_special_tokens=False)["input_ids"][-1]
    first, second = (
        reader.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        for word in (" red", " one")
    )
    # The likeliest first token leads nowhere: as a whole, the other answer is likelier.
    follow = {asked: {first: 0.5, second: 0.4}, first: {first: 0.3}, second: {end: 0.99}}
    tiny.make_bigram(reader, monkeypatch, follow)
    greedy, beams = (Decoding(max_new_tokens=2, beams=count) for count in (1, 3))
    said = {}
    for decoding in (greedy, beams):
        own = Respondent(reader, tiny_vision_encoder(), 128, decoding)
        said[decoding] = answer(own, (), Shown(QUERY.image, "?"), alternatives=3)
    assert said[greedy].said.ids == (first, first)
    assert said[greedy].said.probability == pytest.approx(0.15, rel=5e-3)
    assert said[beams].said.ids == (second,)
    assert said[beams].said.probability == pytest.approx(0.396, rel=5e-3)
    for own in said.values():
        assert own.alternatives[0].ids == (second,)
        assert own.text in [one.text for one in own.alternatives]


def test_the_same_words_with_either_end_are_added_up(monkeypatch) -> None:
    reader = tiny.reader()
    end, own_end = reader.model.config.end_of_chunk_token_id, 1  # of the language model itself
    asked = reader.tokenizer("?", add_special_tokens=False)["input_ids"][-1]
    word = reader.tokenizer(" red", add_special_tokens=False)["input_ids"][0]
    tiny.make_bigram(reader, monkeypatch, {asked: {word: 0.8}, word: {end: 0.5, own_end: 0.4}})
    respondent = Respondent(reader, tiny_vision_encoder(), 128, Decoding(max_new_tokens=3))
    found = answer(respondent, (), Shown(QUERY.image, "?"), alternatives=3)
    assert (found.said.ids, found.alternatives[0].ids) == ((word,), (word,))
    assert found.said.probability == pytest.approx(0.8 * 0.5, rel=5e-3)
    assert found.alternatives[0].probability == pytest.approx(0.8 * 0.9, rel=5e-3)


def test_candidates_are_ranked_by_the_likelihood_of_whole_words(respondent) -> None:
    words = ("red", "green", "fek")
    ranked = answer(respondent, DEMONSTRATIONS, QUERY, candidates=words)
    start = prompt_ids(respondent)
    totals = []
    for word in words:
        text = QUESTION.answer_text(word)
        ids = respondent.reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        model = respondent.reader.model
        with torch.no_grad():
            given = torch.tensor([[*start, *ids]])
            raw = model(input_ids=given, vision_features=features(respondent)).logits[0]
        likely = raw.log_softmax(dim=-1)[len(start) - 1 : -1]
        totals.append(likely[range(len(ids)), ids].sum())
    expected = torch.stack(totals).softmax(dim=0).tolist()
    found = {own.text: own.probability for own in ranked.alternatives}
    assert found == pytest.approx(dict(zip(words, expected, strict=True)), rel=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_attention_is_that_of_the_tokens_before_each_of_the_answer(respondent, opened) -> None:
    start, said = prompt_ids(respondent), list(opened.said.ids)
    positions = [len(start) - 1 + i for i in range(max(1, len(said)))]
    ids = torch.tensor([[*start, *said]])
    maps = attention_maps(
        respondent.reader.model, ids, tokens=positions, vision_features=features(respondent)
    )
    expected = sum(maps.over_patches(p, medium=2) for p in positions) / len(positions)
    torch.testing.assert_close(opened.attention, expected, rtol=1e-4, atol=1e-6)
    assert opened.layers == maps.layers
    assert opened.gates == pytest.approx([math.tanh(1.0)] * len(maps.layers))


def test_another_image_gets_another_answer(respondent, opened) -> None:
    other = Shown(Image.new("RGB", (32, 32), "black"), QUERY.question)
    found = answer(respondent, DEMONSTRATIONS, other, alternatives=4)
    assert found.alternatives[0].probability != opened.alternatives[0].probability


@pytest.mark.parametrize(
    ("query", "candidates", "message"),
    [
        (Shown(QUERY.image, "why " * 200), (), "at most 128 tokens"),
        (Shown(QUERY.image, "what is <image>?"), (), "<image>"),
        (QUERY, ("red", "red"), "candidates: expected different"),
    ],
)
def test_what_cannot_be_asked_is_refused(respondent, query, candidates, message) -> None:
    with pytest.raises(ValueError, match=message):
        answer(respondent, (), query, candidates=candidates)
