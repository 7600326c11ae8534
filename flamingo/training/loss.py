"""The loss of a step: a weighted sum over data sources of each source's mean token loss.

A source's mean is taken over all its learned tokens of the whole step, over every micro-batch and
process. The counts are therefore needed before the first backward; with them each part of a step
contributes its share, and neither accumulation nor the number of processes changes the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flamingo.types import IGNORE_INDEX, Batch, TokenizedSequence


def keep_mask(labels: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch token"]:
    """Positions whose next token is learned: only their logits are needed.

    Of documents that share a row no first token is learned (``flamingo.data.packing``), so none is
    predicted from another document.
    """
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return keep


def learned_tokens(
    rows: Iterable[tuple[int, TokenizedSequence]], sources: int
) -> Int[Tensor, " source"]:
    """Number of learned tokens of each source. A row's first token is predicted by nothing."""
    counts = [0] * sources
    for source, row in rows:
        counts[source] += sum(label != IGNORE_INDEX for label in row.labels[1:])
    return torch.tensor(counts)


def combine(
    sums: Float[Tensor, " source"],
    counts: Int[Tensor, " source"],
    weights: Sequence[float],
) -> Float[Tensor, ""]:
    """``sum_s weight_s * sums_s / counts_s``; a source without learned tokens adds nothing.

    ``counts`` are those of the whole step, ``sums`` may be those of a part of it.
    """
    return (sums * token_weights(counts.to(sums.device), weights)).sum()


def token_weights(
    counts: Int[Tensor, " source"], weights: Sequence[float]
) -> Float[Tensor, " source"]:
    """What one learned token of each source weighs in the loss of a step."""
    return torch.tensor(weights, device=counts.device) / counts.clamp(min=1)


def batch_loss(
    model: nn.Module, batch: Batch, weights: Float[Tensor, " source"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " source"]]:
    """The batch's share of the loss, a learned token of each source weighing ``weights``; and each
    source's summed cross-entropy in nats, which carries no gradient."""
    packed = {} if batch.documents is None else {"documents": batch.documents}
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        vision_features=batch.vision_features,
        pixel_values=batch.pixel_values,
        labels=batch.labels,
        label_weights=weights[batch.source],
        use_cache=False,  # in evaluation mode there would be one, which nobody reads
        **packed,
    )
    losses, source = output.token_losses, batch.source[keep_mask(batch.labels)]
    # A sum under a mask instead of index_add, whose order is not fixed on CUDA. ``where`` and
    # not a product, so that a non-finite loss stays with its own source.
    sums = [losses.where(source == i, 0.0).sum() for i in range(len(weights))]
    return output.loss, torch.stack(sums)
