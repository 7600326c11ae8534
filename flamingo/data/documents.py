"""What a training source makes of one document of a data set: a sequence, or why there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from flamingo.choices import LearnedText
from flamingo.data.learned_text import with_learned_text
from flamingo.data.sequence import cut, tokenize
from flamingo.types import IGNORE_INDEX, InterleavedSequence

Record = Mapping[str, Any]
"""One document (or image with its caption) as its file has it: a row of parquet, a line of JSON,
the members of a tar that share a name."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that is not learned from; ``reason`` is one of a few words, to be counted by."""

    reason: str
    what: str = field(default="", compare=False)
    """Which file or image it is about, and what is wrong with it, where that is known."""


TOO_MANY_TOKENS = Dropped("too many tokens")
NOTHING_TO_LEARN = Dropped("nothing to learn")
MIXED_FRAMES = Dropped("clips of different lengths")
TOO_MANY_FRAMES = Dropped("too many frames")

Parser = Callable[[Record, np.random.Generator], InterleavedSequence | Dropped]
"""Makes a sequence of a record. Images are not opened yet: references open them later, and may fail
then. The generator decides what is random in it, and is the same for the same record each epoch
but the epoch's own draw. Never raises for what is wrong with a record: that is ``Dropped``, and so
is a text with ``<image>`` in it. Raises ``OSError`` where a disk or network fails."""


class BrokenShard(ValueError):
    """A shard that cannot be read (any further): damaged, truncated, gone.

    What was read of it before stands; the rest is passed over, logged and counted.
    """

    def __init__(self, shard: str, reason: str) -> None:
        super().__init__(f"{shard}: {reason}")
        self.shard = shard
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenShard], tuple[str, str]]:
        return type(self), (self.shard, self.reason)


Reader = Callable[[str], Iterable[Record]]
"""The records of a shard, in the same order at every call. Raises :class:`BrokenShard`, also
half-way. It is abandoned where a lane stops, so what it holds open must close with it."""


@dataclass(frozen=True)
class Fitting:
    """A parser whose sequences can be trained on as they are.

    Their loss is as ``learn`` and ``learn_end_of_chunk`` say, and they are cut to their first
    ``cut_to`` tokens (None: not cut). One that then has more than ``max_tokens``, or none to learn,
    or media of different numbers of frames or of more than ``max_frames``, is dropped. A stream has
    no other place to leave a document out: once a lane has given it, it is a row.
    """

    parse: Parser
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    cut_to: int | None = None
    learn: LearnedText = LearnedText.marked
    learn_end_of_chunk: bool = True
    max_frames: int | None = None

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        made = self.parse(record, generator)
        if isinstance(made, Dropped):
            return made
        made = with_learned_text(made, self.learn, end_of_chunk=self.learn_end_of_chunk)
        if self.cut_to is not None:
            made = cut(made, self.tokenizer, self.cut_to)
        row = tokenize(made, self.tokenizer, max_tokens=sys.maxsize)
        if len(row.input_ids) > self.max_tokens:
            return TOO_MANY_TOKENS
        if all(label == IGNORE_INDEX for label in row.labels[1:]):
            return NOTHING_TO_LEARN
        frames = {len(medium.frames) for medium in row.media}
        if len(frames) > 1:  # a batch is one tensor
            return MIXED_FRAMES
        if self.max_frames is not None and max(frames, default=0) > self.max_frames:
            return TOO_MANY_FRAMES
        return made
