"""Each control takes away one thing, and leaves chance."""

from __future__ import annotations

from collections import Counter

import pytest

from flamingo.choices import Condition
from flamingo.evaluation.demonstrations import generator
from flamingo.evaluation.perturbations import BLANK, blank_query, perturb
from flamingo.evaluation.prompts import Episode, Item
from flamingo.testing import synthetic_images
from flamingo.types import Media

IMAGES = synthetic_images(24)


def item(name: str, answer: str, index: int = 0) -> Item:
    return Item(name, Media((IMAGES[index],)), "", answer)


def episode(query: str, ways: int, shots: int) -> tuple[Episode, list[int]]:
    """A binding episode drawn as the benchmark does, and the class of each demonstration."""
    draw = generator("test", query, ways)
    words = draw.sample(["dax", "wug", "blick", "zup", "fep"], ways)
    target = draw.randrange(ways)
    classes = [c for _ in range(shots) for c in draw.sample(range(ways), ways)]
    demonstrations = tuple(
        item(f"{query}/{position}", words[c], c) for position, c in enumerate(classes)
    )
    query_item = item(query, words[target], target)
    candidates = tuple(sorted(words))
    return Episode(query_item, demonstrations, shots, candidates), classes


def test_a_blank_query_hides_the_image_alone() -> None:
    before, _ = episode("q", 2, 2)
    after = blank_query(before)
    assert after.query.media.frames == (BLANK,)
    assert after.query.answer == before.query.answer
    assert after.demonstrations == before.demonstrations
    assert len(set(BLANK.open().convert("RGB").getdata())) == 1


def test_shuffling_keeps_images_and_the_multiset_of_answers() -> None:
    before, _ = episode("q", 5, 4)
    after = perturb(before, Condition.shuffled_answers, 0, "b")
    assert after is not None
    assert [d.media for d in after.demonstrations] == [d.media for d in before.demonstrations]
    assert Counter(d.answer for d in after.demonstrations) == dict.fromkeys(before.candidates, 4)
    assert after.query == before.query
    assert after == perturb(before, Condition.shuffled_answers, 0, "b")
    assert after != perturb(before, Condition.shuffled_answers, 1, "b")


def test_nothing_to_shuffle_gives_no_episode() -> None:
    none, _ = episode("q", 2, 0)
    assert perturb(none, Condition.shuffled_answers, 0, "b") is None


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (2, 4), (5, 1), (5, 2)])
def test_a_perfect_reader_of_shuffled_demonstrations_is_at_chance(ways: int, shots: int) -> None:
    """It votes with the words shown beside the images of the query's class."""
    right = 0.0
    for number in range(3000):
        before, classes = episode(f"{number}", ways, shots)
        shuffled = perturb(before, Condition.shuffled_answers, 0, "b")
        assert shuffled is not None
        target = classes[[d.answer for d in before.demonstrations].index(before.query.answer)]
        shown = Counter(
            demonstration.answer
            for demonstration, c in zip(shuffled.demonstrations, classes, strict=True)
            if c == target
        )
        best = [word for word, count in shown.items() if count == max(shown.values())]
        right += (before.query.answer in best) / len(best)
    assert right / 3000 == pytest.approx(1 / ways, abs=4 * (0.25 / 3000) ** 0.5)


def test_a_perfect_reader_without_the_query_image_is_at_chance() -> None:
    """It answers with the last word of the context, or any other rule that sees no image."""
    last = [
        (e := episode(str(n), 5, 2)[0]).demonstrations[-1].answer == e.query.answer
        for n in range(3000)
    ]
    assert sum(last) / 3000 == pytest.approx(0.2, abs=0.03)
