"""What generation settings of other harnesses' tasks mean."""

from __future__ import annotations

import pytest

from flamingo.evaluation.decoding import Decoding
from flamingo.interop.options import Options


@pytest.mark.parametrize(
    ("given", "decoding", "temperature"),
    [
        ({}, Decoding(max_new_tokens=99), 0),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1},
         Decoding(max_new_tokens=16), 0),
        ({"num_beams": 3}, Decoding(max_new_tokens=99, beams=3, length_penalty=1.0), 0),
        ({"num_beams": 3, "length_penalty": 0}, Decoding(max_new_tokens=99, beams=3), 0),
        ({"temperature": 0.7}, Decoding(max_new_tokens=99), 0.7),
        ({"do_sample": True}, Decoding(max_new_tokens=99), 1.0),
        ({"do_sample": True, "temperature": 0}, Decoding(max_new_tokens=99), 0),
        ({"do_sample": False, "temperature": 1}, Decoding(max_new_tokens=99), 0),
        ({"image_aspect_ratio": "original"}, Decoding(max_new_tokens=99), 0),
    ],
)  # fmt: skip
def test_settings_of_tasks_become_ours(given, decoding, temperature) -> None:
    options = Options.of(given, 99)
    assert (options.decoding, options.temperature) == (decoding, temperature)


def test_what_changes_nothing_about_a_greedy_answer_makes_no_other_options() -> None:
    assert Options.of({"top_p": 0.9, "temperature": 0}, 9) == Options.of({}, 9)
    assert Options.of({"top_p": 0.9, "do_sample": True}, 9).top_p == 0.9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"num_beams": 2, "do_sample": True}, "num_beams: expected 1 to sample"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_cannot_be_followed_are_errors(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        Options.of(given, 99)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (None, "a red\n\ncar, ok"),
        ("\n\n", "a red"),
        (["car", "red", ""], "a"),
        ([], "a red\n\ncar, ok"),
    ],
)
def test_an_answer_ends_before_the_first_stop_in_it(until, expected) -> None:
    assert Options.of({"until": until}, 9).cut(" a red\n\ncar, ok ") == expected


def test_two_different_options_have_two_descriptions() -> None:
    given = [{}, {"until": "x"}, {"num_beams": 2}, {"temperature": 1.0}, {"temperature": 0.5},
             {"temperature": 0.5, "top_k": 3}, {"max_new_tokens": 3}]  # fmt: skip
    assert len({Options.of(own, 9).description for own in given}) == len(given)
