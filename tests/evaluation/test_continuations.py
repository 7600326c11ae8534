"""Log-likelihoods of continuations against plain forward passes."""

from __future__ import annotations

import math

import pytest
import torch

from flamingo.evaluation.continuations import _likelihood, likelihoods
from tests.evaluation import tiny


def greedy(reader, prompt, length: int) -> tuple[int, ...]:
    ids: list[int] = []
    for _ in range(length):
        logits = tiny.next_logits(reader, prompt, ids)
        logits[reader.model.config.image_token_id] = -math.inf
        ids.append(int(logits.argmax()))
    return tuple(ids)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_totals_are_sums_over_tokens_and_greedy_ones_are_known(reader, prompts, batch_size) -> None:
    own = prompts[:4]
    likeliest = [greedy(reader, prompt, 3) for prompt in own]
    others = [(30,), (30, 31, 32), (31,), (40, 41)]
    asked = [[ids, *others, (*ids[:2], 30)] for ids in likeliest]
    found = dict(likelihoods(reader, own, asked, batch_size=batch_size))
    for place, prompt in enumerate(own):
        for ids, likelihood in zip(asked[place], found[place], strict=True):
            expected = tiny.log_likelihood(reader, prompt, list(ids))
            assert likelihood.total == pytest.approx(expected, abs=1e-3)
            assert likelihood.greedy == (ids == likeliest[place][: len(ids)])


def test_greedy_search_never_says_an_image_token_though_it_has_its_share() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    likelihood = _likelihood(logits, (2,), never=[1])
    assert likelihood.greedy
    assert likelihood.total == pytest.approx(1 - math.log(1 + math.exp(5) + math.exp(1)))
