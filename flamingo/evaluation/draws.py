"""Random draws that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator


def generator(*parts: object) -> random.Random:
    """A random generator that depends on ``parts`` alone (not on process, platform or order)."""
    digest = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def permutation(draw: random.Random, size: int) -> Iterator[int]:
    """``range(size)`` in random order, drawn one by one (Fisher and Yates, sparse).

    Taking the first few costs nothing for the rest, and taking more changes none of the first.
    """
    moved: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        index = draw.randrange(last + 1)
        yield moved.get(index, index)
        moved[index] = moved.pop(last, last)
