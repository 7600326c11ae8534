"""From tokenised sequences to a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flamingo.types import IGNORE_INDEX, Batch, MediaLoader, TokenizedSequence


def collate(
    rows: Sequence[TokenizedSequence],
    source: Sequence[int] | None,
    pad_id: int,
    load_media: MediaLoader,
    side: Literal["left", "right"] = "right",
) -> Batch:
    """Pad ``rows`` to one batch: on the right to train, on the left to generate.

    ``source`` says which source each row is from (``None``: 0 for all); padding is of its row's.
    Media are loaded in one
    call and padded with zeros, after a row's own, to the row with most. Features and pixels are
    told apart by their number of axes. Rows without any media give a batch of text.

    Raises ``ValueError`` for no rows, and for media of different numbers of frames.
    """
    if not rows:
        raise ValueError("rows: expected at least one sequence, got none")
    if source is not None and len(source) != len(rows):
        raise ValueError(f"source: expected {len(rows)} entries, one a row, got {len(source)}")
    length = max(len(row.input_ids) for row in rows)

    def padded(values: Sequence[int], fill: int) -> list[int]:
        padding = [fill] * (length - len(values))
        return [*padding, *values] if side == "left" else [*values, *padding]

    media = _load(rows, load_media)
    return Batch(
        input_ids=torch.tensor([padded(row.input_ids, pad_id) for row in rows]),
        attention_mask=torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
        labels=torch.tensor([padded(row.labels, IGNORE_INDEX) for row in rows]),
        source=torch.tensor(source or [0] * len(rows))[:, None].repeat(1, length),
        vision_features=media if media is not None and media.ndim == 5 else None,
        pixel_values=media if media is not None and media.ndim == 6 else None,
    )


def _load(rows: Sequence[TokenizedSequence], load_media: MediaLoader) -> Tensor | None:
    """``(batch, image, frame, patch, dim)`` or ``(batch, image, frame, 3, height, width)``."""
    media = [medium for row in rows for medium in row.media]
    if not media:
        return None
    frames = {len(medium.frames) for medium in media}
    if len(frames) > 1:
        raise ValueError(
            "media: expected the same number of frames for every medium of a batch, got "
            f"{sorted(frames)}"
        )
    loaded = load_media(media)
    counts = [len(row.media) for row in rows]
    if len(set(counts)) == 1:
        return loaded.reshape(len(rows), counts[0], *loaded.shape[1:])
    batch = loaded.new_zeros(len(rows), max(counts), *loaded.shape[1:])
    start = 0
    for row, count in enumerate(counts):
        batch[row, :count] = loaded[start : start + count]
        start += count
    return batch
