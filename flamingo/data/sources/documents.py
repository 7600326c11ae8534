"""The one place that knows which parser reads which configured source of documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamingo.data.documents import Parser
from flamingo.data.shards import Shards, open_shards
from flamingo.data.sources.captions import CaptionParser
from flamingo.data.sources.clips import ClipParser, clip_shards
from flamingo.data.sources.coco_captions import COCOCaptionParser, coco_caption_shards
from flamingo.data.sources.mmc4 import MMC4Parser
from flamingo.data.sources.obelics import OBELICSParser
from flamingo.data.sources.segments import SegmentsParser
from flamingo.data.sources.vqa import Asked, VQAParser, vqa_shards
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    ClipsSourceConfig,
    COCOCaptionsSourceConfig,
    MMC4SourceConfig,
    OBELICSSourceConfig,
    SegmentsSourceConfig,
    VQASourceConfig,
)

StreamedSourceConfig = (
    MMC4SourceConfig
    | OBELICSSourceConfig
    | SegmentsSourceConfig
    | CaptionShardsSourceConfig
    | COCOCaptionsSourceConfig
    | ClipsSourceConfig
    | VQASourceConfig
)


def open_documents(
    config: StreamedSourceConfig, read_questions: Callable[[VQASourceConfig], Sequence[Asked]]
) -> tuple[Shards, Parser]:
    """The shards of a source, and what makes sequences of their records; both picklable.

    ``read_questions`` (``flamingo.evaluation.benchmarks.training.training_questions``) is asked
    for visual questions alone. Raises ``ValueError`` where there is no data.
    """
    match config:
        case MMC4SourceConfig():
            return open_shards(config.shards), MMC4Parser(config)
        case OBELICSSourceConfig():
            return open_shards(config.shards), OBELICSParser(config)
        case SegmentsSourceConfig():
            return open_shards(config.shards), SegmentsParser(config)
        case CaptionShardsSourceConfig():
            return open_shards(config.shards), CaptionParser(config)
        case COCOCaptionsSourceConfig():
            return coco_caption_shards(config), COCOCaptionParser(config)
        case ClipsSourceConfig():
            return clip_shards(config), ClipParser(config)
        case VQASourceConfig():
            questions = read_questions(config)
            return vqa_shards(config, questions), VQAParser(config, questions)
