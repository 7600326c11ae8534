"""A batch that does not fit is halved, and the answers stay the same."""

from __future__ import annotations

import logging

import pytest
import torch

from flamingo.evaluation.batching import in_batches
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.ranking import rank_candidates
from flamingo.evaluation.scoring import Reader
from flamingo.types import TokenizedSequence

from . import tiny

WORDS = [" bax", " red circle", " red square", " zzyx", " grey triangle"]
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
]


def predict(reader: Reader, prompts: list[TokenizedSequence], kind: str, batch_size: int):
    """Answers by prompt, of one of the three ways to get them."""
    match kind:
        case "ranking":
            found = rank_candidates(
                reader, prompts, [WORDS] * 9, decoding=Decoding(), batch_size=batch_size
            )
        case "greedy":
            found = generate_answers(reader, prompts, decoding=Decoding(), batch_size=batch_size)
        case _:
            found = generate_answers(
                reader, prompts, decoding=Decoding(beams=2), batch_size=batch_size
            )
    return {index: (answer.raw, round(answer.probability, 5)) for index, answer in found}


def limit(reader: Reader, rows: int, error: Exception) -> list[int]:
    """Let the model fail above so many rows; returns the rows of all calls, as they come."""
    seen: list[int] = []

    def fail(module, args, kwargs):
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > rows:
            raise error

    reader.model.register_forward_pre_hook(fail, with_kwargs=True)
    return seen


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: str(e)[:12])
@pytest.mark.parametrize("kind", ["greedy", "beams", "ranking"])
def test_out_of_memory_halves_the_batch_and_changes_no_answer(kind, error, caplog) -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)
    expected = predict(reader, prompts, kind, batch_size=9)
    seen = limit(reader, 5, error)
    with caplog.at_level(logging.WARNING):
        assert predict(reader, prompts, kind, batch_size=8) == expected
    # 8 does not fit, 4 does; of beams, two for each prompt, only 2 prompts do.
    sizes = [4, 2] if kind == "beams" else [4]
    assert [r.args[1] for r in caplog.records if r.name.endswith("batching")] == sizes
    assert sum(rows > 5 for rows in seen) == len(sizes), "the smaller size is kept"


def test_what_does_not_fit_alone_is_an_error() -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)
    limit(reader, 0, ERRORS[0])
    for kind in ("greedy", "ranking"):
        with pytest.raises(torch.OutOfMemoryError, match="a single row does not fit"):
            predict(reader, prompts, kind, batch_size=4)


def test_leaves_that_do_not_fit_are_read_fewer_at_a_time() -> None:
    """One prompt fits, but not its five candidates at once."""
    reader = tiny.reader()
    prompts = tiny.prompts(reader)[:1]
    words = [WORDS]
    decoding = Decoding()
    ((_, expected),) = rank_candidates(reader, prompts, words, decoding=decoding, batch_size=8)
    seen = limit(reader, 1, ERRORS[0])
    ((_, answer),) = rank_candidates(reader, prompts, words, decoding=decoding, batch_size=8)
    assert answer.text == expected.text
    assert answer.scores == pytest.approx(expected.scores, abs=1e-5)
    assert max(seen) > 1


def test_other_errors_are_not_caught() -> None:
    reader = tiny.reader()
    prompts = tiny.prompts(reader)
    seen = limit(reader, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict(reader, prompts, "greedy", batch_size=4)
    assert len(seen) == 1


def test_a_smaller_size_holds_for_all_that_follows() -> None:
    asked: list[list[int]] = []

    def run(part, rows):
        asked.append(list(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("too much")
        return [10 * i for i in part]

    assert list(in_batches([3, 1, 2, 0, 4], 5, run)) == [(i, 10 * i) for i in (3, 1, 2, 0, 4)]
    assert asked == [[3, 1, 2, 0, 4], [3, 1], [2, 0], [4]]
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        list(in_batches([1], 0, run))
