"""The typed configuration of training sources: what all have, and those that stream documents.

Every default is that of OpenFlamingo 2.0.1 (``open_flamingo/train/data.py``) where it has one, but
for ``min_image_bytes``.
Shards may be of any file system that ``fsspec`` knows (``s3://...``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import Formatter

from omegaconf import MISSING

from flamingo.choices import (
    AnswerChoice,
    ClipStorage,
    FrameSampling,
    ImageMatching,
    LearnedText,
    VQAFormat,
)
from flamingo.structured import require


@dataclass(kw_only=True)
class SourceConfig:
    """What every training source has: its share of a step and of the loss."""

    sequences: int = 8
    """Sequences of this source in every optimisation step, over all processes."""
    loss_weight: float = 1.0

    _key = "data"
    """The section that a source is configured in, for messages."""

    def __post_init__(self) -> None:
        self._require(self.sequences >= 1, "sequences", ">= 1", self.sequences)
        self._require(self.loss_weight > 0, "loss_weight", "> 0", self.loss_weight)

    def _require(self, condition: bool, name: str, expected: str, actual: object) -> None:
        """Raise ``ValueError`` naming the field with its section unless ``condition`` holds."""
        require(condition, f"{self._key}.{name}", expected, actual)

    @property
    def has_unseen(self) -> bool:
        """Whether it has sequences for the validation loss: of a stream those of documents that are
        never trained on, else new draws of the training questions, images and concepts."""
        return True


@dataclass(kw_only=True)
class StreamSourceConfig(SourceConfig):
    """What a source has whose shards are read in order, by several lanes that each shuffle."""

    lanes: int = 4
    """Lanes for each of a step's ``sequences``. Each holds a file open and ``shuffle`` documents
    in memory. A multiple of ``workers`` spares workers from reading one another's lanes."""
    shuffle: int = 64
    """Documents of a lane that are put in random order at a time."""
    max_tokens: int | None = None
    """Cut documents to so many tokens, at a token boundary; media whose ``<image>`` token is cut go
    too. Null: those longer than ``data.max_tokens`` are dropped."""
    learn: LearnedText = LearnedText.marked
    """Which text has a loss."""
    learn_end_of_chunk: bool = True
    """Whether an ``<|endofchunk|>`` has one, where the text in front of it does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lanes", "shuffle"):
            self._require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        if self.max_tokens is not None:
            self._require(self.max_tokens >= 2, "max_tokens", ">= 2", self.max_tokens)

    @property
    def has_unseen(self) -> bool:
        return False


@dataclass(kw_only=True)
class AnnotatedSourceConfig(StreamSourceConfig):
    """What a source has whose data is a file of annotations beside a folder of images."""

    held_out: int = 0
    """Images that this source never trains on (another one may), with all that is said of them, for
    the loss on unseen sequences: the last ones of the file. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.held_out >= 0, "held_out", ">= 0", self.held_out)

    @property
    def has_unseen(self) -> bool:
        return self.held_out > 0


# ---------------------------------------------------------------------------- where the data is


@dataclass(kw_only=True)
class ShardsConfig:
    """Where shards are: files, or a data set of the hub; exactly one of the two.

    Shards are parquet (``.parquet``), JSON lines (``.jsonl`` or ``.json``, also with ``.gz``,
    ``.zst`` or ``.zip`` behind) or webdataset tars (``.tar``, ``.tar.gz``, ``.tgz``).
    """

    files: list[str] = field(default_factory=list)
    """Paths, patterns (``*``, ``**``) and folders (with all below)."""
    hub: str | None = None
    """A data set's name on the hub, or a folder that is laid out like one."""
    configuration: str | None = None
    revision: str | None = None
    """Of the data set on the hub. Without one a run that is resumed may see another."""
    split: str = "train"

    def check(self, key: str) -> None:
        """Raises ``ValueError`` unless one place is given, and nothing that means nothing there.

        ``key`` is the section that this is.
        """
        if bool(self.files) == (self.hub is not None):
            raise ValueError(
                f"{key}: expected exactly one of files and hub, "
                f"got files={self.files!r}, hub={self.hub!r}"
            )
        if self.files:  # all of them are read, whatever split they are of
            for name in ("configuration", "revision", "split"):
                default = getattr(ShardsConfig, name)
                value = getattr(self, name)
                require(value == default, f"{key}.{name}", f"{default!r} with files", value)


@dataclass(kw_only=True)
class ShardsSourceConfig(StreamSourceConfig):
    """What a source has whose data comes as shards."""

    shards: ShardsConfig = field(default_factory=ShardsConfig)
    validation: str | None = None
    """Where other shards of the same kind are, for the loss on unseen sequences: a path, pattern or
    folder. Null: there is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shards.check(f"{self._key}.shards")

    @property
    def has_unseen(self) -> bool:
        return self.validation is not None


# ---------------------------------------------------------------------------- documents


@dataclass(kw_only=True)
class PageSourceConfig(ShardsSourceConfig):
    """What sources of web documents have."""

    images: str | None = None
    """The folder of the images where they are files beside the documents."""
    max_images: int = 6
    """Of a document; the first ones in reading order."""
    min_images: int = 1
    """A document with fewer is dropped."""
    single_image_rejection: float = 0.5
    """Share of the documents with one image that is dropped, drawn anew each epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            1 <= self.min_images <= self.max_images,
            "min_images, max_images",
            "1 <= min_images <= max_images",
            (self.min_images, self.max_images),
        )
        rate = self.single_image_rejection
        self._require(0 <= rate <= 1, "single_image_rejection", "in [0, 1]", rate)


