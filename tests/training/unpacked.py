"""A stand-in for a model that keeps packed documents apart: each is run as a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flamingo.model.flamingo import FlamingoForConditionalGeneration


def by_document(forward: Callable) -> Callable:
    """``forward`` with ``documents``; the kept logits are in the packed rows' order."""

    def packed(self, *, documents: Tensor | None = None, **inputs):
        if documents is None:
            return forward(self, **inputs)
        media = next(n for n in ("vision_features", "pixel_values") if inputs[n] is not None)
        ids, keep, images = [], [], []
        for row, numbers in enumerate(documents):
            real = inputs["attention_mask"][row].bool()
            start = 0
            for number in numbers.unique().tolist():
                own = (numbers == number) & real
                ids.append(inputs["input_ids"][row, own])
                keep.append(inputs["logits_to_keep"][row, own])
                count = int((ids[-1] == self.config.image_token_id).sum())
                images.append(inputs[media][row, start : start + count])
                start += count
        return forward(
            self,
            input_ids=pad_sequence(ids, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            logits_to_keep=pad_sequence(keep, batch_first=True),
            **{media: pad_sequence(images, batch_first=True)},
        )

    return packed


@contextmanager
def documents_apart() -> Iterator[None]:
    """Within it, every model keeps documents apart."""
    kind = FlamingoForConditionalGeneration
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind, "forward", by_document(kind.forward))
        yield
