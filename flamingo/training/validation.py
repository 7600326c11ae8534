"""The default callback of the loop: loss and perplexity on sequences that are not training's steps,
and how much of it the images are good for.

Of a stream they are documents that are never trained on; of easy-VQA and binding they are new draws
of the questions, images and concepts that are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from flamingo.data.mixture import UNSEEN
from flamingo.images import BLANK
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.training.batches import Step, Steps, StepSource, to_device
from flamingo.training.distributed import sum_over_processes
from flamingo.training.failures import Failed, all_or_none, until_failure
from flamingo.training.loss import batch_loss, combine
from flamingo.types import IGNORE_INDEX, Batch, Media, MediaLoader


class ValidationLoss:
    """``callback(step, model)``: mean token loss of each source over ``batches`` unseen steps.

    - ``validation/loss``, ``validation/loss/<source>``: in nats a learned token; all sources by
      their weights.
    - ``validation/perplexity/<source>``: its exponential, and
      ``validation/perplexity_without_image/<source>``: of the same sequences, every frame of every
      medium replaced by the grey image that evaluation blanks with.
    - ``validation/image_gain/<source>``: loss without less loss with the images. Near 0: the model
      is blind. Blank images, and not those of another row: what a sequence scores then depends on
      nothing but itself, whatever the batch and the number of processes. A model that was never
      shown a blank image may do worse with one than without any, so the gain tells blind from
      seeing, not how much is seen.

    A source without unseen sequences (a stream without held-out shards) has none of them, a source
    of text alone no perplexity without images and no gain. Draws no random numbers.
    """

    def __init__(
        self,
        mixture: StepSource,
        steps: Steps,
        accelerator: Accelerator,
        batches: int,
        load_media: MediaLoader,
        even: Callable[[list[Batch]], list[Batch]] = list,
    ) -> None:
        self._mixture, self._steps = mixture, steps
        self._accelerator, self._batches, self._even = accelerator, batches, even
        self._blank = load_media([Media((BLANK,))])[0]

    @torch.no_grad()
    def __call__(self, step: int, model: FlamingoForConditionalGeneration) -> dict[str, float]:
        names, device = self._mixture.names, self._accelerator.device
        counts = torch.zeros(len(names), dtype=torch.long, device=device)
        sums = torch.zeros(3, len(names), device=device)
        indices = range(UNSEEN, UNSEEN + self._batches)
        for part in until_failure(self._steps.iterate(indices, workers=0)):
            failure = part.error if isinstance(part, Failed) else None
            all_or_none(failure, self._accelerator, "another process")
            assert isinstance(part, Step)
            counts += part.learned.to(device)
            # Blank before they are made even: stand-ins have media of another shape.
            blanks = self._even([blanked(batch, self._blank) for batch in part.micro_batches])
            for batch, blank in zip(self._even(part.micro_batches), blanks, strict=True):
                sums += self._sums(model, to_device(batch, device), to_device(blank, device))
        counts = sum_over_processes(counts, self._accelerator)
        real, blank, media = sum_over_processes(sums, self._accelerator)
        metrics = {"validation/loss": combine(real, counts, self._mixture.loss_weights).item()}
        learned = counts.clamp(min=1)
        losses, without = (real / learned).tolist(), (blank / learned).tolist()
        for name, learns, has_media, *values in zip(
            names, counts.tolist(), media.tolist(), losses, without, strict=True
        ):
            metrics |= _of_source(name, *values, has_media=has_media > 0) if learns else {}
        return metrics

    def _sums(
        self, model: FlamingoForConditionalGeneration, batch: Batch, blanked: Batch
    ) -> Float[Tensor, "3 source"]:
        """Of each source: summed loss, summed loss with blank images, media."""
        sources = len(self._mixture.names)
        ones = torch.ones(sources, device=batch.input_ids.device)
        real = batch_loss(model, batch, ones)[1]
        is_image = model.is_image_token(batch.input_ids, batch.attention_mask)
        is_image &= (batch.labels != IGNORE_INDEX).any(dim=1, keepdim=True)  # no stand-ins
        media = torch.bincount(batch.source[is_image], minlength=sources).to(real)
        blank = real
        if batch.vision_features is not None or batch.pixel_values is not None:
            blank = batch_loss(model, blanked, ones)[1]
        return torch.stack([real, blank, media])


def blanked(batch: Batch, blank: Tensor) -> Batch:
    """The batch with ``blank`` in every frame's place: one frame, as the batch's loader gives it,
    ``(1, patch, dim)`` or ``(1, 3, height, width)``."""

    def fill(media: Tensor | None) -> Tensor | None:
        if media is None:
            return None
        return blank.to(media).expand(*media.shape[:3], *blank.shape[1:])

    return replace(
        batch,
        vision_features=fill(batch.vision_features),
        pixel_values=fill(batch.pixel_values),
    )


def _of_source(name: str, loss: float, without: float, *, has_media: bool) -> dict[str, float]:
    metrics = {
        f"validation/loss/{name}": loss,
        f"validation/perplexity/{name}": _exponential(loss),
    }
    if has_media:
        metrics[f"validation/perplexity_without_image/{name}"] = _exponential(without)
        metrics[f"validation/image_gain/{name}"] = without - loss
    return metrics


def _exponential(loss: float) -> float:
    """Infinite, and no error, for a model that is far gone."""
    return math.exp(loss) if loss < 700 else math.inf
