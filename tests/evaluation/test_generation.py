"""Open answers against a plain forward pass, and against transformers' own beam search."""

from __future__ import annotations

import math

import pytest
import torch

from flamingo.data.sequence import tokenize
from flamingo.evaluation import scoring
from flamingo.evaluation.beams import _Steps
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.types import END_OF_CHUNK_TOKEN, InterleavedSequence, TokenizedSequence

from . import tiny

GREEDY = Decoding(max_new_tokens=4)
BEAMS = Decoding(max_new_tokens=4, beams=3)


def generate(reader, prompts, decoding=GREEDY, batch_size=4) -> list[Answer]:
    """Answers in the order of the prompts."""
    answers = dict(generate_answers(reader, prompts, decoding=decoding, batch_size=batch_size))
    assert sorted(answers) == list(range(len(prompts)))
    return [answers[i] for i in range(len(prompts))]


def ends(reader: Reader) -> set[int]:
    return set(reader.model.generation_config.eos_token_id)


def likely(reader: Reader, prompt: TokenizedSequence, ids: list[int]) -> torch.Tensor:
    """The next token's log-likelihoods without <image>, which is never generated."""
    logits = tiny.next_logits(reader, prompt, ids)
    logits[reader.model.config.image_token_id] = -math.inf
    return logits.log_softmax(0)


def by_transformers(
    reader: Reader, prompt: TokenizedSequence, decoding: Decoding, **options
) -> tuple[list[int], float]:
    """Tokens and log-likelihood of ``generate``'s best beam: one prompt, pixels and no cache."""
    features = tiny.load_media()(prompt.media)[None].float()
    ids = reader.model.generate(
        torch.tensor([prompt.input_ids]),
        vision_features=features,
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        max_new_tokens=decoding.max_new_tokens,
        renormalize_logits=True,
        use_cache=False,
        **options,
    )[0, len(prompt.input_ids) :].tolist()
    return ids, sum(likely(reader, prompt, ids[:n])[t].item() for n, t in enumerate(ids))


def check(reader: Reader, answer: Answer, ids: list[int], total: float) -> None:
    said = ids[:-1] if ids[-1] in ends(reader) else ids
    assert answer.raw == reader.tokenizer.decode(ids)
    assert answer.text == reader.tokenizer.decode(said).strip()
    assert answer.probability == pytest.approx(math.exp(total), rel=1e-4)
    assert answer.scores == ()


def test_greedy_answers_are_the_likeliest_tokens_with_the_probability_of_all_and_the_end(
    reader: Reader, prompts: list[TokenizedSequence]
) -> None:
    for own, answer in zip(prompts, generate(reader, prompts), strict=True):
        ids: list[int] = []
        total = 0.0
        while len(ids) < 4 and not (ids and ids[-1] in ends(reader)):
            following = likely(reader, own, ids)
            ids.append(int(following.argmax()))
            total += following[ids[-1]].item()
        check(reader, answer, ids, total)


@pytest.mark.parametrize("decoding", [GREEDY, BEAMS])
def test_generation_stops_at_the_end_of_chunk(
    reader: Reader, prompts: list[TokenizedSequence], monkeypatch, decoding: Decoding
) -> None:
    """With the end-of-chunk token made the likeliest, every answer is empty and certain to end."""
    end = reader.tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)
    original = reader.model._logits

    def biased(*arguments):
        logits = original(*arguments).clone()
        logits[..., end] += 1000
        return logits

    monkeypatch.setattr(reader.model, "_logits", biased)
    for answer in generate(reader, prompts, decoding):
        assert (answer.raw, answer.text) == (END_OF_CHUNK_TOKEN, "")
        assert answer.probability == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "mpt"])
def test_the_best_of_three_beams_is_transformers(family: str) -> None:
    reader = tiny.reader(family)
    prompts = tiny.prompts(reader)[::4]  # one of each length
    for own, answer in zip(prompts, generate(reader, prompts, BEAMS), strict=True):
        check(reader, answer, *by_transformers(reader, own, BEAMS))


