"""Micro-batches: by number, by tokens, apart by frames, packed."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from flamingo.data.division import Division, budget_bounds, same_frames
from flamingo.data.packing import Rows
from flamingo.testing import synthetic_images
from flamingo.types import Media, TokenizedSequence

IMAGES = synthetic_images(8)
STILL, CLIP = Media((IMAGES[0],)), Media(tuple(IMAGES))


def row(tokens: int, *media: Media, source: int = 0) -> tuple[int, TokenizedSequence]:
    return source, TokenizedSequence((1,) * tokens, (-100,) * tokens, media)


def shape(parts: list[list[Rows]]) -> list[list[list[int]]]:
    """Tokens of each sequence of each row of each micro-batch."""
    return [[[len(s.input_ids) for _, s in own] for own in part] for part in parts]


def drawn(seed: int) -> Rows:
    generator = random.Random(seed)
    media = [(), (STILL,), (STILL, STILL), (CLIP,)]
    count = generator.randint(1, 40)
    return [
        row(generator.randint(1, 30), *generator.choice(media), source=number)
        for number in range(count)
    ]


def test_one_micro_batch_keeps_the_order():
    rows = [row(3, STILL), row(7), row(5, STILL)]
    assert Division()(rows) == [[[own] for own in rows]]
    assert Division()([]) == []


def test_equal_parts_are_of_rows_of_like_length():
    rows = [row(n) for n in (3, 9, 1, 7, 5)]
    assert shape(Division(micro_batches=2)(rows)) == [[[9], [7]], [[5], [3], [1]]]
    assert len(Division(micro_batches=9)(rows)) == 5


def test_a_budget_of_tokens_makes_as_many_parts_as_it_takes():
    rows = [row(n) for n in (3, 9, 1, 7, 5, 4)]
    parts = Division(micro_batch_tokens=14)(rows)
    assert shape(parts) == [[[9]], [[7], [5]], [[4], [3], [1]]]


@pytest.mark.parametrize("seed", range(30))
def test_no_part_exceeds_the_budget_and_none_could_take_the_next_row(seed):
    generator = random.Random(seed)
    budget = generator.randint(20, 90)
    lengths = sorted((generator.randint(1, 20) for _ in range(50)), reverse=True)
    bounds = budget_bounds(lengths, budget)
    assert bounds[0] == 0 and bounds[-1] == 50
    for start, stop in pairwise(bounds):
        assert (stop - start) * lengths[start] <= budget
        assert stop == 50 or (stop - start + 1) * lengths[start] > budget


def test_a_row_above_the_budget_is_an_error():
    with pytest.raises(ValueError, match=r"training.micro_batch_tokens: .*\(9\), got 8"):
        Division(micro_batch_tokens=8)([row(3), row(9)])


def test_packed_rows_are_divided_as_others_are():
    rows = [row(n) for n in (3, 9, 1, 7, 5, 4)]
    assert shape(Division(packing=10)(rows)) == [[[9, 1], [7, 3], [5, 4]]]
    tokens = Division(packing=10, micro_batch_tokens=20)(rows)
    assert shape(tokens) == [[[9, 1], [7, 3]], [[5, 4]]]
    assert shape(Division(packing=10, micro_batches=3)(rows)) == [[[9, 1]], [[7, 3]], [[5, 4]]]


# ---------------------------------------------------------------------------- frames


def test_clips_and_still_images_are_in_batches_of_their_own():
    rows = [row(3, STILL), row(4, CLIP), row(2), row(5, STILL, STILL), row(6, CLIP)]
    assert same_frames(rows) == [[rows[0], rows[2], rows[3]], [rows[1], rows[4]]]
    assert shape(Division()(rows)) == [[[3], [2], [5]], [[4], [6]]]
    assert shape(Division(packing=10)(rows)) == [[[5, 3, 2]], [[6, 4]]]


def test_text_alone_goes_with_the_shortest_clips_there_are():
    rows = [row(3, CLIP), row(4)]
    assert same_frames(rows) == [rows]
    assert same_frames(rows[1:]) == [rows[1:]]


def test_a_few_clips_make_one_small_part_more():
    rows = [row(3, STILL)] * 9 + [row(3, CLIP)]
    parts = Division(micro_batches=5)(rows)
    assert [len(part) for part in parts] == [1, 2, 2, 2, 2, 1]


def test_media_of_different_lengths_in_one_sequence_are_an_error():
    with pytest.raises(ValueError, match=r"one number of frames .* got \[1, 8\]"):
        Division()([row(3, STILL, CLIP)])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "division",
    [
        Division(micro_batches=3),
        Division(packing=40),
        Division(packing=40, micro_batch_tokens=90),
        Division(micro_batch_tokens=30),
    ],
)
def test_every_sequence_is_in_one_row_with_others_of_its_frames(seed, division):
    rows = drawn(seed)
    parts = division(rows)
    sources = [source for part in parts for own in part for source, _ in own]
    assert sorted(sources) == list(range(len(rows)))
    for part in parts:
        assert len({len(m.frames) for own in part for _, s in own for m in s.media}) <= 1
    assert division(rows) == parts
