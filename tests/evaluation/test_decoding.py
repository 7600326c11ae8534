"""A decoding's description enters the keys of predictions."""

from __future__ import annotations

import pytest

from flamingo.evaluation.decoding import Decoding


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        (Decoding(), "greedy, at most 5 tokens"),
        (Decoding(max_new_tokens=20), "greedy, at most 20 tokens"),
        (Decoding(beams=3), "3 beams, length penalty 0.0, at most 5 tokens"),
        (Decoding(beams=3, length_penalty=-0.0), "3 beams, length penalty 0.0, at most 5 tokens"),
        (
            Decoding(beams=2, length_penalty=-0.25, max_new_tokens=10),
            "2 beams, length penalty -0.25, at most 10 tokens",
        ),
        (
            Decoding(normalize_by_length=True, end_of_chunk=False),
            "greedy, at most 5 tokens, candidates by mean, candidates without end of chunk",
        ),
    ],
)
def test_the_description_of_a_decoding_stays_as_it_is(decoding, expected) -> None:
    assert decoding.description == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "decoding.max_new_tokens: expected at least 1, got 0"),
        ({"beams": 0}, "decoding.beams: expected at least 1, got 0"),
        ({"beams": 2, "length_penalty": float("nan")}, "expected a finite number, got nan"),
        ({"length_penalty": 1.0}, r"expected 0 without beam search \(beams=1\), got 1.0"),
    ],
)
def test_impossible_decodings_are_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**options)
