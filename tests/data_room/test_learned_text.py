"""Labels of each loss mask, as literal token ids."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from flamingo.choices import LearnedText, VQAFormat
from flamingo.data.documents import Dropped, Fitting
from flamingo.data.learned_text import with_learned_text
from flamingo.data.sequence import tokenize
from flamingo.data.sources.mmc4 import MMC4Parser
from flamingo.data.sources.vqa import VQAParser
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.source_config import MMC4SourceConfig, ShardsConfig, VQASourceConfig
from flamingo.testing import synthetic_images
from flamingo.types import InterleavedSequence, Media, Text

IMAGE, END, NO = 512, 513, -100
EOC = "<|endofchunk|>"
FIRST, SECOND = synthetic_images(2)
A, B = Media((FIRST,)), Media((SECOND,))
DOCUMENT = InterleavedSequence(
    (
        Text("This yes"),
        A,
        Text(f"This yes{EOC} yes", learn=True),  # and something between a chunk and an image
        B,
        Text(" yes"),
        Text(f" yes{EOC}"),
    )
)


def labels(tokenizer: PreTrainedTokenizerFast, sequence: InterleavedSequence) -> list[str]:
    """Ids and labels, with T and Y for This and yes, and . for what is not learned."""
    vocabulary = tokenizer.get_vocab()
    shown = {vocabulary["This"]: "T", vocabulary["Ġyes"]: "Y", IMAGE: "I", END: "E", NO: "."}
    row = tokenize(sequence, tokenizer, 100)
    return ["".join(shown[i] for i in ids) for ids in (row.input_ids, row.labels)]


@pytest.mark.parametrize(
    ("learn", "with_ends", "without"),
    [
        (LearnedText.marked, "...TYEY....", "...TY.Y...."),
        (LearnedText.everything, "TY.TYEY.YYE", "TY.TY.Y.YY."),
        (LearnedText.after_first_image, "...TYEY.YYE", "...TY.Y.YY."),
        (LearnedText.chunks, "...TYE..YYE", "...TY...YY."),
    ],
)
def test_each_choice_learns_literally_this(
    tokenizer: PreTrainedTokenizerFast, learn, with_ends, without
) -> None:
    ids = "TYITYEYIYYE"
    made = with_learned_text(DOCUMENT, learn)
    assert labels(tokenizer, made) == [ids, with_ends]
    made = with_learned_text(DOCUMENT, learn, end_of_chunk=False)
    assert labels(tokenizer, made) == [ids, without]


def test_chunks_are_what_open_flamingo_learns_of_interleaved_documents(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Its rules on ids: nothing before the first image, nor from behind an end to an image."""
    row = tokenize(with_learned_text(DOCUMENT, LearnedText.chunks), tokenizer, 100)
    expected = list(row.input_ids)
    first = expected.index(IMAGE)
    expected[:first] = [NO] * first
    for end in [place for place, token in enumerate(row.input_ids) if token == END]:
        place = end + 1
        while place < len(expected) and expected[place] != IMAGE:
            expected[place] = NO
            place += 1
    assert list(row.labels) == [NO if token == IMAGE else token for token in expected]


# ---------------------------------------------------------------------------- sources


def fitted(tokenizer, parse, record, config) -> InterleavedSequence | Dropped:
    fitting = Fitting(
        parse, tokenizer, 100, learn=config.learn, learn_end_of_chunk=config.learn_end_of_chunk
    )
    return fitting(record, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "...YE..YE"),
        ({"learn_end_of_chunk": False}, "...Y...Y."),
        ({"learn": LearnedText.everything}, ".TYYE.TYE"),
    ],
)
def test_answers_alone_are_learned_of_questions(
    tokenizer: PreTrainedTokenizerFast, options, expected
) -> None:
    questions = [
        Example("0", (FIRST,), "This yes", ("yes",)),
        Example("1", (SECOND,), "This", ("yes",)),
    ]
    config = VQASourceConfig(
        format=VQAFormat.textvqa, questions="q", images="i", pairs=2, **options
    )
    made = fitted(tokenizer, VQAParser(config, questions), {"place": 1}, config)
    assert isinstance(made, InterleavedSequence)
    assert labels(tokenizer, made) == ["ITYYEITYE", expected]


def page(tokenizer: PreTrainedTokenizerFast, **options) -> InterleavedSequence | Dropped:
    shards = ShardsConfig(files=["x"])
    config = MMC4SourceConfig(shards=shards, single_image_rejection=0.0, **options)
    record = {
        "text_list": ["This yes", "This yes yes"],
        "image_info": [{"image_base64": "aGk="}],
        "similarity_matrix": [[0.1, 0.5]],
        "__key__": "0",
    }
    return fitted(tokenizer, MMC4Parser(config), record, config)


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        (LearnedText.marked, "...TYYE"),
        (LearnedText.chunks, "...TYYE"),
        (LearnedText.after_first_image, "...TYYE"),
        (LearnedText.everything, "TY.TYYE"),
    ],
)
def test_of_pages_the_text_before_the_first_image_is_learned_on_request(
    tokenizer: PreTrainedTokenizerFast, learn, expected
) -> None:
    made = page(tokenizer, learn=learn)
    assert isinstance(made, InterleavedSequence)
    assert labels(tokenizer, made) == ["TYITYYE", expected]


def test_a_document_of_which_the_choice_leaves_nothing_is_dropped(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    def parse(record, generator) -> InterleavedSequence:
        return InterleavedSequence((Text("This yes", learn=True), A, Text(EOC, learn=True)))

    def made(learn: LearnedText, end: bool) -> InterleavedSequence | Dropped:
        fitting = Fitting(parse, tokenizer, 100, learn=learn, learn_end_of_chunk=end)
        return fitting({}, np.random.default_rng(0))

    assert isinstance(made(LearnedText.marked, False), InterleavedSequence)
    assert isinstance(made(LearnedText.chunks, True), InterleavedSequence)
    assert made(LearnedText.chunks, False) == Dropped("nothing to learn")
