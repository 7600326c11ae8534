"""Candidates' scores against a plain forward pass over one prompt and one candidate at a time."""

from __future__ import annotations

import pytest
import torch

from flamingo.evaluation import scoring
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.ranking import Candidates, rank_candidates
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.testing import FAMILIES
from flamingo.types import END_OF_CHUNK_TOKEN, TokenizedSequence

from . import tiny

ONE_TOKEN = [" bax", " dan", " fek"]
SEVERAL = [" red circle", " red square", " zzyx", " bax"]
OVERLAPPING = [" bax", " bax dan", " fek"]
WHOLE_WORDS = Decoding()
CLASSES = Decoding(normalize_by_length=True, end_of_chunk=False)


def ids_of(reader: Reader, candidates: list[str], end: bool = False) -> list[list[int]]:
    last = [reader.tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)] if end else []
    return [
        reader.tokenizer(text, add_special_tokens=False)["input_ids"] + last for text in candidates
    ]


def rank(reader, prompts, candidates, decoding=WHOLE_WORDS, batch_size=4) -> list[Answer]:
    """Answers in the order of the prompts."""
    answers = dict(
        rank_candidates(
            reader, prompts, [candidates] * len(prompts), decoding=decoding, batch_size=batch_size
        )
    )
    assert sorted(answers) == list(range(len(prompts)))
    return [answers[i] for i in range(len(prompts))]


def check(reader, prompts, candidates, answers, *, end: bool, mean: bool) -> None:
    for own, answer in zip(prompts, answers, strict=True):
        expected = torch.tensor(
            [
                tiny.log_likelihood(reader, own, ids) / (len(ids) if mean else 1)
                for ids in ids_of(reader, candidates, end)
            ]
        )
        assert answer.scores == pytest.approx(expected.tolist(), abs=1e-5)
        best = int(expected.argmax())
        assert (answer.raw, answer.text) == (candidates[best], candidates[best].strip())
        assert answer.probability == pytest.approx(expected.softmax(0)[best].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("candidates", "decoding", "end", "mean"),
    [
        pytest.param(ONE_TOKEN, WHOLE_WORDS, False, False, id="one token each"),
        pytest.param(SEVERAL, WHOLE_WORDS, False, False, id="several tokens, shared start"),
        pytest.param(OVERLAPPING, WHOLE_WORDS, True, False, id="one begins another"),
        pytest.param(SEVERAL, CLASSES, False, True, id="the mean of several tokens"),
        pytest.param(OVERLAPPING, CLASSES, False, True, id="overlapping, without the end"),
        pytest.param(
            OVERLAPPING, Decoding(normalize_by_length=True), True, True, id="mean with the end"
        ),
    ],
)
def test_scores_are_log_likelihoods_of_all_tokens(
    reader: Reader, prompts: list[TokenizedSequence], candidates, decoding, end, mean
) -> None:
    prompts = prompts[::4]  # one of each length
    answers = rank(reader, prompts, candidates, decoding)
    check(reader, prompts, candidates, answers, end=end, mean=mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_continues_prompts_of_different_lengths(family: str) -> None:
    reader = tiny.reader(family)
    prompts = tiny.prompts(reader)[::4]
    assert len({len(p.input_ids) for p in prompts}) == 3
    answers = rank(reader, prompts, SEVERAL)
    check(reader, prompts, SEVERAL, answers, end=False, mean=False)


def test_prompts_without_media_are_ranked_beside_others(
    reader: Reader, prompts: list[TokenizedSequence]
) -> None:
    image = reader.model.config.image_token_id
    bare = tuple(token for token in prompts[0].input_ids if token != image)
    mixed = [prompts[0], TokenizedSequence(bare, bare, ())]
    check(reader, mixed, SEVERAL, rank(reader, mixed, SEVERAL), end=False, mean=False)


def test_a_prompt_is_read_once_however_many_candidates_follow() -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)[:2]
    words = [f" {a}{b} {c}" for a in "bdfgmpvzqw" for b in "aeiouklrst" for c in "bdfgmpvzqw"]
    tokens = ids_of(reader, words)
    assert len(words) == 1000
    assert {len(ids) for ids in tokens} >= {3, 4, 5}
    spy = tiny.Spy(reader)
    answers = rank(reader, prompts, words, batch_size=64)
    lengths = [len(p.input_ids) for p in prompts]
    leaves = {tuple(ids[:-1]) for ids in tokens}
    assert spy.calls[0] == (2, sum(lengths), False)
    assert all(cached for _, _, cached in spy.calls[1:]), "no other pass reads a prompt"
    assert spy.tokens <= sum(lengths) + 2 * sum(map(len, leaves))
    assert max(rows for rows, _, _ in spy.calls) == 64
    for own, answer in zip(prompts, answers, strict=True):
        best = max(answer.scores)
        assert sum(score > best - reader.margin for score in answer.scores) == 1, "else run again"
        for place in (0, 1, 499, 998, 999, answer.scores.index(best)):
            expected = tiny.log_likelihood(reader, own, tokens[place])
            assert answer.scores[place] == pytest.approx(expected, abs=1e-5)


