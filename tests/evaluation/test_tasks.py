"""Protocols: prompts, what counts of an output, and how answers are read."""

from __future__ import annotations

import pytest

from flamingo.choices import Metric, Protocol
from flamingo.evaluation.prompts import Episode, Item, prompt, prompt_text
from flamingo.evaluation.tasks import Kind, adapted, caption, most_frequent, short_answer, task
from flamingo.evaluation_config import EnsembleConfig, EvaluationConfig
from flamingo.testing import synthetic_images
from flamingo.types import Media, Text

IMAGES = [Media((image,)) for image in synthetic_images(3)]


def episode(*pairs: tuple[str, str]) -> Episode:
    *shown, query = [
        Item(str(i), medium, question, answer)
        for i, (medium, (question, answer)) in enumerate(zip(IMAGES, pairs, strict=True))
    ]
    return Episode(query=query, demonstrations=tuple(shown), shots=len(shown))


@pytest.mark.parametrize(
    ("kind", "pairs", "expected"),
    [
        (
            Kind.vqa,
            [("How many?", "2"), ("What is it?", "a cat"), ("Is it red?", "")],
            "<image>Question:How many? Short answer:2<|endofchunk|>\n"
            "<image>Question:What is it? Short answer:a cat<|endofchunk|>\n"
            "<image>Question:Is it red? Short answer:",
        ),
        (
            Kind.caption,
            [("", "A dog runs."), ("", "Two cats."), ("", "")],
            "<image>Output:A dog runs.<|endofchunk|>\n"
            "<image>Output:Two cats.<|endofchunk|>\n<image>Output:",
        ),
        (
            Kind.hateful_memes,
            [("lol", "no"), ("{x}", "yes"), ("hm", "")],
            "<image>is an image with: 'lol' written on it. Is it hateful? Answer:no<|endofchunk|>"
            "<image>is an image with: '{x}' written on it. Is it hateful? Answer:yes<|endofchunk|>"
            "<image>is an image with: 'hm' written on it. Is it hateful? Answer:",
        ),
        (
            Kind.classification,
            [("", "tench"), ("", "goldfish"), ("", "")],
            "<image>Output:tench<|endofchunk|><image>Output:goldfish<|endofchunk|><image>Output:",
        ),
    ],
)
def test_open_flamingo_prompts_are_its_own(kind: Kind, pairs, expected: str) -> None:
    template = task(kind, Protocol.open_flamingo).template
    assert prompt_text(prompt(episode(*pairs), template)) == expected


def test_open_flamingo_tokenises_all_between_two_images_as_one_text() -> None:
    template = task(Kind.vqa, Protocol.open_flamingo).template
    segments = prompt(episode(("a?", "b"), ("c?", "d"), ("e?", "")), template).segments
    texts = [segment.text for segment in segments if isinstance(segment, Text)]
    assert len(texts) == 3
    assert texts[0] == "Question:a? Short answer:b<|endofchunk|>\n"


def test_ours_tokenises_questions_and_answers_as_in_training() -> None:
    template = task(Kind.vqa, Protocol.native).template
    segments = prompt(episode(("a?", "b"), ("c?", "d"), ("e?", "")), template).segments
    texts = [segment.text for segment in segments if isinstance(segment, Text)]
    assert texts == ["a?", " b<|endofchunk|>", "c?", " d<|endofchunk|>", "e?"]


def test_open_flamingo_decoding_by_benchmark() -> None:
    for kind, tokens in ((Kind.vqa, 5), (Kind.ok_vqa, 5), (Kind.text_vqa, 10), (Kind.caption, 20)):
        decoding = task(kind, Protocol.open_flamingo).decoding
        assert (decoding.beams, decoding.length_penalty) == (3, 0.0)
        assert decoding.max_new_tokens == tokens
    classes = task(Kind.classification, Protocol.open_flamingo)
    assert classes.decoding.normalize_by_length and not classes.decoding.end_of_chunk
    assert classes.ensemble.permutations == 6
    memes = task(Kind.hateful_memes, Protocol.open_flamingo)
    assert not memes.decoding.normalize_by_length and not memes.decoding.end_of_chunk
    assert memes.ensemble.permutations == 6


