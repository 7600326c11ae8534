"""What a training source makes of one document of a data set: a sequence, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamingo.types import InterleavedSequence

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