@dataclass(kw_only=True)
class MMC4SourceConfig(PageSourceConfig):
    """Multimodal C4 (Zhu et al. 2023): sentences, and images matched to them.

    ``images`` is the folder of the files ``image_name``, where images are not in the records.
    """

    _key = "data.mmc4"

    max_tokens: int | None = 256
    similarity: float = 0.24
    """An image below this similarity (CLIP ViT-L/14) to its sentence is left out."""
    matching: ImageMatching = ImageMatching.assignment
    min_image_bytes: int = 0
    """A smaller image file is left out (OpenFlamingo: 11,000)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(-1 <= self.similarity <= 1, "similarity", "in [-1, 1]", self.similarity)
        least = self.min_image_bytes
        self._require(least >= 0, "min_image_bytes", ">= 0", least)


@dataclass(kw_only=True)
class OBELICSSourceConfig(PageSourceConfig):
    """OBELICS (Laurençon et al. 2023): images and texts in the order of the web page.

    Where the column ``images`` holds URLs, the folder ``images`` has a file for each URL that
    could be fetched, named by the SHA-256 of the URL in hexadecimal, without a suffix.
    """

    _key = "data.obelics"

    single_image_rejection: float = 0.0


@dataclass(kw_only=True)
class InterleavedSourceConfig(ShardsSourceConfig):
    """JSON lines of interleaved segments: the format for data of one's own."""

    _key = "data.interleaved"


# ---------------------------------------------------------------------------- captions


@dataclass(kw_only=True)
class CaptionedSourceConfig(StreamSourceConfig):
    """What sources of an image or a clip with its caption have."""

    min_words: int = 1
    max_words: int | None = None
    """A longer caption is dropped, none is cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.min_words, self.max_words
        self._require(least >= 1, "min_words", ">= 1", least)
        if most is not None:
            self._require(most >= least, "max_words", f">= min_words ({least})", most)


@dataclass(kw_only=True)
class CaptionShardsSourceConfig(CaptionedSourceConfig, ShardsSourceConfig):
    """Images with captions in shards: LAION, CC3M, CC12M as img2dataset writes them.

    The image is the member (or column) ``jpg``, ``jpeg``, ``png``, ``webp`` or ``image``, the
    caption ``txt``, ``caption`` or ``text``, or else ``caption`` within ``json``.
    """

    _key = "data.captions"

    max_tokens: int | None = 32


@dataclass(kw_only=True)
class COCOCaptionsSourceConfig(CaptionedSourceConfig, AnnotatedSourceConfig):
    """COCO captions (Chen et al. 2015): one of an image's captions, drawn anew each epoch."""

    _key = "data.coco_captions"

    annotations: str = MISSING
    """``captions_train2014.json``."""
    images: str = MISSING
    """The folder of the images, ``train2014``."""


@dataclass(kw_only=True)
class ClipsSourceConfig(CaptionedSourceConfig):
    """Short clips as frames, with captions. ``shards`` or ``folder``, by ``storage``."""

    _key = "data.clips"

    storage: ClipStorage = ClipStorage.shards
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    folder: str | None = None
    """Has a sub-folder a clip."""
    validation: str | None = None
    """Where other clips are, stored in the same way, for the loss on unseen sequences; or null."""
    frames: int = 8
    """Of each clip; one with fewer is dropped."""
    sampling: FrameSampling = FrameSampling.even

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.frames >= 1, "frames", ">= 1", self.frames)
        folder, shards = self.folder, self.shards
        match self.storage:
            case ClipStorage.shards:
                shards.check(f"{self._key}.shards")
                self._require(folder is None, "folder", "null with storage=shards", folder)
            case ClipStorage.folders:
                given = folder is not None
                self._require(given, "folder", "a folder with storage=folders", folder)
                none = shards == ShardsConfig()
                self._require(none, "shards", "none with storage=folders", shards)

    @property
    def has_unseen(self) -> bool:
        return self.validation is not None


# ---------------------------------------------------------------------------- questions


@dataclass(kw_only=True)
class VQASourceConfig(AnnotatedSourceConfig):
    """A set of visual questions as few-shot sequences."""

    _key = "data.vqa"

    format: VQAFormat = MISSING
    questions: str = MISSING
    """The file of questions; for TextVQA, VizWiz and GQA with their answers (GQA: or a folder)."""
    annotations: str | None = None
    """``format=vqa`` alone: the file of answers."""
    images: str = MISSING
    """The folder of the images."""
    image_split: str | None = None
    """``format=vqa`` alone: ``train2014`` or ``val2014``."""
    pairs: int = 4
    """Images in a sequence, each with a question and its answer."""
    answer: AnswerChoice = AnswerChoice.most_common
    prompt: str = "{question}"
    """Between image and answer (OpenFlamingo's few-shot prompt:
    ``Question:{question} Short answer:``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.pairs >= 1, "pairs", ">= 1", self.pairs)
        fields = [name for _, name, _, _ in Formatter().parse(self.prompt) if name is not None]
        self._require(fields == ["question"], "prompt", "a text with {question} once", self.prompt)
        bare = "<image>" not in self.prompt  # as OpenFlamingo's template is printed
        self._require(bare, "prompt", "no <image> (it is put in front)", self.prompt)
        api = self.format is VQAFormat.vqa
        for name in ("annotations", "image_split"):
            value = getattr(self, name)
            wanted = "a value with format=vqa, else null"
            self._require((value is not None) == api, name, wanted, value)