def test_open_flamingo_shows_the_first_answer_and_ours_the_most_frequent() -> None:
    for kind in (Kind.vqa, Kind.text_vqa, Kind.ok_vqa):
        assert task(kind, Protocol.open_flamingo).shown(["a", "b", "b"]) == "a"
        assert task(kind, Protocol.native).shown(["a", "b", "b"]) == "b"


@pytest.mark.parametrize(
    ("kind", "output", "counts"),
    [
        (Kind.vqa, " blue, red Question: x", "blue"),
        (Kind.text_vqa, " blue, red Question: x", "blue"),
        (Kind.ok_vqa, " blue, red Question: x", "blue, red"),  # not cut at the comma there
        (Kind.caption, ' a "red" bus Output: x', "a red bus"),
    ],
)
def test_open_flamingo_cuts_answers_by_benchmark(kind: Kind, output: str, counts: str) -> None:
    assert task(kind, Protocol.open_flamingo).clean(output) == counts
    assert task(kind, Protocol.native).clean(output) == output.strip()


def test_metrics_by_protocol() -> None:
    expected = {
        (Kind.vqa, Protocol.native): Metric.vqa_accuracy,
        (Kind.vqa, Protocol.open_flamingo): Metric.vqa_accuracy_always,
        (Kind.ok_vqa, Protocol.open_flamingo): Metric.ok_vqa_accuracy_always,
        (Kind.caption, Protocol.open_flamingo): Metric.cider,
        (Kind.hateful_memes, Protocol.open_flamingo): Metric.roc_auc,
    }
    for (kind, protocol), metric in expected.items():
        assert task(kind, protocol).metric is metric
    assert task(Kind.vqa, Protocol.native, Metric.exact_match).metric is Metric.exact_match


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (" blue", "blue"),
        ("blue, red", "blue"),
        ("blue Question: what", "blue"),
        ("yes Short answer:", "yes"),
        ("1,000", "1,000"),
        ("Answer", ""),
    ],
)
def test_what_counts_of_a_short_answer(output: str, answer: str) -> None:
    assert short_answer(output) == answer


def test_what_counts_of_a_caption() -> None:
    assert caption(' A "red" bus. Output: a dog') == "A red bus."


def test_the_most_frequent_reference_is_shown_the_first_of_several() -> None:
    assert most_frequent(["red", "blue", "blue", "red", "green"]) == "red"
    assert most_frequent(["red", "blue", "blue"]) == "blue"


def test_the_configuration_changes_beams_and_normalisation() -> None:
    own = task(Kind.classification, Protocol.native)
    changed = adapted(own, EvaluationConfig(beams=2, normalize_by_length=True)).decoding
    assert (changed.beams, changed.normalize_by_length) == (2, True)
    theirs = task(Kind.classification, Protocol.open_flamingo)
    plain = adapted(theirs, EvaluationConfig(beams=1, normalize_by_length=False)).decoding
    assert (plain.beams, plain.normalize_by_length) == (1, False)
    with pytest.raises(ValueError, match="evaluation.beams: expected >= 1 or null, got 0"):
        EvaluationConfig(beams=0)


def test_the_configuration_changes_length_and_ensemble_alone() -> None:
    own = task(Kind.caption, Protocol.open_flamingo)
    ensemble = EnsembleConfig(permutations=2, templates=["Q: {question} A: {answer}"])
    config = EvaluationConfig(max_new_tokens=7, ensemble=ensemble)
    changed = adapted(own, config)
    assert changed.decoding.max_new_tokens == 7
    assert changed.decoding.beams == 3
    (template,) = changed.ensemble.templates
    assert (template.question, template.answer) == ("Q: {question} A:", " {answer}")
    assert (template.separator, template.whole) == ("\n", True)
    assert changed.ensemble.permutations == 2
    assert changed.description != own.description
    assert adapted(own, EvaluationConfig()) == own


@pytest.mark.parametrize("template", ["{question}", "{answer}", "{question} {answer}."])
def test_a_template_needs_both_fields_the_answer_last(template: str) -> None:
    with pytest.raises(ValueError, match="evaluation.ensemble.templates"):
        EnsembleConfig(templates=[template])
