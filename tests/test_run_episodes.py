"""Predictions as episodes: question and answers that a prompt showed."""

import pytest

from flamingo.evaluation.predictions import Prediction
from flamingo.run_episodes import COLUMNS, episode_table, texts
from tests.comparison.written import predicted

QUESTION = "<image>{question} {answer}<|endofchunk|>"


def earlier(prompt: str, count: int) -> Prediction:
    """As earlier versions wrote it: without its question and what was shown."""
    return predicted(0, "x", prompt=prompt, demonstrations=[str(i) for i in range(count)])


def test_what_was_written_with_a_prediction_is_told_whatever_the_prompt():
    written = predicted(0, "x", shots=2, question="what?", shown=[["a b", "c d"], ["", "e"]])
    assert texts(written, QUESTION) == ("what?", [("a b", "c d"), ("", "e")])
    assert texts(written, None) == texts(written, QUESTION)


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        (
            QUESTION,
            "<image>is it red? no<|endofchunk|><image>what is it? a fire truck<|endofchunk|>"
            "<image>where is it?",
            ("where is it?", [("is it red?", "no"), ("what is it?", "a fire truck")]),
        ),
        (
            "<image>This is a {answer}<|endofchunk|>",
            "<image>This is a dax<|endofchunk|><image>This is a",
            ("", [("", "dax")]),
        ),
        (
            "<image>Question:{question} Short answer:{answer}<|endofchunk|>\n",
            "<image>Question:which one Short answer:the left one<|endofchunk|>\n"
            "Question:and this Short answer:it<|endofchunk|>\n"  # shown without its image
            "<image>Question:how many Short answer:",
            ("how many", [("which one", "the left one"), ("and this", "it")]),
        ),
        (QUESTION, "<image>colour red<|endofchunk|><image>shape", ("shape", [("colour", "red")])),
    ],
)
def test_of_an_earlier_version_the_prompt_is_read_by_its_template(template, prompt, expected):
    assert texts(earlier(prompt, len(expected[1])), template) == expected


def test_what_a_prompt_does_not_tell_is_left_open():
    unclear = "<image>the colour light blue<|endofchunk|><image>the shape"
    assert texts(earlier(unclear, 1), QUESTION) == ("the shape", [(None, None)])
    twice = "<image>red? or blue? red<|endofchunk|><image>what?"
    assert texts(earlier(twice, 1), QUESTION) == ("what?", [(None, None)])
    assert texts(earlier(unclear, 1), None) == (None, [(None, None)])
    other = earlier(unclear, 3)  # a text that holds the token itself
    assert texts(other, QUESTION)[1] == [(None, None)] * 3


def test_the_table_has_a_row_a_prediction_with_its_labels_in_front():
    own = predicted(1, "yes", shots=1, question="is it?", shown=[["was it?", "no"]])
    labels = {"benchmark": "vqa", "condition": "real", "seed": 5}
    frame = episode_table([(labels, own)], {}, ("benchmark", "condition", "seed"))
    assert list(frame.columns) == ["benchmark", "condition", "seed", *COLUMNS[2:]]
    (row,) = frame.to_dict("records")
    assert (row["seed"], row["query"], row["question"]) == (5, "test/1", "is it?")
    assert row["references"] == ("yes",) and row["demonstrations"] == ("train/00",)
    assert row["demonstration_questions"] == ("was it?",)
    assert row["demonstration_answers"] == ("no",)


def test_without_predictions_the_table_is_empty_but_has_its_columns():
    assert list(episode_table([], {}).columns) == list(COLUMNS)
