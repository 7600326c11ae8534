"""Demonstrations that all prompts begin with, read once: against each prompt alone, read whole."""

from dataclasses import replace

import pytest
import torch

from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.prefix import common_tokens, read_prompts
from flamingo.evaluation.ranking import rank_candidates
from flamingo.evaluation.scoring import Reader
from flamingo.types import TokenizedSequence

from .tiny import Spy, next_logits, prompts, reader

FAMILIES = ["llama", "gpt_neox", "opt", "gpt2", "bloom", "falcon"]
EXTRA = [7, 8, 9]


def alike(own: Reader) -> tuple[list[TokenizedSequence], int]:
    """Queries of different lengths behind the same demonstrations, and the tokens of these."""
    two_shots = prompts(own)[:3]
    end = own.model.config.end_of_chunk_token_id
    first = two_shots[0]
    common = len(first.input_ids) - first.input_ids[::-1].index(end)
    made = []
    for number, other in enumerate(two_shots):
        begin = len(other.input_ids) - other.input_ids[::-1].index(end)
        tail = (*other.input_ids[begin:-1], *EXTRA[:number], other.input_ids[-1])
        ids = first.input_ids[:common] + tail
        made.append(replace(first, input_ids=ids, media=first.media[:-1] + other.media[-1:]))
    return made, common


def pairs(made: list[TokenizedSequence]):
    return [(p.input_ids, p.media) for p in made]


@pytest.fixture(params=FAMILIES)
def own(request) -> Reader:
    return reader(request.param)


def test_logits_behind_common_demonstrations_are_those_of_each_prompt_alone(own):
    made, common = alike(own)
    assert common_tokens(own, pairs(made)) == common > 10
    for _ in range(2):  # read, then kept
        prefix = read_prompts(own, pairs(made), keep=True)
        behind = prefix.follow(own, [0, 1, 2], [[11, 12]] * 3).view(3, 2, -1)
        for row, prompt in enumerate(made):
            alone = next_logits(own, prompt, []), next_logits(own, prompt, [11, 12])
            torch.testing.assert_close(prefix.logits[row], alone[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(behind[row, 1], alone[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_each_prompt_alone(own, beams, monkeypatch):
    made, _ = alike(own)
    monkeypatch.setattr(Reader, "margin", 0.0)  # none is run again alone
    decoding = Decoding(max_new_tokens=4, beams=beams)
    together = dict(generate_answers(own, made, decoding=decoding, batch_size=3))
    alone = dict(generate_answers(own, made, decoding=decoding, batch_size=1))
    for index in range(3):
        assert together[index].raw == alone[index].raw
        assert together[index].probability == pytest.approx(alone[index].probability, rel=1e-3)


def test_candidates_score_as_behind_each_prompt_alone(own):
    made, _ = alike(own)
    words = [[" bax", " bex", " dan"]] * 3
    together = dict(rank_candidates(own, made, words, decoding=Decoding(), batch_size=12))
    alone = dict(rank_candidates(own, made, words, decoding=Decoding(), batch_size=1))
    for index in range(3):
        assert together[index].scores == pytest.approx(alone[index].scores, abs=1e-3)


def test_they_are_read_once_for_all_batches():
    own = reader()
    made, common = alike(own)
    spy = Spy(own)
    for _ in range(3):
        read_prompts(own, pairs(made), keep=False)
    assert spy.tokens == common + 3 * sum(len(p.input_ids) - common for p in made)


def test_others_are_read_anew():
    own = reader()
    made, _ = alike(own)
    read_prompts(own, pairs(made), keep=False)
    media = (made[2].media[-1], *made[0].media[1:])
    other = [replace(p, media=media[:-1] + p.media[-1:]) for p in made]
    got = read_prompts(own, pairs(other), keep=False).logits
    for row, prompt in enumerate(other):
        alone = next_logits(own, prompt, [])
        torch.testing.assert_close(got[row], alone, rtol=1e-4, atol=1e-4)


def test_a_demonstration_with_another_image_is_not_common():
    own = reader()
    made, common = alike(own)
    media = list(made[1].media)
    media[0] = made[2].media[-1]
    made[1] = replace(made[1], media=tuple(media))
    assert common_tokens(own, pairs(made)) == 0
    media = list(made[1].media)
    media[0], media[1] = made[0].media[0], made[2].media[-1]
    made[1] = replace(made[1], media=tuple(media))
    ids, end = made[0].input_ids, own.model.config.end_of_chunk_token_id
    assert common_tokens(own, pairs(made)) == ids.index(end) + 1 < common


def test_a_prompt_alone_and_a_model_that_counts_padding_read_them_whole():
    own = reader()
    made, _ = alike(own)
    assert common_tokens(own, pairs(made[:1])) == 0
    assert common_tokens(reader("mpt"), pairs(made)) == 0
