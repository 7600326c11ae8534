"""The same sequence of calls on every process, which a sharded model asks for.

A process that has fewer micro-batches than another, or none with media where the other has some,
would not take part in gathering the weights that the other needs, which then waits for ever.
Stand-ins fill the gaps: a row that is one ``<image>`` of zeros, of which nothing is learned. They
add nothing to losses, counts and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from flamingo.training.distributed import max_over_processes
from flamingo.types import IGNORE_INDEX, Batch


@dataclass(frozen=True, slots=True)
class EvenWork:
    """``even(batches)``: as many of them on every process, each with a medium."""

    accelerator: Accelerator
    image_token_id: int
    vision_dim: int

    @classmethod
    def of(cls, model: PreTrainedModel, accelerator: Accelerator) -> EvenWork:
        """For a Flamingo."""
        return cls(accelerator, model.config.image_token_id, model.config.vision_dim)

    def __call__(self, batches: list[Batch]) -> list[Batch]:
        """Every process must call it."""
        return self.fill(batches, max_over_processes(len(batches), self.accelerator))

    def fill(self, batches: list[Batch], count: int) -> list[Batch]:
        """``batches`` and stand-ins, ``count`` in all."""
        filled = [*batches, *(self._stand_in() for _ in range(count - len(batches)))]
        return [batch if self._has_media(batch) else self._with_medium(batch) for batch in filled]

    def _has_media(self, batch: Batch) -> bool:
        named = (batch.input_ids == self.image_token_id) & (batch.attention_mask == 1)
        return bool(named.any())

    def _stand_in(self) -> Batch:
        return self._with_medium(
            Batch(
                input_ids=torch.zeros(0, 1, dtype=torch.long),
                attention_mask=torch.zeros(0, 1, dtype=torch.long),
                labels=torch.zeros(0, 1, dtype=torch.long),
                source=torch.zeros(0, 1, dtype=torch.long),
            )
        )

    def _with_medium(self, batch: Batch) -> Batch:
        """``batch`` and one row more."""
        rows, tokens = batch.input_ids.shape
        row = torch.arange(tokens) == 0
        media = batch.pixel_values if batch.vision_features is None else batch.vision_features
        if media is None:
            media = torch.zeros(rows, 1, 1, 1, self.vision_dim)
        media = _append(media, media.new_zeros(1, *media.shape[1:]))
        return replace(
            batch,
            input_ids=_append(batch.input_ids, torch.where(row, self.image_token_id, 0)[None]),
            attention_mask=_append(batch.attention_mask, row.long()[None]),
            labels=_append(batch.labels, torch.full((1, tokens), IGNORE_INDEX)),
            source=F.pad(batch.source, (0, 0, 0, 1)),
            documents=None if batch.documents is None else F.pad(batch.documents, (0, 0, 0, 1)),
            vision_features=media if media.ndim == 5 else None,
            pixel_values=media if media.ndim == 6 else None,
        )


def _append(rows: Tensor, row: Tensor) -> Tensor:
    return torch.cat([rows, row])
