from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from flamingo.config import BindingSourceConfig, EasyVQASourceConfig
from flamingo.data.concepts import Concept, ConceptSet
from flamingo.data.sources.binding import BindingSource
from flamingo.data.sources.easy_vqa import EasyVQASource, image_ref, load_questions
from flamingo.data.words import Words
from flamingo.images import BLANK
from flamingo.testing import synthetic_images
from flamingo.types import InterleavedSequence, Media, Text

WORDS = Words(seen=("baf", "cof", "dul"), held_out=("zub",), multi_token=frozenset())


def _concepts(views: int = 3) -> ConceptSet:
    images = synthetic_images(6 * views)
    concepts = [Concept(f"c{i}", tuple(images[i * views : (i + 1) * views])) for i in range(6)]
    return ConceptSet(seen=tuple(concepts[:4]), held_out=tuple(concepts[4:]))


def _binding(views: int = 3, **options: int) -> BindingSource:
    config = BindingSourceConfig(**({"max_ways": 3, "held_out": 2} | options))
    return BindingSource(config, 0, _concepts(views), WORDS)


def _read(sequence: InterleavedSequence) -> list[tuple[str, str, bool]]:
    """(concept, word, whether it is learned) for each image."""
    concept = {v.key: c.name for c in _concepts().all for v in c.views}
    stream = []
    for start in range(0, len(sequence.segments), 3):
        medium, this_is_a, word = sequence.segments[start : start + 3]
        assert isinstance(medium, Media) and isinstance(word, Text)
        assert this_is_a == Text("This is a")
        assert word.text.startswith(" ") and word.text.endswith("<|endofchunk|>")
        name = word.text.removeprefix(" ").removesuffix("<|endofchunk|>")
        stream.append((concept[medium.frames[0].key], name, word.learn))
    return stream


# ---------------------------------------------------------------------------- easy-VQA


def test_easy_vqa_packs_questions_of_different_training_images(easy_vqa: Path) -> None:
    source = EasyVQASource(EasyVQASourceConfig(pairs=3), seed=0, folder=easy_vqa)
    true = {(q.image_id, q.question, q.answer) for q in load_questions(easy_vqa, "train")}
    for index in range(20):
        segments = source.sequence(index).segments
        assert len(segments) == 9
        images = [medium.frames[0].key for medium in source.sequence(index).media]
        assert len(set(images)) == 3
        for position, key in enumerate(images):
            question, answer = segments[3 * position + 1 : 3 * position + 3]
            assert isinstance(question, Text) and isinstance(answer, Text)
            assert not question.learn and answer.learn
            split, image_id = key.split("/")[1:]
            text = answer.text.removeprefix(" ").removesuffix("<|endofchunk|>")
            assert split == "train" and (int(image_id), question.text, text) in true
    assert {image.key for image in source.images()} == {f"easy_vqa/train/{i}" for i in range(5)}


@pytest.mark.parametrize(("split", "mark"), [("train", 5), ("test", 4)])
def test_an_image_is_the_one_of_its_split_and_number(easy_vqa: Path, split: str, mark: int) -> None:
    """The fixture's images are coloured by both."""
    image = image_ref(easy_vqa, split, 3)
    assert image.key == f"easy_vqa/{split}/3"
    assert image.open().getpixel((0, 0)) == (3, mark, 0)


def test_sequences_show_the_training_images_they_ask_about(easy_vqa: Path) -> None:
    source = EasyVQASource(EasyVQASourceConfig(pairs=3), seed=0, folder=easy_vqa)
    asked = {q.question: q.image_id for q in load_questions(easy_vqa, "train")}
    segments = source.sequence(0).segments
    for medium, question in zip(segments[::3], segments[1::3], strict=True):
        assert isinstance(medium, Media) and isinstance(question, Text)
        assert medium.frames[0].open().getpixel((0, 0)) == (asked[question.text], 5, 0)


def test_several_questions_follow_one_image(easy_vqa: Path) -> None:
    config = EasyVQASourceConfig(pairs=2, questions_per_image=5, learn_all_text=True)
    segments = EasyVQASource(config, seed=0, folder=easy_vqa).sequence(0).segments
    kinds = "".join("I" if isinstance(s, Media) else "L" if s.learn else "t" for s in segments)
    assert kinds == "ILLLLILLLL"  # two questions an image is all there are
    assert len({s.text for s in segments[1:4:2] if isinstance(s, Text)}) == 2


