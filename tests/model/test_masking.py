"""The masks against literal matrices."""

import torch

from flamingo.choices import MediaVisibility
from flamingo.model.masking import media_mask, media_time, text_time

# a <image> b c <image> d, and the same with left padding and one image
IS_IMAGE = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).bool()


def test_text_time_counts_images_up_to_and_including_the_token():
    assert text_time(IS_IMAGE).tolist() == [[0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1]]


def test_padding_reads_nothing():
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    assert text_time(IS_IMAGE, attention_mask=mask).tolist() == [
        [0, 1, 1, 1, 2, 2],
        [0, 0, 0, 1, 1, 0],
    ]
    whole = torch.cat([torch.ones(2, 4, dtype=torch.long), mask], dim=1)
    assert text_time(IS_IMAGE, torch.tensor([0, 2]), whole)[1].tolist() == [2, 2, 2, 3, 3, 0]


def test_text_time_continues_behind_a_cached_prefix():
    assert text_time(IS_IMAGE, torch.tensor([3, 0])).tolist() == [
        [3, 4, 4, 4, 5, 5],
        [0, 0, 0, 1, 1, 1],
    ]


def test_media_time_is_zero_for_padding():
    assert media_time(torch.tensor([2, 1, 0]), 3).tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 0]]


def test_immediate_mode_sees_the_last_medium_alone():
    mask = media_mask(
        text_time(IS_IMAGE), media_time(torch.tensor([2, 1]), 2), MediaVisibility.immediate
    )
    assert mask.int().tolist() == [
        [[0, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1]],
        [[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [1, 0]],
    ]


def test_all_previous_mode_sees_every_medium_before():
    mask = media_mask(
        text_time(IS_IMAGE), media_time(torch.tensor([2, 1]), 2), MediaVisibility.all_previous
    )
    assert mask.int().tolist() == [
        [[0, 0], [1, 0], [1, 0], [1, 0], [1, 1], [1, 1]],
        [[0, 0], [0, 0], [0, 0], [1, 0], [1, 0], [1, 0]],
    ]
