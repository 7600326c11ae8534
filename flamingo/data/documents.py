"""What a training source makes of one document of a data set: a sequence, or why there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from flamingo.data.sequence import tokenize
from flamingo.types import IGNORE_INDEX, IMAGE_TOKEN, InterleavedSequence, Text

Record = Mapping[str, Any]
"""One document (or image with its caption) as its file has it: a row of parquet, a line of JSON,
the members of a tar that share a name."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that is not learned from; ``reason`` is one of a few words, to be counted by."""

    reason: str


Parser = Callable[[Record, np.random.Generator], InterleavedSequence | Dropped]
"""Makes a sequence of a record. Images are not opened yet: references open them later, and may fail
then. The generator decides what is random in it, and is the same for the same record each epoch
but the epoch's own draw. Never raises for what is wrong with a record: that is ``Dropped``."""


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
    """A parser that also drops what could not be trained on as it is.

    Sequences of more than ``max_tokens`` tokens (nothing is ever cut), with ``<image>`` in a text
    or without a token to learn. A stream has no other place to leave a document out: once a lane
    has given it, it is a row.
    """

    parse: Parser
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def __call__(
        self, record: Record, generator: np.random.Generator
    ) -> InterleavedSequence | Dropped:
        made = self.parse(record, generator)
        if isinstance(made, Dropped):
            return made
        if any(isinstance(s, Text) and IMAGE_TOKEN in s.text for s in made.segments):
            return Dropped(f"{IMAGE_TOKEN} in the text")
        row = tokenize(made, self.tokenizer, max_tokens=sys.maxsize)
        if len(row.input_ids) > self.max_tokens:
            return Dropped("too many tokens")
        if all(label == IGNORE_INDEX for label in row.labels[1:]):
            return Dropped("nothing to learn")
        return made