@pytest.mark.parametrize(("penalty", "bias"), [(1.0, 1.5), (0.5, 1.0), (-0.5, -1.0)])
def test_a_length_penalty_is_transformers_without_its_early_stop(
    reader: Reader, prompts: list[TokenizedSequence], monkeypatch, penalty: float, bias: float
) -> None:
    """Ends are made likelier or less, so that beams of several lengths compete."""
    original = reader.model._logits

    def biased(*arguments):
        logits = original(*arguments).clone()
        logits[..., sorted(ends(reader))] += bias
        return logits

    monkeypatch.setattr(reader.model, "_logits", biased)
    decoding = Decoding(max_new_tokens=4, beams=3, length_penalty=penalty)
    lengths = set()
    for own, answer in zip(prompts, generate(reader, prompts, decoding), strict=True):
        stop = "never" if penalty > 0 else False
        ids, total = by_transformers(reader, own, decoding, early_stopping=stop)
        check(reader, answer, ids, total)
        lengths.add(len(ids))
    assert len(lengths) > 1 or penalty < 0


def test_beams_find_a_likelier_answer_than_greedy(
    reader: Reader, prompts: list[TokenizedSequence]
) -> None:
    pairs = list(zip(generate(reader, prompts), generate(reader, prompts, BEAMS), strict=True))
    assert any(beam.text != greedy.text for greedy, beam in pairs)
    for greedy, beam in pairs:
        if beam.text == greedy.text:  # found in batches of other shapes: but for the last digits
            assert beam.probability == pytest.approx(greedy.probability, rel=1e-5)
        else:
            assert beam.probability > greedy.probability


def test_beams_read_a_prompt_once_and_its_media_once(monkeypatch) -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)[:2]
    projected: list[int] = []
    for block in reader.model.cross_attention.values():
        block.attention.to_kv.register_forward_pre_hook(lambda _, a: projected.append(len(a[0])))
    spy = tiny.Spy(reader)
    monkeypatch.setitem(scoring.MARGIN, torch.float32, 0.0)  # nothing is run again
    generate(reader, prompts, BEAMS)
    lengths = [len(p.input_ids) for p in prompts]
    assert spy.calls[0] == (2, sum(lengths) - 2, False)
    assert [call[:2] for call in spy.calls[1:]] == [(6, 6)] * 4  # a token a beam and step
    distinct = {m.frames[0].key for p in prompts for m in p.media}
    assert projected == [1, 1] * len(distinct)  # once in each of the two blocks


def test_a_prompt_that_ends_with_an_image_or_is_nothing_else(
    reader: Reader, prompts: list[TokenizedSequence]
) -> None:
    image = reader.model.config.image_token_id
    last = max(n for n, token in enumerate(prompts[0].input_ids) if token == image) + 1
    ending = TokenizedSequence(prompts[0].input_ids[:last], (), prompts[0].media)
    bare = tokenize(InterleavedSequence((prompts[0].media[0],)), reader.tokenizer, 500)
    assert bare.input_ids == (image,)
    own = [ending, bare, prompts[1]]
    for batch in (own, [bare]):
        for prompt, answer in zip(batch, generate(reader, batch, BEAMS), strict=True):
            check(reader, answer, *by_transformers(reader, prompt, BEAMS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decoding", [GREEDY, BEAMS])
def test_the_batch_size_changes_no_answer(
    prompts: list[TokenizedSequence], dtype: torch.dtype, decoding: Decoding
) -> None:
    reader = tiny.reader(dtype=dtype)
    reader.latents.prepare(medium for p in prompts for medium in p.media)
    alone = [a.raw for a in generate(reader, prompts, decoding, batch_size=1)]
    for batch_size in (2, 16):
        assert [a.raw for a in generate(reader, prompts, decoding, batch_size)] == alone


@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param(GREEDY, id="greedy"),
        pytest.param(BEAMS, id="beams"),
        pytest.param(Decoding(max_new_tokens=4, beams=3, length_penalty=0.7), id="penalty"),
    ],
)
def test_errors_of_a_batch_within_the_margin_change_no_answer(
    monkeypatch: pytest.MonkeyPatch, decoding: Decoding
) -> None:
    """Noise on whatever is computed for more rows than one prompt has, large enough to matter."""
    reader = tiny.reader()
    prompts = tiny.prompts(reader)
    alone = [a.raw for a in generate(reader, prompts, decoding, batch_size=1)]
    tiny.add_noise(reader, monkeypatch, size=0.1, above=decoding.beams)
    monkeypatch.setitem(scoring.MARGIN, torch.float32, 0.0)
    careless = [a.raw for a in generate(reader, prompts, decoding, batch_size=16)]
    assert careless != alone, "this noise is too small to show anything"
    monkeypatch.setitem(scoring.MARGIN, torch.float32, 1.6)  # twice what 4 tokens are off by
    assert [a.raw for a in generate(reader, prompts, decoding, batch_size=16)] == alone


