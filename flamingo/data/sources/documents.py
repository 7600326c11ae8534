"""The one place that knows which parser reads which configured source of documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedTokenizerBase

from flamingo.choices import ClipStorage
from flamingo.config import DataConfig
from flamingo.data.documents import Fitting, Parser
from flamingo.data.shards import Shards, open_shards
from flamingo.data.sources.captions import CaptionParser
from flamingo.data.sources.clips import ClipParser, clip_shards
from flamingo.data.sources.coco_captions import COCOCaptionParser, coco_caption_shards
from flamingo.data.sources.interleaved import parse_segments
from flamingo.data.sources.mmc4 import MMC4Parser
from flamingo.data.sources.obelics import OBELICSParser
from flamingo.data.sources.vqa import Asked, VQAParser, split_questions, vqa_shards
from flamingo.data.stream import StreamSource
from flamingo.data.tables import FolderShards, TableShards
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    ClipsSourceConfig,
    COCOCaptionsSourceConfig,
    InterleavedSourceConfig,
    MMC4SourceConfig,
    OBELICSSourceConfig,
    ShardsConfig,
    ShardsSourceConfig,
    StreamSourceConfig,
    VQASourceConfig,
)

QuestionReader = Callable[[VQASourceConfig], Sequence[Asked]]
"""``training_questions`` of ``flamingo.evaluation.benchmarks``, which this room may not import."""

Opened = tuple[tuple[Shards, Parser], tuple[Shards, Parser] | None]
"""What is trained on, and what is held out. Annotations of a source that is a file are read."""


def open_documents(
    config: StreamSourceConfig, read_questions: QuestionReader
) -> tuple[Shards, Parser]:
    """The shards of a source, and what makes sequences of their records; both picklable.

    ``read_questions`` is asked for visual questions alone. Raises ``ValueError`` where there is no
    data or no folder of images, and for a config that is of no source.
    """
    match config:
        case InterleavedSourceConfig():
            return open_shards(config.shards), parse_segments
        case MMC4SourceConfig():
            _check_images(config.images)
            return open_shards(config.shards), MMC4Parser(config)
        case OBELICSSourceConfig():
            _check_images(config.images)
            return open_shards(config.shards), OBELICSParser(config)
        case CaptionShardsSourceConfig():
            return open_shards(config.shards), CaptionParser(config)
        case COCOCaptionsSourceConfig():
            _check_images(config.images)
            return coco_caption_shards(config), COCOCaptionParser(config)
        case ClipsSourceConfig():
            return clip_shards(config), ClipParser(config)
        case VQASourceConfig():
            _check_images(config.images)
            questions, _ = split_questions(config, read_questions(config))
            return vqa_shards(config, questions), VQAParser(config, questions)
        case _:
            raise ValueError(f"expected a source of documents, got {type(config).__name__}")


def open_unseen(
    config: StreamSourceConfig, parse: Parser, read_questions: QuestionReader
) -> tuple[Shards, Parser] | None:
    """What is never trained on: the shards that ``config.validation`` names, or the images that
    ``config.held_out`` counts; or None. ``parse`` is the parser of what is trained on.

    Raises ``ValueError`` where there is no data.
    """
    match config:
        case ClipsSourceConfig(validation=str(place), storage=ClipStorage.folders):
            return FolderShards(place), parse
        case ClipsSourceConfig(validation=str(place)) | ShardsSourceConfig(validation=str(place)):
            return open_shards(ShardsConfig(files=[place])), parse
        case COCOCaptionsSourceConfig() if config.held_out:
            return coco_caption_shards(config, held_out=True), parse
        case VQASourceConfig() if config.held_out:
            _, questions = split_questions(config, read_questions(config))
            return vqa_shards(config, questions), VQAParser(config, questions)
        case _:
            return None


def open_streams(config: DataConfig, read_questions: QuestionReader) -> dict[str, Opened]:
    """The data of each configured stream, by name; no document of it is read.

    Raises ``ValueError``, naming the section (``data.<name>``), where it is not there.
    """
    return {name: _opened(name, own, _once(read_questions)) for name, own in config.streams.items()}


def stream_source(
    name: str,
    config: StreamSourceConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    max_frames: int | None,
    opened: Opened,
) -> StreamSource:
    """The stream of ``config`` and its data, with its held-out one if it has one.

    Documents of more than ``max_tokens``, or with a medium of more than ``max_frames`` (None: any
    number), are dropped.
    """
    seen, unseen = opened

    def stream(
        of: tuple[Shards, Parser], lanes: int, shuffle: int, held_out: StreamSource | None = None
    ) -> StreamSource:
        shards, parse = of
        fitting = Fitting(
            parse,
            tokenizer,
            max_tokens,
            config.max_tokens,
            config.learn,
            config.learn_end_of_chunk,
            max_frames,
        )
        return StreamSource(
            name, shards.shards, shards.read, fitting, seed, lanes, shuffle, held_out
        )

    # One lane a row and no shuffling: each validation reads only what it uses.
    held_out = None if unseen is None else stream(unseen, config.sequences, 1)
    return stream(seen, config.lanes * config.sequences, config.shuffle, held_out)


def _check_images(folder: str | None) -> None:
    """A folder that is not there would be found out image by image, for an epoch."""
    if folder is not None and "://" not in folder and not os.path.isdir(folder):
        raise ValueError(f"images: expected a folder, found none at {folder}")


def _opened(name: str, config: StreamSourceConfig, read_questions: QuestionReader) -> Opened:
    with _named(f"data.{name}"):
        seen = open_documents(config, read_questions)
    with _named(f"data.{name}.validation" if hasattr(config, "validation") else f"data.{name}"):
        unseen = open_unseen(config, seen[1], read_questions)
        if unseen is not None:
            _check_apart(seen[0], unseen[0])
        return seen, unseen


def _check_apart(seen: Shards, unseen: Shards) -> None:
    """Raise ``ValueError`` for a shard that is trained on and validated on. Of a table that is
    divided both sides have their own records under one name."""
    if isinstance(seen, TableShards):
        return
    trained, validated = _places(seen), _places(unseen)
    if both := sorted(trained & validated):
        raise ValueError(
            f"expected other shards than those that are trained on, got {len(both)} of them (such "
            f"as {both[0]}): name files or folders that shards.files (or folder) does not cover"
        )


def _places(shards: Shards) -> set[str]:
    """Where they are, the same for all ways to write it. (Of an address there is one.)"""
    if isinstance(shards, FolderShards):
        return {os.path.realpath(shards.folder)}
    return {name if "://" in name else os.path.realpath(name) for name in shards.shards}


def _once(read: QuestionReader) -> QuestionReader:
    """``read``, which is asked once: both sides of a split are of one file."""
    answers: list[Sequence[Asked]] = []

    def ask(config: VQASourceConfig) -> Sequence[Asked]:
        if not answers:
            answers.append(read(config))
        return answers[0]

    return ask


@contextmanager
def _named(section: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error
