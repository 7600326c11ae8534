"""Which image a text token sees: the masks of the model, as pure functions one can print.

*Text time* of a token is the number of ``<image>`` tokens up to and including it. *Media time* of
a medium is its place in the row, 1, 2, ...; 0 marks padding. (Flamingo, section 2.3, appendix
A.1.3; OpenFlamingo, ``MaskedCrossAttention``.) A packed row holds several documents: times count
through the row, and a document's tokens see none of the media *before* it.

:func:`media_mask` is the definition. The model calls it for ``all_previous``; for ``immediate``,
where each token sees one medium at most, :class:`flamingo.model.reading.OwnMedium` looks that one
up instead, and a test holds the two against each other.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flamingo.choices import MediaVisibility


def text_time(
    is_image: Bool[Tensor, "row token"],
    seen: Int[Tensor, " row"] | None = None,
    attention_mask: Int[Tensor, "row all"] | None = None,
) -> Int[Tensor, "row token"]:
    """Media counted at each token; ``seen`` counts those of an already cached prefix.

    Padding (0 in ``attention_mask``, which may cover a cached prefix too) reads nothing: its time
    is 0.
    """
    time = is_image.long().cumsum(dim=1)
    if seen is not None:
        time = time + seen[:, None]
    if attention_mask is not None:
        time = time * attention_mask[:, -is_image.shape[1] :]
    return time


def media_time(counts: Int[Tensor, " row"], width: int) -> Int[Tensor, "row medium"]:
    """1, 2, ... for the first ``counts`` of ``width`` media of each row, then 0 for padding."""
    time = torch.arange(1, width + 1, device=counts.device).expand(len(counts), -1)
    return torch.where(time <= counts[:, None], time, 0)


def document_starts(documents: Int[Tensor, "row token"]) -> Bool[Tensor, "row token"]:
    """Where a new document begins in a packed row; the first token of a row does not count."""
    starts = torch.zeros_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return starts


def document_positions(documents: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """0, 1, 2, ... within each document of a packed row."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begin = torch.where(document_starts(documents), place, 0).cummax(dim=1).values
    return place - begin


def media_before(
    is_image: Bool[Tensor, "row token"], documents: Int[Tensor, "row token"]
) -> Int[Tensor, "row token"]:
    """Media of the documents that stand before each token's own in its row."""
    earlier = is_image.long().cumsum(dim=1) - is_image.long()
    return torch.where(document_starts(documents), earlier, 0).cummax(dim=1).values


def media_mask(
    text: Int[Tensor, "row token"],
    media: Int[Tensor, "row medium"],
    visibility: MediaVisibility,
    before: Int[Tensor, "row token"] | None = None,
) -> Bool[Tensor, "row token medium"]:
    """True where a token (by its text time) attends to a medium (by its media time).

    Immediate: text time == media time. All previous: text time >= media time. Tokens before the
    first medium (text time 0) see none, nobody sees padding (media time 0), nor the media of the
    documents ``before`` its own.
    """
    text, media = text[:, :, None], media[:, None, :]
    match visibility:
        case MediaVisibility.immediate:
            visible = text == media
        case MediaVisibility.all_previous:
            visible = text >= media
    return visible & (media > (0 if before is None else before[:, :, None]))
