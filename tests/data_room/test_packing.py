"""Groups of documents against properties and an exhaustive search; a packed batch, literally."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from flamingo.data.collate import collate
from flamingo.data.packing import collate_packed, first_fit_decreasing
from flamingo.testing import synthetic_images
from flamingo.training.loss import keep_mask, learned_tokens
from flamingo.types import Media, TokenizedSequence

A, B, C = (Media((image,)) for image in synthetic_images(3))


def drawn(seed: int, most: int) -> tuple[list[int], int]:
    """Up to ``most`` lengths, and a capacity that holds the longest."""
    generator = random.Random(seed)
    capacity = generator.randint(4, 40)
    return [generator.randint(1, capacity) for _ in range(generator.randint(1, most))], capacity


def fewest_groups(lengths: list[int], capacity: int) -> int:
    """By trying every place for every length."""
    best = len(lengths)

    def place(index: int, sums: list[int]) -> None:
        nonlocal best
        if len(sums) >= best:
            return
        if index == len(lengths):
            best = len(sums)
            return
        for group, total in enumerate(sums):
            if total + lengths[index] <= capacity:
                place(index + 1, [*sums[:group], total + lengths[index], *sums[group + 1 :]])
        place(index + 1, [*sums, lengths[index]])

    place(0, [])
    return best


def test_the_longest_goes_first_and_into_the_first_group_with_room():
    assert first_fit_decreasing([3, 7, 2, 5, 3, 4], 10) == [[1, 0], [3, 5], [4, 2]]
    assert first_fit_decreasing([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]
    assert first_fit_decreasing([8], 8) == [[0]]
    assert first_fit_decreasing([], 8) == []


@pytest.mark.parametrize("seed", range(50))
def test_each_is_in_one_group_and_no_group_overflows(seed):
    lengths, capacity = drawn(seed, most=60)
    groups = first_fit_decreasing(lengths, capacity)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= capacity for group in groups)
    # First fit opens a group only for what no earlier one had room for.
    for later, group in enumerate(groups):
        for earlier in groups[:later]:
            before = sum(
                lengths[i] for i in earlier if (-lengths[i], i) < (-lengths[group[0]], group[0])
            )
            assert before + lengths[group[0]] > capacity
    assert first_fit_decreasing(lengths, capacity) == groups


@pytest.mark.parametrize("seed", range(40))
def test_there_are_at_most_11_9_of_the_fewest_groups_and_6_9(seed):
    lengths, capacity = drawn(seed, most=9)
    groups = first_fit_decreasing(lengths, capacity)
    assert 9 * len(groups) <= 11 * fewest_groups(lengths, capacity) + 6


def test_a_length_above_the_capacity_is_an_error():
    with pytest.raises(ValueError, match=r"training.packing: .* longest sequence .*\(9\), got 8"):
        first_fit_decreasing([1, 9], 8)


# ---------------------------------------------------------------------------- batches

ROWS = [
    [
        (1, TokenizedSequence((7, 5, 6), (-100, -100, 6), (A,))),
        (0, TokenizedSequence((9, 8), (9, 8), ())),  # its first token: learned, if it were alone
    ],
    [(0, TokenizedSequence((7, 8, 7, 9, 4, 4, 4), (-100, 8, -100, 9, 4, 4, 4), (B, C)))],
]


def numbers(media) -> torch.Tensor:
    """Features (image, frame, 1 patch, 1): each image's number, 1 for the first."""
    return torch.tensor([[[[int(f.key[-1]) + 1.0]] for f in m.frames] for m in media])


def test_documents_stand_side_by_side_each_with_its_number_source_and_media():
    batch = collate_packed(ROWS, partial(collate, pad_id=0, load_media=numbers))
    assert batch.input_ids.tolist() == [[7, 5, 6, 9, 8, 0, 0], [7, 8, 7, 9, 4, 4, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]
    assert batch.labels.tolist() == [
        [-100, -100, 6, -100, 8, -100, -100],
        [-100, 8, -100, 9, 4, 4, 4],
    ]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1, 1], [0] * 7]
    assert batch.source.tolist() == [[1, 1, 1, 0, 0, 0, 0], [0] * 7]
    assert batch.vision_features is not None
    assert batch.vision_features.flatten().tolist() == [1, 0, 2, 3]


def test_what_is_learned_of_packed_documents_is_what_each_teaches_alone():
    batch = collate_packed(ROWS, partial(collate, pad_id=0, load_media=numbers))
    keep = keep_mask(batch.labels)
    counted = [int((keep & (batch.source == source)).sum()) for source in range(2)]
    assert counted == learned_tokens([own for row in ROWS for own in row], 2).tolist() == [6, 1]


def test_rows_of_one_document_each_need_no_numbers():
    rows = [[own] for row in ROWS for own in row]
    batch = collate_packed(rows, partial(collate, pad_id=0, load_media=numbers))
    assert batch.documents is None
    assert batch.source[:, 0].tolist() == [1, 0, 0]
