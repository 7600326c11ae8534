"""VQA accuracy against the official functions' output, row by row."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flamingo.evaluation.metrics.vqa import Mode, normalize_answer, vqa_accuracy

from . import fixtures

ACCURACY = fixtures.read("vqa_accuracy.json")


@pytest.mark.parametrize(
    "row", fixtures.read("vqa_normalization.json"), ids=lambda row: repr(row["raw"])
)
def test_normalisation_is_the_official_one(row):
    assert normalize_answer(row["raw"]) == row["normalized"]


@pytest.mark.parametrize("row", ACCURACY["rows"], ids=lambda row: row["question_id"])
def test_accuracy_is_the_official_one(row):
    assert 100 * vqa_accuracy(row["prediction"], row["answers"]) == row["accuracy"]


def test_the_overall_accuracy_is_the_official_one():
    scores = [vqa_accuracy(row["prediction"], row["answers"]) for row in ACCURACY["rows"]]
    assert round(100 * sum(scores) / len(scores), 2) == ACCURACY["overall"]


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_annotators(matches, expected):
    answers = ["red"] * matches + [f"other {index}" for index in range(10 - matches)]
    assert vqa_accuracy("red", answers) == expected


@pytest.mark.parametrize("count", range(1, 13))
def test_any_number_of_annotators_leaves_out_each_in_turn(count):
    for matches in range(count + 1):
        answers = ["yes"] * matches + ["no"] * (count - matches)
        others = [answers[:index] + answers[index + 1 :] for index in range(count)]
        expected = sum(min(own.count("yes") / 3, 1) for own in others) / count
        for mode in Mode:
            assert vqa_accuracy("yes", answers, mode) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_are_normalised_in_one_mode_only():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes.", ["yes"] * 10, mode="always") == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa_accuracy(" yes\n", ["yes"] * 10) == 1.0  # white space goes in both


def test_words_become_digits_and_articles_go():
    assert normalize_answer("None of the Ten") == "0 of 10"
    assert normalize_answer("eleven") == "eleven"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hes", "he's"), ("shes", "shes"), ("couldntve", "couldntve"), ("wed", "wed"),
        ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("shed've", "she'd've"),
        ("shed", "shed"), ("lets", "lets"), ("its", "its"), ("somebody'd", "somebodyd"),
        ("somebodyd", "somebodyd"), ("y'alld've", "y'all'd've"), ("whove", "who've"),
        ("id've", "id've"), ("'ows'at", "'ow's'at"),
    ],
)  # fmt: skip
def test_contractions_of_the_official_table(text, expected):
    assert normalize_answer(text) == expected


def test_a_mark_is_judged_by_the_text_as_it_came():
    # The slash leaves a space behind the comma, which does not count: commas become spaces.
    assert normalize_answer("p,/q r,s") == "p q r s"


def test_only_the_first_32_periods_go():
    assert normalize_answer("." * 40 + "x") == "." * 8 + "x"


def test_what_is_no_question_is_an_error():
    with pytest.raises(ValueError, match="answers: expected one of each annotator, got none"):
        vqa_accuracy("yes", [])
    with pytest.raises(ValueError, match=r"mode: expected one of \['official', 'always'\], got"):
        vqa_accuracy("yes", ["yes"] * 10, mode="allways")


def test_the_metrics_are_imported_without_torch():
    names = ("vqa", "caption", "classification", "calibration")
    imports = "".join(f"import flamingo.evaluation.metrics.{name}\n" for name in names)
    code = f"import sys\n{imports}assert not {{'torch', 'transformers'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
