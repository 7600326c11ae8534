"""Scores against a plain forward pass over one prompt at a time."""

from __future__ import annotations

import math

import pytest
import torch

from flamingo.data.sequence import tokenize
from flamingo.evaluation import scoring
from flamingo.evaluation.prompts import BINDING, prompt
from flamingo.evaluation.scoring import generate_answers, rank_candidates
from flamingo.types import END_OF_CHUNK_TOKEN, TokenizedSequence

from . import tiny


@pytest.fixture(scope="module")
def reader() -> scoring.Reader:
    return tiny.reader()


@pytest.fixture(scope="module")
def prompts(reader: scoring.Reader) -> list[TokenizedSequence]:
    """Prompts of several lengths, with their latents prepared."""
    benchmark = tiny.binding(queries=3)
    sequences = [prompt(e, BINDING) for shots in (2, 0, 1) for e in benchmark.episodes(shots, 0)]
    result = [tokenize(s, reader.tokenizer, 500) for s in sequences]
    reader.latents.prepare(medium for p in result for medium in p.media)
    return result


def next_logits(reader: scoring.Reader, prompt: TokenizedSequence, ids: list[int]) -> torch.Tensor:
    """The logits behind one prompt and some ids: no padding, no cache, features and not latents."""
    features = tiny.load_media()(prompt.media)[None].float()
    with torch.no_grad():
        output = reader.model(
            input_ids=torch.tensor([[*prompt.input_ids, *ids]]), vision_features=features
        )
    return output.logits[0, -1].float()


def log_likelihood(reader: scoring.Reader, prompt: TokenizedSequence, ids: list[int]) -> float:
    return sum(
        next_logits(reader, prompt, ids[:n]).log_softmax(0)[token].item()
        for n, token in enumerate(ids)
    )


@pytest.mark.parametrize(
    "candidates",
    [
        pytest.param([" bax", " dan", " fek"], id="one token each"),
        pytest.param([" red circle", " red square", " zzyx"], id="several tokens, shared start"),
        pytest.param([" bax", " bax dan", " fek"], id="one begins another"),
    ],
)
def test_ranking_is_by_the_likelihood_of_whole_words(
    reader: scoring.Reader, prompts: list[TokenizedSequence], candidates: list[str]
) -> None:
    end = END_OF_CHUNK_TOKEN if " bax dan" in candidates else ""
    ids = [
        reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        + ([reader.tokenizer.convert_tokens_to_ids(end)] if end else [])
        for text in candidates
    ]
    answers = dict(rank_candidates(reader, prompts, [candidates] * len(prompts), batch_size=4))
    assert sorted(answers) == list(range(len(prompts)))
    for index, own in enumerate(prompts):
        expected = torch.tensor([log_likelihood(reader, own, word) for word in ids])
        best = int(expected.argmax())
        assert answers[index].text == candidates[best].strip()
        assert answers[index].raw == candidates[best]
        assert answers[index].probability == pytest.approx(
            expected.softmax(0)[best].item(), rel=1e-4
        )


def test_candidates_of_one_token_need_one_row_a_prompt() -> None:
    assert scoring._leaves([(5,), (7,), (9,)]) == [()]
    assert scoring._leaves([(5, 6), (5, 7), (9,)]) == [(5,)]
    assert scoring._leaves([(5, 6, 7), (5, 8), (9, 1)]) == [(5, 6), (9,)]


def test_generation_is_greedy_and_its_probability_that_of_all_tokens_with_the_end(
    reader: scoring.Reader, prompts: list[TokenizedSequence]
) -> None:
    answers = dict(generate_answers(reader, prompts, max_new_tokens=4, batch_size=4))
    ends = set(reader.model.generation_config.eos_token_id)
    for index, own in enumerate(prompts):
        ids: list[int] = []
        total = 0.0
        while len(ids) < 4 and not (ids and ids[-1] in ends):
            logits = next_logits(reader, own, ids)
            logits[reader.model.config.image_token_id] = -math.inf
            ids.append(int(logits.argmax()))
            total += logits.log_softmax(0)[ids[-1]].item()
        said = ids[:-1] if ids[-1] in ends else ids
        assert answers[index].raw == reader.tokenizer.decode(ids)
        assert answers[index].text == reader.tokenizer.decode(said).strip()
        assert answers[index].probability == pytest.approx(math.exp(total), rel=1e-4)


def test_generation_stops_at_the_end_of_chunk(
    reader: scoring.Reader, prompts: list[TokenizedSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the end-of-chunk token made the likeliest, every answer is empty and certain to end."""
    end = reader.tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)
    original = reader.model._logits

    def biased(*arguments):
        logits = original(*arguments).clone()
        logits[..., end] += 1000
        return logits

    monkeypatch.setattr(reader.model, "_logits", biased)
    for _, answer in generate_answers(reader, prompts, max_new_tokens=4, batch_size=4):
        assert (answer.raw, answer.text) == (END_OF_CHUNK_TOKEN, "")
        assert answer.probability == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_the_batch_size_changes_no_prediction(
    prompts: list[TokenizedSequence], dtype: torch.dtype, batch_size: int
) -> None:
    reader = tiny.reader(dtype=dtype)
    reader.latents.prepare(medium for p in prompts for medium in p.media)
    words = [[" bax", " dan", " red circle"]] * len(prompts)
    alone = dict(rank_candidates(reader, prompts, words, batch_size=1))
    together = dict(rank_candidates(reader, prompts, words, batch_size=batch_size))
    assert {i: a.text for i, a in together.items()} == {i: a.text for i, a in alone.items()}
    alone = dict(generate_answers(reader, prompts, max_new_tokens=4, batch_size=1))
    together = dict(generate_answers(reader, prompts, max_new_tokens=4, batch_size=batch_size))
    assert {i: a.raw for i, a in together.items()} == {i: a.raw for i, a in alone.items()}


def test_a_near_tie_is_decided_by_the_prompt_alone(
    reader: scoring.Reader, prompts: list[TokenizedSequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose rounding puts the wrong candidate first by less than the margin."""
    original = scoring._score

    def rounded(reader, own, candidates):
        scores = original(reader, own, candidates)
        if len(own) == 1:
            return [torch.tensor([0.0, 1e-5])]
        return [torch.tensor([1e-5, 0.0]) for _ in scores]

    monkeypatch.setattr(scoring, "_score", rounded)
    for batch_size in (1, 8):
        answers = rank_candidates(
            reader, prompts, [[" bax", " dan"]] * len(prompts), batch_size=batch_size
        )
        assert [answer.text for _, answer in answers] == ["dan"] * len(prompts)


def test_candidates_that_cannot_be_told_apart_are_an_error(
    reader: scoring.Reader, prompts: list[TokenizedSequence]
) -> None:
    with pytest.raises(ValueError, match="different, non-empty"):
        list(rank_candidates(reader, prompts[:1], [[" bax", " bax"]], batch_size=1))
    with pytest.raises(ValueError, match="at least one"):
        list(rank_candidates(reader, prompts[:1], [[]], batch_size=1))
