"""The mixture: the sequences that each source gives to an optimisation step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flamingo.choices import Mixing
from flamingo.config import DataConfig
from flamingo.data.concepts import load_concepts
from flamingo.data.cursor import Cursors
from flamingo.data.sequence import tokenize
from flamingo.data.sources.binding import BindingSource
from flamingo.data.sources.documents import Opened, stream_source
from flamingo.data.sources.easy_vqa import EasyVQASource
from flamingo.data.stream import StreamSource
from flamingo.data.words import made_up_words
from flamingo.source_config import SourceConfig
from flamingo.types import ImageRef, Source, TokenizedSequence

UNSEEN = 2**31
"""Index of the first validation step, far beyond any training step and the same for every run."""


def build_sources(
    config: DataConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    easy_vqa_folder: Callable[[], Path],
    twemoji_folder: Callable[[], Path],
    documents: Mapping[str, Opened],
    max_frames: int | None = None,
) -> list[Source]:
    """The sources of ``config``. Only the folders that they need are asked for.

    ``documents`` is what ``open_streams`` gives, of each stream; those with a medium of more than
    ``max_frames`` are dropped.
    ``seed`` draws the sequences; which concepts and words are held out does not depend on it.
    """
    sources: list[Source] = []
    if config.easy_vqa is not None:
        sources.append(EasyVQASource(config.easy_vqa, seed, easy_vqa_folder()))
    if config.binding is not None:
        concepts = load_concepts(
            config.binding.collection,
            held_out=config.binding.held_out,
            views=config.binding.views,
            path=config.binding.path,
            easy_vqa_folder=easy_vqa_folder,
            twemoji_folder=twemoji_folder,
        )
        words = made_up_words(tokenizer)
        sources.append(BindingSource(config.binding, seed, concepts, words))
    for name, own in config.streams.items():
        limits = config.max_tokens, max_frames
        sources.append(stream_source(name, own, seed, tokenizer, *limits, documents[name]))
    return sources


class Mixture:
    """What each optimisation step is made of.

    Step ``s`` holds sequences ``s * n`` to ``(s + 1) * n - 1`` of each source, ``n`` its
    ``sequences``: a pure function of ``s``, so that training resumes at any step. Steps from
    :data:`UNSEEN` on serve as validation: new draws of a source's training data. For a stream,
    which has no such rows, they are made of its held-out shards, or lack it.

    With ``mixing=round_robin`` a step has the sequences of one source alone, of S sources the
    ``s % S``-th: S steps in a row hold what one does otherwise. Validation has all of them.

    A stream reaches a step from the start, or from where :meth:`resume` says that it was.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        configs: Sequence[SourceConfig],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        mixing: Mixing = Mixing.accumulate,
    ) -> None:
        if not sources:
            raise ValueError("data: expected at least one source (such as data.easy_vqa), got none")
        if len(sources) != len(configs):
            raise ValueError(f"configs: expected {len(sources)}, one a source, got {len(configs)}")
        self.sources = tuple(sources)
        self.names = tuple(source.name for source in sources)
        self.streams = {s.name: s for s in sources if isinstance(s, StreamSource)}
        self.loss_weights = tuple(config.loss_weight for config in configs)
        self._sequences = tuple(config.sequences for config in configs)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._mixing = mixing

    @property
    def has_streams(self) -> bool:
        """Whether a source can be read in order only."""
        return bool(self.streams)

    def images(self) -> list[ImageRef]:
        """Every image of every source that can list them, each once."""
        images = {image.key: image for source in self.sources for image in source.images()}
        return list(images.values())

    def stream_images(self, count: int) -> list[ImageRef]:
        """At most ``count`` images of each stream."""
        return [image for s in self.streams.values() for image in s.first_images(count)]

    def step(
        self, index: int, rank: int = 0, world: int = 1
    ) -> list[tuple[int, TokenizedSequence]]:
        """The rows of step ``index`` that process ``rank`` of ``world`` works on.

        Each row comes with the index of its source. Over the ranks every row appears once; a rank
        takes every ``world``-th row, so that its share holds all sources and, as far as possible,
        as many rows as the others'. Raises ``ValueError`` if there are fewer rows than processes;
        in validation some then have none.
        """
        supply = self._seen() if index < UNSEEN else self._unseen()
        return [
            (source, self._tokenized(supply[source], position))
            for source, position in self._rows(supply, index, rank, world)
        ]

    def cursors(self, index: int, rank: int = 0, world: int = 1) -> Cursors:
        """Where the lanes stand that the rows of :meth:`step` came from, after them."""
        if index >= UNSEEN or not self.streams:
            return {}
        last: dict[tuple[str, int], int] = {}  # a lane may give several rows of a step
        for source, position in self._rows(self._seen(), index, rank, world):
            if (stream := self.streams.get(self.names[source])) is not None:
                last[stream.name, stream.place(position)[0]] = position
        cursors: Cursors = {}
        for (name, lane), position in last.items():
            cursors.setdefault(name, {})[lane] = self.streams[name].after(position)
        return cursors

    def stream_state(self, cursors: Cursors) -> dict[str, Any]:
        """``cursors`` as plain values for a checkpoint, by source."""
        return {name: s.state(cursors.get(name, {})) for name, s in self.streams.items()}

    def resume(self, state: Mapping[str, Any]) -> Cursors:
        """Make known where the streams were; returns it. What the state lacks is at its start.

        Raises ``ValueError`` if a source's shards are not those of the state.
        """
        return {name: s.resume(state[name]) for name, s in self.streams.items() if name in state}

    def _seen(self) -> dict[int, Source]:
        return dict(enumerate(self.sources))

    def _unseen(self) -> dict[int, Source]:
        supply = {
            index: source.held_out if isinstance(source, StreamSource) else source
            for index, source in enumerate(self.sources)
        }
        return {index: source for index, source in supply.items() if source is not None}

    def _rows(
        self, supply: Mapping[int, Source], index: int, rank: int, world: int
    ) -> list[tuple[int, int]]:
        """Source and position of each row of ``rank``'s share of step ``index``."""
        rows: list[tuple[int, int]] = []
        if self._mixing is Mixing.round_robin and index < UNSEEN:
            index, turn = divmod(index, len(self.sources))
            supply = {turn: self.sources[turn]}
        for source, chosen in supply.items():
            count = self._sequences[source]
            held_out = index >= UNSEEN and isinstance(chosen, StreamSource)
            start = (index - UNSEEN if held_out else index) * count
            rows += [(source, start + offset) for offset in range(count)]
        if len(rows) < world and index < UNSEEN:
            raise ValueError(
                f"sequences: expected at least one a process and step, got {len(rows)} for "
                f"{world} processes"
            )
        return rows[rank::world]

    def _tokenized(self, source: Source, position: int) -> TokenizedSequence:
        sequence = source.sequence(position)
        return tokenize(sequence, self._tokenizer, self._max_tokens)
