"""Reading shards in order, as several lanes that know where they are.

Shards of a web-scale data set can be read from their start only. A stream is therefore divided
into *lanes*; each goes along its own shards, and what its n-th row is depends on nothing but the
data, the seed, the lane and n: not on who reads it, from where, or how many others there are.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from zlib import crc32

import numpy as np
from PIL import Image

from flamingo.data.cursor import Cursor
from flamingo.data.documents import BrokenShard, Dropped, Parser, Reader
from flamingo.types import ImageRef, InterleavedSequence, Media

logger = logging.getLogger(__name__)

BROKEN_IMAGE = "broken image"
BROKEN_SHARD = Dropped("broken shard")
WARN_AFTER = 10_000
"""Documents dropped in a row that a warning is due for: a wrong setting may drop all of them."""
_told: set[tuple[str, str]] = set()


def tell_once(key: tuple[str, str], message: str) -> None:
    """Log ``message``, unless this process did so under the same ``key``."""
    if key not in _told:
        _told.add(key)
        logger.warning(message)


def tell_first(source: str, reason: str, what: str) -> None:
    """Log ``what``, if it is the first that this process drops of ``source`` for ``reason``."""
    tell_once(
        (source, reason),
        f"{source}: dropped as {reason}: {what} (the first one here; metrics.jsonl counts all)",
    )


_SHARDS, _BLOCK, _RECORD = 0, 1, 2
"""What a generator is for: draws for different things are independent."""


@dataclass(frozen=True, slots=True)
class Share:
    """The records of a shard whose number is ``first`` modulo ``every``."""

    shard: int
    first: int = 0
    every: int = 1


@dataclass(slots=True)
class _Known:
    """What this process has found out about the shards of a stream. It spares reading, and changes
    nothing of what a lane gives."""

    records: dict[int, int] = field(default_factory=dict)
    """How many, of shards that were read to their end."""
    has_documents: bool = False
    """Whether one could be given."""


@dataclass(frozen=True)
class Stream:
    """A data set in shards, and how its documents are spread over lanes and shuffled.

    In every epoch each document is in one lane, once. With S shards and L lanes a lane reads
    ``S // L`` shards alone; the ``S % L`` shards left over (all, if there are fewer shards than
    lanes) are shared by record number, each by about as many lanes: then every one of these lanes
    reads all of the shard for its share of it. Which shards, and in which order, is drawn anew for
    each epoch. A lane begins its next epoch as soon as its shards end, whether or not others have:
    where shards differ in size, documents of short lanes come again before the last of the long
    ones have come.

    ``shuffle`` documents at a time, read one after another in a lane, are put in random order: a
    *block*. Documents wait in it as parsed, their images unopened but, in a tar, held as bytes.
    """

    name: str
    shards: Sequence[str]
    read: Reader
    parse: Parser
    seed: int
    lanes: int
    shuffle: int
    known: _Known = field(default_factory=_Known, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key, least in (("lanes", 1), ("shuffle", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise ValueError(
                    f"{self.name}.{key}: expected >= {least}, got {getattr(self, key)}"
                )
        if not self.shards:
            raise ValueError(f"{self.name}.shards: expected at least one, got none")

    def generator(self, purpose: int, *numbers: int) -> np.random.Generator:
        # Sources of one seed draw independently of each other: by their names.
        return np.random.default_rng((crc32(self.name.encode()), self.seed, purpose, *numbers))

    def shares(self, lane: int, epoch: int) -> list[Share]:
        """What ``lane`` reads in ``epoch``, in order."""
        order = self.generator(_SHARDS, epoch).permutation(len(self.shards)).tolist()
        # Lanes change roles with the epochs: otherwise one whose share of a small shard is empty
        # would have nothing for ever.
        role = (lane + epoch) % self.lanes
        whole = len(order) // self.lanes * self.lanes
        shares = [Share(shard) for shard in order[role : whole : self.lanes]]
        if rest := order[whole:]:
            slot = role % len(rest)
            sharing = len(range(slot, self.lanes, len(rest)))
            shares.append(Share(rest[slot], role // len(rest), sharing))
        return shares

    def next_epoch(self, lane: int, epoch: int) -> int:
        """The first epoch from ``epoch`` on in which ``lane`` has a record, as far as is known."""
        shards, known = len(self.shards), self.known.records
        if shards >= self.lanes or len(known) < shards:
            return epoch
        # All shards are shared, each by role // shards; of these the first ones alone have records.
        role = (lane + epoch) % self.lanes
        is_empty = role // shards >= max(known.values())
        return epoch + self.lanes - role if is_empty else epoch

    def documents(
        self, shares: Sequence[Share], epoch: int, shard: int = 0, record: int = 0
    ) -> Iterator[tuple[tuple[int, int], InterleavedSequence | Dropped]]:
        """What is made of ``shares``, from record ``record`` of the ``shard``-th of them.

        Each comes with the place (shard, record) after it. Records before the start are read, but
        not parsed.
        """
        for place in range(shard, len(shares)):
            share = shares[place]
            start = record if place == shard else 0
            # One of those that share a shard reads it all the same: it speaks for a broken one.
            if share.first and share.first >= self.known.records.get(share.shard, math.inf):
                continue
            number = -1
            try:
                for number, row in enumerate(self.read(self.shards[share.shard])):
                    if number >= start and number % share.every == share.first:
                        generator = self.generator(_RECORD, epoch, share.shard, number)
                        made = self.parse(row, generator)
                        if isinstance(made, Dropped):
                            where = f"record {number} of {self.shards[share.shard]}"
                            tell_first(self.name, made.reason, where)
                        yield (place, number + 1), made
                self.known.records[share.shard] = number + 1
            except BrokenShard as error:
                if share.first == 0:  # one of those that share it speaks for all
                    tell_once(
                        (self.name, str(error)), f"{self.name}: broken shard passed over: {error}"
                    )
                    yield (place + 1, 0), BROKEN_SHARD

    def order(self, lane: int, cursor: Cursor, documents: int) -> list[int]:
        """The random order of the block that begins at ``cursor``."""
        generator = self.generator(_BLOCK, cursor.epoch, lane, cursor.shard, cursor.record)
        return generator.permutation(documents).tolist()

    def require_documents(self, epoch: int) -> None:
        """Raise ``ValueError``, with the counts, unless some document of ``epoch`` can be given."""
        dropped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for _, made in self.documents([Share(s) for s in range(len(self.shards))], epoch):
            made = made if isinstance(made, Dropped) else opened(made)
            if not isinstance(made, Dropped):
                self.known.has_documents = True
                return
            dropped[made.reason] += 1
            if made.what:
                examples.setdefault(made.reason, f" (such as {made.what})")
        counts = ", ".join(
            f"{count} {reason}{examples.get(reason, '')}"
            for reason, count in sorted(dropped.items())
        )
        raise ValueError(
            f"{self.name}: expected documents to train on, got none in the whole epoch {epoch} "
            f"({len(self.shards)} shards); dropped: {counts or 'nothing, the shards are empty'}"
        )


class Lane:
    """One lane on its way: ``cursor`` is where it stands, ``next()`` gives the next row.

    The open shard and the block's remaining documents follow from the cursor; to begin in the
    middle of a block reads that block again.
    """

    def __init__(self, stream: Stream, number: int, cursor: Cursor) -> None:
        self.cursor = cursor
        self._stream, self._number = stream, number
        self._open_epoch()
        self._waiting: deque[InterleavedSequence] | None = None
        if cursor.place:
            block, _ = self._read_block()  # what it drops is counted in the cursor
            self._waiting = deque(islice(block, cursor.place, None))

    def next(self) -> InterleavedSequence:
        """The next row, its images opened. A document with a broken image is passed over.

        Raises ``ValueError`` if nothing of the source can be given in a whole epoch.
        """
        cursor = self.cursor
        at_start = cursor.shard == cursor.record == cursor.place == 0
        whole = cursor.epoch if at_start else cursor.epoch + 1  # the first one read from its start
        broken: Counter[str] = Counter()
        lost = False  # whether something of this epoch was dropped
        while True:
            if self._waiting is None:
                self._pass_over_empty_epochs()
                self._waiting, dropped = self._read_block()
                self._count(dropped)
                lost |= bool(dropped)
            row = opened(self._waiting.popleft()) if self._waiting else None
            if row is not None:
                self.cursor = replace(self.cursor, place=self.cursor.place + 1)
            if isinstance(row, Dropped):
                self._count({row.reason: 1})
                lost = True
                tell_first(self._stream.name, row.reason, row.what)
                broken[row.reason] += 1
                self._warn_of(broken)
            elif row is not None:
                self.cursor = replace(self.cursor, given=self.cursor.given + 1)
                self._stream.known.has_documents = True
            turned = not self._waiting and self._leave_block()
            if isinstance(row, InterleavedSequence):
                return row
            # A whole epoch gave this lane nothing. If it had nothing in it, others may have.
            in_doubt = lost or not self._stream.known.has_documents
            if turned and self.cursor.epoch > whole and in_doubt:
                self._stream.require_documents(self.cursor.epoch - 1)
            lost = lost and not turned

    def _open_epoch(self) -> None:
        epoch = self.cursor.epoch
        shares = self._stream.shares(self._number, epoch)
        self._documents = self._stream.documents(
            shares, epoch, self.cursor.shard, self.cursor.record
        )

    def _pass_over_empty_epochs(self) -> None:
        """Of few records many lanes have none for most epochs: not to be found out one by one."""
        cursor = self.cursor
        if cursor.shard == cursor.record == 0:
            epoch = self._stream.next_epoch(self._number, cursor.epoch)
            if epoch > cursor.epoch:
                self.cursor = replace(cursor, epoch=epoch)
                self._open_epoch()

    def _read_block(self) -> tuple[deque[InterleavedSequence], Counter[str]]:
        """The block at the cursor, shuffled, and what was dropped on the way."""
        documents: list[InterleavedSequence] = []
        dropped: Counter[str] = Counter()
        self._end: tuple[int, int] | None = None
        for place, made in self._documents:
            if isinstance(made, Dropped):
                dropped[made.reason] += 1
                if not documents:
                    self._warn_of(dropped)
                continue
            documents.append(made)
            if len(documents) == self._stream.shuffle:
                self._end = place
                break
        order = self._stream.order(self._number, self.cursor, len(documents))
        return deque(documents[i] for i in order), dropped

    def _leave_block(self) -> bool:
        """Stand before the next block; True if it is the first one of the next epoch."""
        self._waiting = None
        if self._end is None:
            self.cursor = replace(
                self.cursor, epoch=self.cursor.epoch + 1, shard=0, record=0, place=0
            )
            self._open_epoch()
            return True
        shard, record = self._end
        self.cursor = replace(self.cursor, shard=shard, record=record, place=0)
        return False

    def _warn_of(self, dropped: Counter[str]) -> None:
        """Say now and then that nothing but ``dropped`` came."""
        if dropped.total() % WARN_AFTER == 0:
            logger.warning(
                "%s: the last %d documents of lane %d were all dropped: %s",
                *(self._stream.name, dropped.total(), self._number, dict(dropped)),
            )

    def _count(self, dropped: Mapping[str, int]) -> None:
        if dropped:
            self.cursor = replace(
                self.cursor, dropped=dict(Counter(self.cursor.dropped) + Counter(dropped))
            )


# ---------------------------------------------------------------------------- images


def opened(document: InterleavedSequence) -> InterleavedSequence | Dropped:
    """``document`` with its images in memory, each decoded once; or that one of them is broken.

    Broken is what :func:`flamingo.images.open_image` refuses, and a file that is not there. Any
    other ``OSError`` (a disk or network that fails) is raised: it says nothing of the image.
    """
    images: dict[str, ImageRef] = {}
    try:
        for medium in document.media:
            for frame in medium.frames:
                if frame.key not in images:
                    images[frame.key] = ImageRef(frame.key, partial(_same, frame.open()))
    except (ValueError, FileNotFoundError) as error:
        return Dropped(BROKEN_IMAGE, str(error))
    return InterleavedSequence(
        tuple(
            Media(tuple(images[frame.key] for frame in segment.frames))
            if isinstance(segment, Media)
            else segment
            for segment in document.segments
        )
    )


def _same(image: Image.Image) -> Image.Image:
    return image