def test_candidates_of_one_token_need_one_pass_without_a_cache() -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)
    spy = tiny.Spy(reader)
    rank(reader, prompts, ONE_TOKEN, batch_size=9)
    assert spy.calls == [(9, sum(len(p.input_ids) for p in prompts), False)]


def test_leaves_serve_all_candidates_that_begin_like_them() -> None:
    for ids, leaves in (
        ([(5,), (7,), (9,)], ((),)),
        ([(5, 6), (5, 7), (9,)], ((5,),)),
        ([(5, 6, 7), (5, 8), (9, 1)], ((5, 6), (9,))),
        ([(5, 8), (5, 6, 7, 1), (5, 7), (5, 6, 1)], ((5, 6, 7),)),
    ):
        own = Candidates.sharing(ids)
        assert own.leaves == leaves
        for candidate, leaf in zip(own.ids, own.leaf, strict=True):
            assert leaves[leaf][: len(candidate) - 1] == candidate[:-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoding", [WHOLE_WORDS, CLASSES])
def test_the_batch_size_changes_no_choice(
    prompts: list[TokenizedSequence], dtype: torch.dtype, decoding: Decoding
) -> None:
    reader = tiny.reader(dtype=dtype)
    reader.latents.prepare(medium for p in prompts for medium in p.media)
    words = [" bax", " dan", " red circle", " red square", " zzyx"]
    alone = [a.text for a in rank(reader, prompts, words, decoding, batch_size=1)]
    for batch_size in (2, 3, 16):
        together = rank(reader, prompts, words, decoding, batch_size=batch_size)
        assert [a.text for a in together] == alone


@pytest.mark.parametrize("decoding", [WHOLE_WORDS, CLASSES])
def test_errors_of_a_batch_within_the_margin_change_no_choice(
    monkeypatch: pytest.MonkeyPatch, decoding: Decoding
) -> None:
    """Noise on whatever is computed for more than one row, large enough to matter."""
    reader = tiny.reader()
    prompts = tiny.prompts(reader)
    words = [f" {a}{b} {c}" for a in "bdfg" for b in ("ax", "en", "ig") for c in ("red", "dan")]
    (first,) = rank(reader, prompts[:1], words, decoding)
    words = [word for _, word in sorted(zip(first.scores, words, strict=True))][8:16]  # close ones
    alone = [a.text for a in rank(reader, prompts, words, decoding, batch_size=1)]
    tiny.add_noise(reader, monkeypatch, size=0.2, above=1)
    noisy = [a.text for a in rank(reader, prompts, words, decoding, batch_size=16)]
    assert noisy != alone, "this noise is too small to show anything"
    monkeypatch.setitem(scoring.MARGIN, torch.float32, 3.2)  # twice what 4 tokens are off by
    careful = [a.text for a in rank(reader, prompts, words, decoding, batch_size=16)]
    assert careful == alone


def test_candidates_that_cannot_be_told_apart_are_an_error(
    reader: Reader, prompts: list[TokenizedSequence]
) -> None:
    with pytest.raises(ValueError, match="different, non-empty"):
        rank(reader, prompts[:1], [" bax", " bax"])
    with pytest.raises(ValueError, match="at least one"):
        rank(reader, prompts[:1], [])
