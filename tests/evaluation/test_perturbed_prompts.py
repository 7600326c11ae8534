"""What each condition leaves of one literal episode."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flamingo.choices import Condition
from flamingo.evaluation.draws import generator, permutation
from flamingo.evaluation.image_perturbations import BLUR
from flamingo.evaluation.perturbations import Borrowed, perturb
from flamingo.evaluation.prompts import (
    Episode,
    Item,
    Template,
    prompt,
    prompt_hash,
    prompt_text,
)
from flamingo.types import IMAGE_TOKEN, ImageRef, Media

TEMPLATE = Template("Question:{question} Short answer:", "{answer}")


def picture(grey: int) -> Image.Image:
    image = Image.new("RGB", (20, 40), "white")
    image.paste((grey, grey, grey), (0, 0, 10, 40))
    return image


def medium(key: str) -> Media:
    return Media((ImageRef(key, lambda: picture(0)),))


def item(name: str, question: str, answer: str) -> Item:
    return Item(name, medium(f"{name}.png"), question, answer)


EPISODE = Episode(
    query=item("q", "who?", "no one"),
    demonstrations=(
        item("a", "is it?", "yes"),
        item("b", "how many?", "2"),
        item("c", "is he?", "no"),
    ),
    shots=3,
    group="who",
    cluster="q.png",
)
BORROWED = Borrowed(
    media=[medium(f"{name}.png") for name in "abcqxyz"], answers=["2", "3", "no", "blue", "2"]
)
REAL = (
    "[a.png]Question:is it? Short answer:yes<|endofchunk|>"
    "[b.png]Question:how many? Short answer:2<|endofchunk|>"
    "[c.png]Question:is he? Short answer:no<|endofchunk|>"
    "[q.png]Question:who? Short answer:"
)
GREY = "blank/grey128"


def changed(condition: Condition, episode: Episode = EPISODE, seed: int = 0) -> Episode:
    result = perturb(episode, condition, seed, "b", BORROWED)
    assert result is not None
    return result


def shown(episode: Episode) -> str:
    """The prompt with the key of each image in place of its token."""
    sequence = prompt(episode, TEMPLATE)
    text = prompt_text(sequence)
    assert text.count(IMAGE_TOKEN) == len(sequence.media)
    for one in sequence.media:
        text = text.replace(IMAGE_TOKEN, f"[{one.frames[0].key}]", 1)
    return text


def with_images(a: str, b: str, c: str, q: str) -> str:
    """The real prompt with other images; none for an empty key."""
    image = {name: f"[{key}]" if key else "" for name, key in dict(a=a, b=b, c=c, q=q).items()}
    return (
        f"{image['a']}Question:is it? Short answer:yes<|endofchunk|>"
        f"{image['b']}Question:how many? Short answer:2<|endofchunk|>"
        f"{image['c']}Question:is he? Short answer:no<|endofchunk|>"
        f"{image['q']}Question:who? Short answer:"
    )


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Condition.real, REAL),
        (Condition.blank_query, with_images("a.png", "b.png", "c.png", GREY)),
        (Condition.blank_demonstrations, with_images(GREY, GREY, GREY, "q.png")),
        (Condition.drop_query, with_images("a.png", "b.png", "c.png", "")),
        (Condition.drop_demonstrations, with_images("", "", "", "q.png")),
        (Condition.blur_query, with_images("a.png", "b.png", "c.png", "blur/0.1/q.png")),
        (
            Condition.blur_demonstrations,
            with_images("blur/0.1/a.png", "blur/0.1/b.png", "blur/0.1/c.png", "q.png"),
        ),
        (Condition.swap_query, with_images("a.png", "b.png", "c.png", "x.png")),
        (Condition.swap_demonstrations, with_images("y.png", "c.png", "a.png", "q.png")),
        (
            Condition.flipped_answers,
            "[a.png]Question:is it? Short answer:no<|endofchunk|>"
            "[b.png]Question:how many? Short answer:3<|endofchunk|>"
            "[c.png]Question:is he? Short answer:yes<|endofchunk|>"
            "[q.png]Question:who? Short answer:",
        ),
        (
            Condition.reversed_order,
            "[c.png]Question:is he? Short answer:no<|endofchunk|>"
            "[b.png]Question:how many? Short answer:2<|endofchunk|>"
            "[a.png]Question:is it? Short answer:yes<|endofchunk|>"
            "[q.png]Question:who? Short answer:",
        ),
        (
            Condition.text_only_zero_shot,
            "Question:how many? Short answer:2<|endofchunk|>"
            "Question:is he? Short answer:no<|endofchunk|>"
            "[q.png]Question:who? Short answer:",
        ),
        (
            Condition.swapped_questions,
            "[a.png]Question:is he? Short answer:yes<|endofchunk|>"
            "[b.png]Question:is it? Short answer:2<|endofchunk|>"
            "[c.png]Question:how many? Short answer:no<|endofchunk|>"
            "[q.png]Question:who? Short answer:",
        ),
        (
            Condition.shuffled_answers,
            "[a.png]Question:is it? Short answer:no<|endofchunk|>"
            "[b.png]Question:how many? Short answer:2<|endofchunk|>"
            "[c.png]Question:is he? Short answer:yes<|endofchunk|>"
            "[q.png]Question:who? Short answer:",
        ),
    ],
)
def test_the_literal_prompt_of_each_condition(condition: Condition, expected: str) -> None:
    assert shown(changed(condition)) == expected


def test_the_hash_of_an_episode_with_images_is_what_it_always_was() -> None:
    assert prompt_hash(prompt(EPISODE, TEMPLATE), ()) == LITERAL_HASH
    hashes = {prompt_hash(prompt(changed(c), TEMPLATE), ()) for c in Condition}
    assert len(hashes) == len(Condition)


LITERAL_HASH = "9bdd4a76124536e0"


@pytest.mark.parametrize("condition", Condition)
def test_a_condition_changes_nothing_else(condition: Condition) -> None:
    after = changed(condition)
    assert after == changed(condition), "the same every time"
    assert (after.candidates, after.group, after.cluster) == ((), "who", "q.png")
    assert after.query.id == "q"
    assert (after.query.question, after.query.answer) == ("who?", "no one")
    before = {d.id: d for d in EPISODE.demonstrations}
    answers = condition in (Condition.shuffled_answers, Condition.flipped_answers)
    for own in after.demonstrations:
        old = before[own.id]
        if condition is not Condition.swapped_questions:
            assert own.question == old.question
        if not answers:
            assert own.answer == old.answer
        if "demonstrations" not in condition.value and after.shots:
            assert own.media == old.media
    if "query" not in condition.value:
        assert after.query == EPISODE.query


@pytest.mark.parametrize(
    "condition",
    [
        c
        for c in Condition
        if c
        not in (  # these compare demonstrations with one another
            Condition.shuffled_answers,
            Condition.swapped_questions,
            Condition.reversed_order,
            Condition.text_only_zero_shot,
        )
    ],
)
def test_a_perturbed_shorter_context_is_the_last_of_the_longer(condition: Condition) -> None:
    two = replace(EPISODE, demonstrations=EPISODE.demonstrations[-2:], shots=2)
    longer, shorter = changed(condition), changed(condition, two)
    assert shorter.demonstrations == longer.demonstrations[-2:]
    assert shorter.query == longer.query


# ---------------------------------------------------------------------------- images


def test_swapped_images_are_never_ones_own_nor_that_of_the_query() -> None:
    own = [m.frames[0].key for m in BORROWED.media]
    seen: dict[str, set[str]] = {name: set() for name in "abcq"}
    for seed in range(200):
        query = changed(Condition.swap_query, seed=seed).query.media
        assert query is not None
        seen["q"].add(query.frames[0].key)
        for after in changed(Condition.swap_demonstrations, seed=seed).demonstrations:
            assert after.media is not None
            seen[after.id].add(after.media.frames[0].key)
    for name, keys in seen.items():
        assert keys == set(own) - {f"{name}.png", "q.png"}


def test_a_swap_needs_another_medium_with_as_many_frames() -> None:
    clip = Media(medium("x.png").frames * 2)
    for media in ([], [medium("q.png")], [clip]):
        with pytest.raises(ValueError, match="donors: expected another medium of 1 frames for 'q'"):
            perturb(EPISODE, Condition.swap_query, 0, "b", Borrowed(media))


def test_a_blur_keeps_the_size_and_the_mean_and_removes_edges() -> None:
    reference = ImageRef("half", picture_of_halves)
    asked = replace(EPISODE, query=replace(EPISODE.query, media=Media((reference, reference))))
    after = changed(Condition.blur_query, asked).query.media
    assert after is not None
    assert [frame.key for frame in after.frames] == [f"blur/{BLUR}/half"] * 2
    sharp = np.asarray(reference.open(), dtype=float)
    blurred = np.asarray(pickle.loads(pickle.dumps(after.frames[0].open))(), dtype=float)
    assert blurred.shape == sharp.shape
    assert abs(blurred.mean() - sharp.mean()) < 3
    assert np.abs(np.diff(sharp, axis=1)).max() == 255
    # A step through a Gaussian of 2 pixels rises by at most 255 / (2 sqrt(2 pi)) = 51 a pixel.
    assert 30 < np.abs(np.diff(blurred, axis=1)).max() < 60


def picture_of_halves() -> Image.Image:
    return picture(0)


def test_what_has_no_images_cannot_lose_them() -> None:
    text = replace(
        EPISODE,
        query=replace(EPISODE.query, media=None),
        demonstrations=tuple(replace(d, media=None) for d in EPISODE.demonstrations),
    )
    for operation in ("blank", "swap", "drop", "blur"):
        for where in ("query", "demonstrations"):
            assert perturb(text, Condition[f"{operation}_{where}"], 0, "b", BORROWED) is None


def test_conditions_on_demonstrations_need_some() -> None:
    for count, needing in (
        (0, "blank_demonstrations swap_demonstrations drop_demonstrations blur_demonstrations"),
        (0, "flipped_answers"),
        (1, "shuffled_answers swapped_questions reversed_order text_only_zero_shot"),
    ):
        few = replace(EPISODE, demonstrations=EPISODE.demonstrations[:count], shots=count)
        for name in needing.split():
            assert perturb(few, Condition[name], 0, "b", BORROWED) is None


# ---------------------------------------------------------------------------- text


def test_the_text_only_zero_shot_counts_as_none_and_is_not_the_true_one() -> None:
    after = changed(Condition.text_only_zero_shot)
    assert after.shots == 0
    assert [d.id for d in after.demonstrations] == ["b", "c"]
    true_zero = replace(EPISODE, demonstrations=(), shots=0)
    assert shown(true_zero) == "[q.png]Question:who? Short answer:"


def test_a_flip_goes_to_the_next_candidate_and_around() -> None:
    bound = replace(EPISODE, candidates=("dax", "wug", "zup"))
    words = ["zup", "dax", "wug"]
    shown_words = tuple(
        replace(d, answer=w) for d, w in zip(EPISODE.demonstrations, words, strict=True)
    )
    after = changed(Condition.flipped_answers, replace(bound, demonstrations=shown_words))
    assert [d.answer for d in after.demonstrations] == ["dax", "wug", "zup"]


def test_a_flip_goes_to_the_next_label_even_of_an_unknown_answer() -> None:
    assert BORROWED.labels == ("2", "3", "blue", "no")
    answers = {"2": "3", "no": "yes", "No": "Yes", "NO": "YES", "3": "blue", "blue": "no"}
    answers |= {"zebra": "2", "apple": "blue"}
    for answer, expected in answers.items():
        one = replace(EPISODE.demonstrations[0], answer=answer)
        after = changed(Condition.flipped_answers, replace(EPISODE, demonstrations=(one,)))
        assert after.demonstrations[0].answer == expected
    with pytest.raises(ValueError, match="labels: expected an answer other than '2' for .* 'b'"):
        perturb(EPISODE, Condition.flipped_answers, 0, "b")
    with pytest.raises(ValueError, match="got 0 candidates and 1 labels without one"):
        perturb(EPISODE, Condition.flipped_answers, 0, "b", Borrowed(answers=["2", "2"]))


def test_every_question_is_swapped_with_another_one() -> None:
    seen = set()
    for seed in range(50):
        after = changed(Condition.swapped_questions, seed=seed)
        questions = tuple(d.question for d in after.demonstrations)
        assert sorted(questions) == sorted(d.question for d in EPISODE.demonstrations)
        for own, old in zip(after.demonstrations, EPISODE.demonstrations, strict=True):
            assert own.question != old.question
        seen.add(questions)
    assert len(seen) == 2, "both permutations of three without a fixed point"


def test_a_permutation_drawn_one_by_one_is_uniform() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for number in range(6000):
        drawn = tuple(permutation(generator("p", number), 3))
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 1000) < 5 * (6000 / 6 * 5 / 6) ** 0.5 for count in counts.values())
    assert sorted(permutation(generator("p"), 50)) == list(range(50))
    assert list(permutation(generator("p"), 0)) == []
