"""A source whose data can be read only in order, with the interface of random access."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo.data.cursor import Cursor, from_plain, to_plain
from flamingo.data.documents import Parser, Reader
from flamingo.data.lanes import Lane, Stream
from flamingo.types import ImageRef, InterleavedSequence


class StreamSource:
    """Sequences of a :class:`flamingo.data.lanes.Stream`, a :class:`flamingo.types.Source`.

    Row i is of lane ``i % lanes``: the ``i // lanes``-th that it gives. ``sequence`` is a pure
    function as every source's is, fast where a lane's rows are asked for in rising order: each
    process keeps the lanes it has asked for open. Rows in between are read and thrown away, and a
    row further back starts the lane anew, so workers and ranks had better keep to lanes of their
    own: with ``lanes`` = G times the rows of a step, step s touches the lanes of group ``s % G``
    alone, and a worker that does every w-th step meets no other's if w divides G.

    ``held_out`` is a stream of other shards for the loss on unseen sequences.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[str],
        read: Reader,
        parse: Parser,
        seed: int,
        lanes: int,
        shuffle: int,
        held_out: StreamSource | None = None,
    ) -> None:
        self.name = name
        self.held_out = held_out
        self._stream = Stream(name, tuple(shards), read, parse, seed, lanes, shuffle)
        self._known: dict[int, Cursor] = {}
        self._forget()

    def _forget(self) -> None:
        """Nothing is open in this process."""
        self._open: dict[int, Lane] = {}
        self._process = os.getpid()

    def images(self) -> Sequence[ImageRef]:
        """None: what the shards hold is known only when they are read."""
        return ()

    def sequence(self, index: int) -> InterleavedSequence:
        """Row ``index``, its images in memory. Raises ``ValueError`` if there is nothing at all."""
        lane, place = self.place(index)
        return self._lane(lane, place).next()

    def first_images(self, count: int) -> list[ImageRef]:
        """At most ``count`` images, each once, of as many rows of one lane (which reads little)."""
        images: dict[str, ImageRef] = {}
        for place in range(count):
            media = self.sequence(place * self._stream.lanes).media
            images |= {frame.key: frame for medium in media for frame in medium.frames}
            if len(images) >= count:
                break
        return list(images.values())[:count]

    def after(self, index: int) -> Cursor:
        """Where row ``index``'s lane stands once it has given that row."""
        lane, place = self.place(index)
        return self._lane(lane, place + 1).cursor

    def place(self, index: int) -> tuple[int, int]:
        """Row ``index``'s lane, and how many rows that lane gives before it."""
        place, lane = divmod(index, self._stream.lanes)
        return lane, place

    def _lane(self, number: int, given: int) -> Lane:
        """The lane when it has given ``given`` rows."""
        if self._process != os.getpid():  # a fork's open files are shared with its parent
            self._forget()
        lane = self._open.get(number)
        if lane is None or lane.cursor.given > given:
            start = self._known.get(number, Cursor())
            if start.given > given:
                start = Cursor()
            lane = self._open[number] = Lane(self._stream, number, start)
        while lane.cursor.given < given:
            lane.next()
        return lane

    # ------------------------------------------------------------------ checkpoints

    def state(self, lanes: Mapping[int, Cursor]) -> dict[str, Any]:
        """``lanes`` with what identifies the shards they are places in, for a checkpoint."""
        return {"shards": _fingerprint(self._stream.shards), "lanes": to_plain(lanes)}

    def resume(self, state: Mapping[str, Any]) -> dict[int, Cursor]:
        """Make the places of :meth:`state` known: rows after them are reached from there.

        Returns them. Raises ``ValueError`` if they are places in other shards than these.
        """
        require_same_shards(self.name, state, self._stream.shards)
        self._known = from_plain(state["lanes"])
        self._forget()
        return dict(self._known)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # another process opens its own


def require_same_shards(name: str, state: Mapping[str, Any], shards: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``state``, of a stream in a checkpoint, is of ``shards``."""
    if state["shards"] != _fingerprint(shards):
        raise ValueError(
            f"{name}.shards: expected those of the checkpoint ({state['shards']}: number, "
            f"and hash of the names), got {_fingerprint(shards)}; the rows that were seen "
            "cannot be told in other shards"
        )


def _fingerprint(shards: Sequence[str]) -> str:
    """Names without folders: the data may stand elsewhere."""
    names = [shard.rstrip("/").rsplit("/", 1)[-1] for shard in shards]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return f"{len(names)} shards, {digest}"
