"""How a run that is asked by hand decodes its answers."""

from __future__ import annotations

from flamingo.asking import decoding_of
from flamingo.choices import Protocol
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation_config import EvaluationConfig


def test_an_answer_is_decoded_as_the_evaluation_decodes_questions() -> None:
    ours, theirs = EvaluationConfig(), EvaluationConfig(protocol=Protocol.open_flamingo)
    assert decoding_of(ours) == Decoding(max_new_tokens=10)
    assert decoding_of(theirs) == Decoding(max_new_tokens=5, beams=3)
    changed = EvaluationConfig(beams=4, max_new_tokens=7)
    assert decoding_of(changed) == Decoding(max_new_tokens=7, beams=4)


def test_its_length_can_be_told_otherwise() -> None:
    own = EvaluationConfig(beams=4, max_new_tokens=7)
    assert decoding_of(own, 2) == Decoding(max_new_tokens=2, beams=4)