A, B, C, D = 10, 11, 12, 13


@pytest.mark.parametrize(
    ("first", "swapped", "searches"),
    [
        # C is cut, though its only sequel is likelier than all of A's and B's.
        pytest.param({A: 0.5, B: 0.25, C: 0.24}, {A: 0.5, B: 0.24, C: 0.25}, 3, id="a cut"),
        pytest.param({B: 0.34, C: 0.33}, {B: 0.33, C: 0.34}, 3, id="the lead"),
        pytest.param({D: 0.9, B: 0.03, C: 0.029}, {D: 0.9, B: 0.029, C: 0.03}, 1, id="neither"),
    ],
)
def test_a_prompt_is_run_again_if_a_close_decision_can_change_its_best_beam(
    monkeypatch, first: dict, swapped: dict, searches: int
) -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)[3:5]  # equally long
    last = prompts[0].input_ids[-1]
    # After A nothing is likely; after B, C and D the text ends, later or sooner.
    sequels = {A: {20: 0.05}, B: {21: 0.02 if A in first else 0.9}, C: {22: 0.9}, D: {1: 0.99}}
    decoding = Decoding(max_new_tokens=3, beams=2)
    monkeypatch.setitem(scoring.MARGIN, torch.float32, 0.2)
    tiny.make_bigram(
        reader, monkeypatch, sequels | {last: first}, sequels | {last: swapped}, above=2
    )
    alone = [a.raw for a in generate(reader, prompts, decoding, batch_size=1)]
    seen = []
    original = reader.model.generate
    monkeypatch.setattr(
        reader.model, "generate", lambda **inputs: seen.append(1) or original(**inputs)
    )
    assert [a.raw for a in generate(reader, prompts, decoding, batch_size=2)] == alone
    assert len(seen) == searches, "one for both, and then one for each"


def test_a_cut_counts_only_where_it_can_touch_the_best() -> None:
    """Two beams over six tokens, of which the last ends."""
    steps = _Steps(1, 2, {5})
    first = torch.tensor([[0.4, 0.3, 0.2, 0.05, 0.04, 0.01]]).log()
    steps(torch.tensor([[7], [7]]), first.expand(2, -1))
    second = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, 0.5], [0.02, 0.9, 0.02, 0.02, 0.02, 0.02]])
    steps(torch.tensor([[7, 0], [7, 1]]), second.log())
    # Kept and dropped: 0.3 and 0.2; then 0.2 (the end after 0) and 0.04, and, with the end set
    # aside, 0.04 and 0.04 again.
    every, first, none = (torch.tensor([p]).log() for p in (0.03, 0.15, 0.25))
    assert steps.closest(every).exp().item() == pytest.approx(1.0, abs=1e-5)
    assert steps.closest(first).exp().item() == pytest.approx(1.5, abs=1e-5)
    assert steps.closest(none).item() == math.inf


def test_where_nearly_all_are_run_again_the_rest_are_run_alone_at_once(monkeypatch):
    own = tiny.reader()
    asked = tiny.prompts(own)
    monkeypatch.setitem(scoring.MARGIN, torch.float32, 1e9)
    spy = tiny.Spy(own)
    decoding = Decoding(max_new_tokens=1)
    answers = dict(generate_answers(own, asked, decoding=decoding, batch_size=2))
    # Two batches with their prompts again, then the five others; one forward pass each.
    assert [rows for rows, _, _ in spy.calls] == [2, 1, 1, 2, 1, 1] + 5 * [1]
    alone = dict(generate_answers(own, asked, decoding=decoding, batch_size=1))
    assert answers == alone
