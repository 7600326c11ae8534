"""The stand-ins that give every process the same calls to make."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from tiny_run import tiny_config, tiny_parts

from flamingo.training.batches import to_device
from flamingo.training.even_work import EvenWork
from flamingo.training.loss import batch_loss
from flamingo.types import IGNORE_INDEX, Batch

IMAGE, DIM = 512, 24
EVEN = EvenWork(Accelerator(mixed_precision="no"), IMAGE, DIM)


def text(rows: int = 2, tokens: int = 3) -> Batch:
    ids = torch.arange(rows * tokens).reshape(rows, tokens)
    return Batch(ids, torch.ones_like(ids), ids.clone(), torch.arange(rows)[:, None].expand_as(ids))


def with_image(**media: torch.Tensor) -> Batch:
    ids = torch.tensor([[IMAGE, 5]])
    return Batch(ids, torch.ones_like(ids), ids.clone(), torch.zeros_like(ids), **media)


def test_batches_that_are_even_are_left_alone():
    batches = [with_image(vision_features=torch.ones(1, 1, 1, 4, DIM))] * 2
    assert all(a is b for a, b in zip(EVEN.fill(batches, 2), batches, strict=True))


def test_text_gets_one_row_with_a_medium_of_which_nothing_is_learned():
    (batch,) = EVEN.fill([text()], 1)
    assert batch.input_ids.tolist() == [[0, 1, 2], [3, 4, 5], [IMAGE, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[0, 1, 2], [3, 4, 5], [IGNORE_INDEX] * 3]
    assert batch.source.tolist() == [[0] * 3, [1] * 3, [0] * 3]
    assert batch.vision_features is not None
    assert batch.vision_features.shape == (3, 1, 1, 1, DIM)


def test_a_packed_batch_stays_packed():
    batch = replace(text(), documents=torch.tensor([[0, 0, 1], [0, 1, 1]]))
    (even,) = EVEN.fill([batch], 1)
    assert even.documents is not None
    assert even.documents.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0]]


def test_media_that_no_token_names_are_kept_as_they_come():
    pixels = torch.ones(2, 1, 1, 3, 8, 8)
    batch = text()
    (even,) = EVEN.fill([Batch(*_fields(batch), pixel_values=pixels)], 1)
    assert even.vision_features is None and even.pixel_values is not None
    assert torch.equal(even.pixel_values, torch.cat([pixels, torch.zeros(1, 1, 1, 3, 8, 8)]))


def _fields(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.input_ids, batch.attention_mask, batch.labels, batch.source


@pytest.mark.parametrize("given", [0, 1])
def test_missing_micro_batches_are_made_up(given):
    batches = EVEN.fill([text()] * given, 3)
    assert len(batches) == 3
    assert all(b.input_ids.tolist() == [[IMAGE]] for b in batches[given:])
    assert all(b.labels.tolist() == [[IGNORE_INDEX]] for b in batches[given:])


def test_stand_ins_reach_every_trained_weight_and_add_nothing(tmp_path):
    model, _, _, _ = tiny_parts(tiny_config(tmp_path))
    batches = EvenWork.of(model, EVEN.accelerator).fill([text()], 2)
    weights = torch.ones(2)
    bare = batch_loss(model, text(), weights)[1]
    for batch in batches:
        loss, sums = batch_loss(model, to_device(batch, torch.device("cpu")), weights)
        torch.testing.assert_close(sums, bare if batch is batches[0] else torch.zeros(2))
        model.zero_grad()
        loss.backward()
        names = {n for n, p in model.trainable_parameters().items() if p.grad is None}
        assert names == set()
    assert all(not p.grad.any() for p in model.trainable_parameters().values())  # of the last
