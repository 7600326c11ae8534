"""The loss of a step against a literal computation over all of its sequences at once."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flamingo.training.loss import (
    batch_loss,
    combine,
    keep_mask,
    learned_tokens,
    token_weights,
)
from flamingo.types import Batch, TokenizedSequence

VOCABULARY = 7
ROWS = [
    (0, TokenizedSequence((1, 2, 3, 4), (-100, -100, 3, 4), ())),
    (1, TokenizedSequence((5, 6), (-100, 6), ())),
    (0, TokenizedSequence((2, 2, 5), (2, 2, 5), ())),  # its first token is predicted by nothing
    (1, TokenizedSequence((3, 1, 1, 0, 2), (-100, -100, -100, 0, 2), ())),
]
WEIGHTS = (1.0, 0.25)


def batch_of(rows) -> Batch:
    length = max(len(row.input_ids) for _, row in rows)
    pad = [length - len(row.input_ids) for _, row in rows]
    ids = torch.tensor([[*r.input_ids, *[0] * p] for (_, r), p in zip(rows, pad, strict=True)])
    labels = torch.tensor([[*r.labels, *[-100] * p] for (_, r), p in zip(rows, pad, strict=True)])
    source = torch.tensor([[s] * length for s, _ in rows])
    return Batch(ids, (labels != -200).long(), labels, source)


def logits_for(rows) -> list[torch.Tensor]:
    """Fixed random logits at every position, a function of the row alone."""
    generators = [torch.Generator().manual_seed(sum(row.input_ids)) for _, row in rows]
    return [
        torch.randn(len(row.input_ids), VOCABULARY, generator=g)
        for (_, row), g in zip(rows, generators, strict=True)
    ]


def kept_logits(rows, batch: Batch) -> torch.Tensor:
    padded = torch.full((*batch.labels.shape, VOCABULARY), math.nan)  # never to be read
    for index, logits in enumerate(logits_for(rows)):
        padded[index, : len(logits)] = logits
    return padded[keep_mask(batch.labels)]


class Model(nn.Module):
    """Has these logits at the positions before learned tokens, whatever it reads."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, labels: torch.Tensor, label_weights: torch.Tensor, **_):
        counted = labels[:, 1:] != -100
        losses = F.cross_entropy(self.logits, labels[:, 1:][counted], reduction="none")
        return SimpleNamespace(
            loss=(losses * label_weights[:, 1:][counted]).sum(), token_losses=losses
        )


def literal_loss(rows) -> float:
    by_source: dict[int, list[float]] = {0: [], 1: []}
    for (source, row), logits in zip(rows, logits_for(rows), strict=True):
        for position in range(1, len(row.labels)):
            if row.labels[position] != -100:
                log_probabilities = logits[position - 1].log_softmax(-1)
                by_source[source].append(-log_probabilities[row.labels[position]].item())
    return sum(WEIGHTS[s] * sum(ls) / len(ls) for s, ls in by_source.items())


def test_only_positions_before_a_learned_token_keep_their_logits():
    labels = torch.tensor([[5, -100, 3, 4, -100], [-100, -100, -100, -100, 2]])
    expected = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    assert torch.equal(keep_mask(labels), expected)


def test_tokens_are_counted_by_source_without_a_rows_first():
    assert learned_tokens(ROWS, 3).tolist() == [4, 3, 0]


@pytest.mark.parametrize("bounds", [(0, 4), (0, 1, 4), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_any_split_of_a_step_gives_the_loss_of_the_whole(bounds):
    counts = learned_tokens(ROWS, 2)
    total = torch.tensor(0.0)
    for start, stop in pairwise(bounds):
        part = ROWS[start:stop]
        batch = batch_of(part)
        model = Model(kept_logits(part, batch))
        loss, sums = batch_loss(model, batch, token_weights(counts, WEIGHTS))
        assert combine(sums, counts, WEIGHTS).item() == pytest.approx(loss.item(), rel=1e-6)
        total = total + loss
    assert total.item() == pytest.approx(literal_loss(ROWS), rel=1e-6)


def test_a_source_without_learned_tokens_adds_nothing():
    sums = torch.tensor([6.0, 0.0])
    assert combine(sums, torch.tensor([3, 0]), (1.0, 5.0)).item() == 2.0


def test_a_non_finite_token_stays_with_its_source():
    rows = [ROWS[1], ROWS[0]]
    batch = batch_of(rows)
    logits = kept_logits(rows, batch)
    logits[0] = math.nan  # the first row, of source 1
    _, sums = batch_loss(Model(logits), batch, torch.ones(2))
    assert sums[0].isfinite() and sums[1].isnan()
