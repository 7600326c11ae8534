"""The mixture: every source gives its sequences to every optimisation step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from flamingo.config import DataConfig, SourceConfig
from flamingo.data.concepts import load_concepts
from flamingo.data.sequence import tokenize
from flamingo.data.sources.binding import BindingSource
from flamingo.data.sources.easy_vqa import EasyVQASource
from flamingo.data.words import made_up_words
from flamingo.types import ImageRef, Source, TokenizedSequence


def source_configs(config: DataConfig) -> list[SourceConfig]:
    """The configured sources, in the order of :func:`build_sources`."""
    return [source for source in (config.easy_vqa, config.binding) if source is not None]


def build_sources(
    config: DataConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    easy_vqa_folder: Callable[[], Path],
    twemoji_folder: Callable[[], Path],
) -> list[Source]:
    """The sources of ``config``. Only the folders they need are asked for.

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
    return sources


class Mixture:
    """What each optimisation step is made of.

    Step ``s`` holds sequences ``s * n`` to ``(s + 1) * n - 1`` of each source, ``n`` its
    ``sequences``: a pure function of ``s``, so that training resumes at any step, and steps far
    beyond any training step serve as validation.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        configs: Sequence[SourceConfig],
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
    ) -> None:
        if not sources:
            raise ValueError("data: expected at least one source (easy_vqa, binding), got none")
        if len(sources) != len(configs):
            raise ValueError(f"configs: expected {len(sources)}, one a source, got {len(configs)}")
        self.sources = tuple(sources)
        self.names = tuple(source.name for source in sources)
        self.loss_weights = tuple(config.loss_weight for config in configs)
        self._sequences = tuple(config.sequences for config in configs)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def images(self) -> list[ImageRef]:
        """Every image of every source, each once."""
        images = {image.key: image for source in self.sources for image in source.images()}
        return list(images.values())

    def step(
        self, index: int, rank: int = 0, world: int = 1
    ) -> list[tuple[int, TokenizedSequence]]:
        """The rows of step ``index`` that process ``rank`` of ``world`` works on.

        Each row comes with the index of its source. Over the ranks every row appears once; a rank
        takes every ``world``-th row, so that its share holds all sources and, as far as possible,
        as many rows as the others'. Raises ``ValueError`` if there are fewer rows than processes.
        """
        rows = [
            (source, index * count + offset)
            for source, count in enumerate(self._sequences)
            for offset in range(count)
        ]
        if len(rows) < world:
            raise ValueError(
                f"sequences: expected at least one a process and step, got {len(rows)} for "
                f"{world} processes"
            )
        return [
            (source, self._tokenized(source, position)) for source, position in rows[rank::world]
        ]

    def _tokenized(self, source: int, position: int) -> TokenizedSequence:
        sequence = self.sources[source].sequence(position)
        return tokenize(sequence, self._tokenizer, self._max_tokens)
