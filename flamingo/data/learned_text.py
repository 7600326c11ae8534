"""Which text of a sequence is learned, where that is not left to its source."""

from __future__ import annotations

from flamingo.choices import LearnedText
from flamingo.types import END_OF_CHUNK_TOKEN, InterleavedSequence, Media, Text


def with_learned_text(
    sequence: InterleavedSequence, learn: LearnedText, *, end_of_chunk: bool = True
) -> InterleavedSequence:
    """``sequence`` with the same tokens, and the loss that ``learn`` says.

    ``end_of_chunk``: whether an ``<|endofchunk|>`` is learned where the text in front of it is.
    """
    if learn is LearnedText.marked and end_of_chunk:
        return sequence
    segments: list[Text | Media] = []
    images, in_chunk = 0, False
    for segment in sequence.segments:
        if isinstance(segment, Media):
            images, in_chunk = images + 1, True
            segments.append(segment)
            continue
        for piece in _pieces(segment.text):
            match learn:
                case LearnedText.marked:
                    learned = segment.learn
                case LearnedText.everything:
                    learned = True
                case LearnedText.after_first_image:
                    learned = images > 0
                case LearnedText.chunks:
                    learned = in_chunk
            if piece == END_OF_CHUNK_TOKEN:
                learned, in_chunk = learned and end_of_chunk, False
            segments.append(Text(piece, learned))
    return InterleavedSequence(tuple(segments))


def _pieces(text: str) -> list[str]:
    """``text`` apart at each ``<|endofchunk|>``, as it is tokenised."""
    pieces: list[str] = []
    for number, piece in enumerate(text.split(END_OF_CHUNK_TOKEN)):
        pieces += [END_OF_CHUNK_TOKEN] * (number > 0) + [piece] * bool(piece)
    return pieces
