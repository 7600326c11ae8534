"""Sets of visual questions as few-shot sequences, and the builder of all sources."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flamingo.choices import AnswerChoice, VQAFormat
from flamingo.data.documents import Dropped
from flamingo.data.shards import Shards
from flamingo.data.sources.documents import open_documents
from flamingo.data.sources.vqa import VQAParser, split_questions, vqa_shards
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.training import training_questions
from flamingo.source_config import (
    CaptionShardsSourceConfig,
    InterleavedSourceConfig,
    MMC4SourceConfig,
    OBELICSSourceConfig,
    ShardsConfig,
    VQASourceConfig,
)
from flamingo.testing import synthetic_images
from flamingo.types import IMAGE_TOKEN, InterleavedSequence, Media, Text

BENCHMARKS = Path(__file__).resolve().parent.parent / "data" / "benchmarks"
EOC = "<|endofchunk|>"
IMAGES = synthetic_images(4)
QUESTIONS = [  # two about each of four images
    Example(f"{n}", (IMAGES[n // 2],), f"Q{n}?", (f"other {n}", f"A{n}", f"A{n}")) for n in range(8)
]


def config(**options) -> VQASourceConfig:
    settings = {"format": VQAFormat.textvqa, "questions": "q.json", "images": "images"}
    return VQASourceConfig(**(settings | options))


def parsed(number: int, seed: int = 0, **options) -> list[tuple[str, str, str]]:
    """(image key, prompt, answer) of each pair."""
    shards = vqa_shards(config(**options), QUESTIONS)
    records = [record for shard in shards.shards for record in shards.read(shard)]
    parse = pickle.loads(pickle.dumps(VQAParser(config(**options), QUESTIONS)))
    made = parse(records[number], np.random.default_rng(seed))
    assert isinstance(made, InterleavedSequence)
    pairs = []
    for image, prompt, answer in zip(*(made.segments[n::3] for n in range(3)), strict=True):
        assert isinstance(image, Media) and isinstance(prompt, Text) and isinstance(answer, Text)
        assert answer.learn and not prompt.learn
        pairs.append((image.frames[0].key, prompt.text, answer.text))
    return pairs


def test_the_records_question_comes_last_after_questions_on_other_images():
    for number, question in enumerate(QUESTIONS):
        for seed in range(10):
            pairs = parsed(number, seed)
            assert pairs[-1] == (question.images[0].key, f"Q{number}?", f" A{number}{EOC}")
            assert len(pairs) == 4 == len({key for key, _, _ in pairs})
    before = Counter(prompt for seed in range(200) for _, prompt, _ in parsed(0, seed)[:-1])
    assert before.keys() == {f"Q{n}?" for n in range(2, 8)}
    assert min(before.values()) >= 70  # 100 expected
    assert parsed(0, 1) == parsed(0, 1) != parsed(0, 2)


def test_a_prompt_stands_around_the_question():
    prompt = "Question:{question} Short answer:"
    pairs = parsed(3, prompt=prompt, pairs=1)
    assert pairs == [(IMAGES[1].key, "Question:Q3? Short answer:", f" A3{EOC}")]


def test_a_random_answer_is_as_likely_as_annotators_gave_it():
    options = {"pairs": 1, "answer": AnswerChoice.random}
    drawn = Counter(parsed(0, seed, **options)[0][2] for seed in range(300))
    assert drawn.keys() == {f" A0{EOC}", f" other 0{EOC}"}
    assert 70 <= drawn[f" other 0{EOC}"] <= 130  # 100 expected


def test_questions_on_an_image_that_is_held_out_are_held_out_together():
    seen, unseen = split_questions(config(held_out=1), [*QUESTIONS[::2], *QUESTIONS[1::2]])
    assert [asked.question for asked in seen] == ["Q0?", "Q2?", "Q4?", "Q1?", "Q3?", "Q5?"]
    assert [asked.question for asked in unseen] == ["Q6?", "Q7?"]
    assert split_questions(config(), QUESTIONS) == (QUESTIONS, [])


def test_questions_that_cannot_be_packed_are_refused():
    with pytest.raises(ValueError, match=r"pairs: expected at most the 4 images of q\.json, got 5"):
        VQAParser(config(pairs=5), QUESTIONS)
    with pytest.raises(ValueError, match=r"with answers, got 'Why\?' with 1 images and 0 answers"):
        VQAParser(config(), [*QUESTIONS, Example("9", (IMAGES[0],), "Why?")])
    odd = [Example("0", (IMAGES[0],), "What is <image>?", ("a",))]
    parse = VQAParser(config(pairs=1), odd)
    made = parse({"place": 0}, np.random.default_rng(0))
    assert made == Dropped("text contains a special token")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt": "Question:"}, "data.vqa.prompt: expected a text with {question} once"),
        (
            {"prompt": f"{IMAGE_TOKEN}Question:{{question}}"},
            r"data.vqa.prompt: expected no <image>",
        ),
        ({"prompt": "{question} {other}"}, "prompt: expected"),
        ({"image_split": "train2014"}, "image_split: expected a value with format=vqa"),
        ({"format": VQAFormat.vqa}, "annotations: expected a value with format=vqa"),
        ({"pairs": 0}, "pairs: expected >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        config(**options)


OKVQA, TEXTVQA, VIZWIZ, GQA = (BENCHMARKS / name for name in ("okvqa", "textvqa", "vizwiz", "gqa"))


@pytest.mark.parametrize(
    "settings",
    [
        {
            "format": VQAFormat.vqa,
            "questions": OKVQA / "OpenEnded_mscoco_train2014_questions.json",
            "annotations": OKVQA / "mscoco_train2014_annotations.json",
            "images": BENCHMARKS / "coco" / "train2014",
            "image_split": "train2014",
        },
        {
            "format": VQAFormat.textvqa,
            "questions": TEXTVQA / "TextVQA_0.5.1_train.json",
            "images": TEXTVQA / "train_images",
        },
        {
            "format": VQAFormat.vizwiz,
            "questions": VIZWIZ / "val.json",
            "images": VIZWIZ / "val",
        },
        {
            "format": VQAFormat.gqa,
            "questions": GQA / "train_all_questions",
            "images": GQA / "images",
        },
    ],
    ids=lambda settings: settings["format"].value,
)
def test_published_files_of_each_format_give_sequences(settings):
    values = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    own = VQASourceConfig(**values, pairs=1)
    shards, parse = open_documents(own, training_questions)
    examples = training_questions(own)
    records = [record for shard in shards.shards for record in shards.read(shard)]
    assert len(records) == len(examples) > 0
    for record, example in zip(records, examples, strict=True):
        made = parse(record, np.random.default_rng(0))
        assert isinstance(made, InterleavedSequence)
        medium, prompt, _ = made.segments
        assert medium == Media(example.images)
        assert prompt == Text(example.question)


def test_each_kind_of_source_is_built(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    place = ShardsConfig(files=[str(tmp_path)])
    for kind in (
        MMC4SourceConfig,
        OBELICSSourceConfig,
        InterleavedSourceConfig,
        CaptionShardsSourceConfig,
    ):
        shards, parse = pickle.loads(pickle.dumps(open_documents(kind(shards=place), list)))
        assert isinstance(shards, Shards)
        (record,) = shards.read(shards.shards[0])
        assert isinstance(parse(record, np.random.default_rng(0)), Dropped)
