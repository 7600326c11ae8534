"""Where the lanes of streaming sources are, as values that go into a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Cursor:
    """A lane's place between two of its rows; from it the lane goes on exactly.

    A function of the source's configuration, the lane and ``given``: whoever read the lane, and
    from where, comes to the same cursor.
    """

    epoch: int = 0
    shard: int = 0
    """In which of its shards of the epoch (0: the first) the lane's present block begins."""
    record: int = 0
    """Number in that shard of the first record of the block."""
    place: int = 0
    """Documents of the block, in its shuffled order, that are behind (0: the block is unread)."""
    given: int = 0
    """Rows that the lane has given since the start of training."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Documents that it did not give, by reason; broken shards are among them."""


Cursors = dict[str, dict[int, Cursor]]
"""Source -> lane -> cursor. A lane that is not in it is at its start."""


def furthest(parts: Iterable[Cursors]) -> Cursors:
    """All lanes of ``parts``; of a lane that is in several the cursor furthest on."""
    result: Cursors = {}
    for part in parts:
        for name, lanes in part.items():
            known = result.setdefault(name, {})
            for lane, cursor in lanes.items():
                if lane not in known or known[lane].given < cursor.given:
                    known[lane] = cursor
    return result


def dropped(cursors: Cursors) -> dict[str, dict[str, int]]:
    """Source -> reason -> dropped documents of all lanes, reasons in alphabetical order."""
    counts = {
        name: sum((Counter(cursor.dropped) for cursor in lanes.values()), Counter())
        for name, lanes in cursors.items()
    }
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def given(cursors: Cursors) -> dict[str, int]:
    """Source -> documents that became rows, of all lanes."""
    return {name: sum(c.given for c in lanes.values()) for name, lanes in cursors.items()}


def to_plain(lanes: Mapping[int, Cursor]) -> dict[str, dict[str, Any]]:
    """A source's cursors as JSON has them (its keys are text), lanes in order."""
    return {
        str(lane): asdict(cursor) | {"dropped": dict(cursor.dropped)}
        for lane, cursor in sorted(lanes.items())
    }


def from_plain(lanes: Mapping[str, Mapping[str, Any]]) -> dict[int, Cursor]:
    """The inverse of :func:`to_plain`."""
    return {int(lane): Cursor(**values) for lane, values in lanes.items()}