def test_a_share_of_the_images_is_shown_blank_with_its_questions_as_they_are(
    easy_vqa: Path,
) -> None:
    source = EasyVQASource(EasyVQASourceConfig(pairs=3, blank_rate=0.25), 0, easy_vqa)
    true = {(q.question, q.answer) for q in load_questions(easy_vqa, "train")}
    shown: Counter[bool] = Counter()
    for index in range(400):
        segments = source.sequence(index).segments
        shown.update(medium.frames == (BLANK,) for medium in source.sequence(index).media)
        for question, answer in zip(segments[1::3], segments[2::3], strict=True):
            assert isinstance(question, Text) and isinstance(answer, Text)
            word = answer.text.removeprefix(" ").removesuffix("<|endofchunk|>")
            assert (question.text, word) in true
    assert 0.2 < shown[True] / 1200 < 0.3  # 4 standard deviations
    assert BLANK in source.images()
    with pytest.raises(ValueError, match="blank_rate: expected in"):
        EasyVQASourceConfig(blank_rate=1.0)


def test_easy_vqa_sequences_are_pure_and_follow_the_seed(easy_vqa: Path) -> None:
    config = EasyVQASourceConfig(pairs=3)
    first, again, other = (EasyVQASource(config, seed, easy_vqa) for seed in (0, 0, 1))
    backwards = [again.sequence(index) for index in reversed(range(10))][::-1]
    assert [first.sequence(index) for index in range(10)] == backwards
    assert [other.sequence(index) for index in range(10)] != backwards
    assert len(set(backwards)) > 5


def test_more_pairs_than_images_and_a_broken_file_are_errors(easy_vqa: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs: expected at most the 5 images of .*, got 6"):
        EasyVQASource(EasyVQASourceConfig(pairs=6), 0, easy_vqa)
    path = easy_vqa / "train" / "questions.json"
    path.write_text(json.dumps([["what?", "no"]]))
    with pytest.raises(ValueError, match=r"questions\.json: expected a list of"):
        load_questions(easy_vqa, "train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"questions\.json"):
        load_questions(easy_vqa, "train")


# ---------------------------------------------------------------------------- binding


def test_a_word_is_learned_once_its_concept_has_appeared() -> None:
    for index in range(50):
        known: set[str] = set()
        for concept, _, learn in _read(_binding().sequence(index)):
            assert learn == (concept in known)
            known.add(concept)


def test_each_concept_has_one_word_and_appears_before_the_last_image() -> None:
    ways = Counter()
    for index in range(200):
        stream = _read(_binding().sequence(index))
        assert len(stream) == 8
        word = {concept: name for concept, name, _ in stream}
        assert all(word[concept] == name for concept, name, _ in stream)
        assert len(set(word.values())) == len(word)
        assert {concept for concept, _, _ in stream[:-1]} == set(word)
        ways[len(word)] += 1
    assert set(ways) == {2, 3} and min(ways.values()) > 60


def test_held_out_words_and_concepts_never_appear() -> None:
    source = _binding()
    streams = [_read(source.sequence(index)) for index in range(200)]
    assert {concept for stream in streams for concept, _, _ in stream} == {"c0", "c1", "c2", "c3"}
    assert {word for stream in streams for _, word, _ in stream} == {"baf", "cof", "dul"}
    images = {image.key for image in source.images()}
    assert images == {v.key for concept in _concepts().seen for v in concept.views}


def test_every_binding_of_word_and_concept_is_as_likely() -> None:
    source = _binding(max_ways=2)
    pairs = Counter()
    for index in range(600):
        pairs.update({(concept, word) for concept, word, _ in _read(source.sequence(index))})
    assert len(pairs) == 12 and min(pairs.values()) > 60 and max(pairs.values()) < 140


def test_a_view_repeats_only_after_all_others_and_never_in_a_row() -> None:
    for index in range(100):
        shown: dict[str, list[str]] = {}
        sequence = _binding(min_ways=2, max_ways=2).sequence(index)
        for (concept, _, _), medium in zip(_read(sequence), sequence.media, strict=True):
            shown.setdefault(concept, []).append(medium.frames[0].key)
        for views in shown.values():
            assert len(set(views[:3])) == min(3, len(views))
            assert all(a != b for a, b in pairwise(views))


def test_the_last_image_cannot_be_told_by_counting() -> None:
    """The last class is uniform whatever came before, so the rarer one is no better a guess."""
    source = _binding(min_ways=2, max_ways=2)
    rarer = total = 0
    for index in range(800):
        *before, last = [concept for concept, _, _ in _read(source.sequence(index))]
        (_, most), (least, fewest) = Counter(before).most_common()
        if most > fewest:
            total += 1
            rarer += last == least
    assert 0.45 < rarer / total < 0.55


def test_binding_sequences_are_pure() -> None:
    first, again = _binding(), _binding()
    backwards = [again.sequence(index) for index in reversed(range(10))][::-1]
    assert [first.sequence(index) for index in range(10)] == backwards
    assert len(set(backwards)) == 10


def test_more_ways_than_concepts_or_words_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most the 4 seen concepts, got 5"):
        _binding(max_ways=5)
    with pytest.raises(ValueError, match="at most the 3 seen words, got 4"):
        _binding(max_ways=4)
