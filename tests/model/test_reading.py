"""Who reads what: the fast form of the immediate mode against the mask that defines it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flamingo.choices import MediaVisibility
from flamingo.model.masking import media_before, media_mask, media_time, text_time
from flamingo.model.media import MediaState, ProjectedMedia

IMMEDIATE = MediaVisibility.immediate


def numbered(counts: Tensor, first: int) -> ProjectedMedia:
    """Media of one latent, whose value is the number of the medium, from ``first`` on."""
    numbers = torch.arange(first, first + int(counts.sum())).float()
    keys_values = numbers[None, :, None, None, None].expand(2, -1, 1, 1, 4)
    return ProjectedMedia({0: keys_values}, tuple(counts.tolist()))


def read(state: MediaState, time: Tensor, before: Tensor | None = None) -> Tensor:
    """The number of the medium that each token gets, 0 for one that gets none."""
    reading = state.reading(time, IMMEDIATE, before)
    if reading is None:
        return torch.zeros_like(time)
    return reading.attend(torch.randn(*time.shape, 1, 4), state.keys_values[0])[..., 0, 0].long()


def defined(time: Tensor, numbers: list[list[int]], before: Tensor | None = None) -> Tensor:
    """The same by the mask; ``numbers``: of each row's media."""
    counts = torch.tensor([len(own) for own in numbers])
    width = int(counts.max())
    padded = torch.tensor([own + [0] * (width - len(own)) for own in numbers]).view(-1, 1, width)
    mask = media_mask(time, media_time(counts, width), IMMEDIATE, before)
    assert int(mask.sum(dim=-1).amax()) <= 1
    return (mask * padded).sum(dim=-1)


def split(numbers: range, counts: Tensor) -> list[list[int]]:
    left = iter(numbers)
    return [[next(left) for _ in range(count)] for count in counts.tolist()]


def random_text(rows: int, tokens: int, padding: str) -> tuple[Tensor, Tensor]:
    """Where ``<image>`` stands, and which tokens are no padding."""
    place, length = torch.arange(tokens), torch.randint(1, tokens + 1, (rows, 1))
    mask = place < length if padding == "right" else place >= tokens - length
    return (torch.rand(rows, tokens) < 0.3) & mask, mask.long()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_each_token_reads_the_medium_that_the_mask_shows_it(padding: str):
    torch.manual_seed(0)
    for _ in range(25):
        is_image, mask = random_text(rows=3, tokens=7, padding=padding)
        counts = is_image.sum(dim=1) + torch.randint(0, 2, (3,))  # some are not read yet
        if counts.sum() == 0:
            continue
        state = MediaState.empty(3, is_image.device).append_projected(numbered(counts, 1))
        time = text_time(is_image, attention_mask=mask)
        numbers = split(range(1, 1 + int(counts.sum())), counts)
        assert torch.equal(read(state, time), defined(time, numbers))


def test_a_document_of_a_packed_row_reads_no_medium_of_another():
    torch.manual_seed(0)
    for _ in range(25):
        is_image, mask = random_text(rows=3, tokens=9, padding="right")
        documents = (torch.rand(3, 9) < 0.3).long().cumsum(dim=1)
        counts = is_image.sum(dim=1)
        if counts.sum() == 0:
            continue
        state = MediaState.empty(3, is_image.device).append_projected(numbered(counts, 1))
        time, before = text_time(is_image, attention_mask=mask), media_before(is_image, documents)
        numbers = split(range(1, 1 + int(counts.sum())), counts)
        assert torch.equal(read(state, time, before), defined(time, numbers, before))


@pytest.mark.parametrize("own", [True, False], ids=["media of their own", "no more media"])
def test_beams_behind_a_cache_read_what_the_mask_of_the_whole_row_shows_them(own: bool):
    """Two prompts in two parts, of which the cache lets go of what it may, then their beams."""
    torch.manual_seed(0)
    for _ in range(25):
        is_image, mask = random_text(rows=2, tokens=9, padding="left")
        counts = is_image.sum(dim=1)
        if counts.sum() == 0:
            continue
        state = MediaState.empty(2, is_image.device).append_projected(numbered(counts, 1))
        numbers, parts = split(range(1, 1 + int(counts.sum())), counts), []
        for part in (slice(0, 4), slice(4, 9)):
            parts.append(
                read(state, text_time(is_image[:, part], state.seen, mask[:, : part.stop]))
            )
            state = state.after(is_image[:, part].sum(dim=1), IMMEDIATE)
        more = (torch.rand(6, 3) < 0.5) & torch.tensor(own)
        state = state.for_text_rows(6)
        numbers = [list(row) for row in numbers for _ in range(3)]
        if own and more.any():
            state = state.append_projected(numbered(more.sum(dim=1), 100))
            new = split(range(100, 100 + int(more.sum())), more.sum(dim=1))
            numbers = [[*old, *added] for old, added in zip(numbers, new, strict=True)]
        parts = [part.repeat_interleave(3, dim=0) for part in parts]
        parts.append(read(state, text_time(more, state.seen)))
        whole = torch.cat([is_image.repeat_interleave(3, dim=0), more], dim=1)
        every = torch.cat([mask.repeat_interleave(3, dim=0), torch.ones_like(more)], dim=1).long()
        expected = defined(text_time(whole, attention_mask=every), numbers)
        assert torch.equal(torch.cat(parts, dim=1), expected)
