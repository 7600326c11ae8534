"""OK-VQA's stems against another library's dictionary, and against literal answers."""

from __future__ import annotations

import pytest

from flamingo.evaluation.metrics.vqa import stem_answer, vqa_accuracy

from . import fixtures

INFLECTIONS = fixtures.read("inflections.json")
STEMMED_OTHERWISE = {"browsing", "socializing", "teasing", "shelves"}
"""By OK-VQA's annotations: below."""


@pytest.mark.parametrize("kind", ["verbs", "plurals"])
def test_common_words_are_brought_to_their_base_form(kind):
    forms = {w: base for w, base in INFLECTIONS[kind].items() if w not in STEMMED_OTHERWISE}
    wrong = {form: stem_answer(form) for form, base in forms.items() if stem_answer(form) != base}
    assert len(forms) > 300
    assert len(wrong) <= 0.01 * len(forms), wrong


@pytest.mark.parametrize("kind", ["verbs", "plurals"])
def test_base_forms_stay(kind):
    # A base form that looks like an inflected one would be torn from its own "ing" form.
    bases = set(INFLECTIONS[kind].values())
    assert {base: stem_answer(base) for base in bases} == {base: base for base in bases}


@pytest.mark.parametrize(
    "word",
    "bus gas glass tennis chess news yes this is was has us always swiss texas paris octopus lens "
    "king ring wing string spring thing nothing something ceiling lightning".split(),
)
def test_words_that_only_look_inflected_stay(word):
    assert stem_answer(word) == word


def test_irregular_plurals_and_stems_of_the_data():
    assert stem_answer("firemen women children feet") == "fireman woman child foot"
    assert stem_answer("morning clothes jeans clothing") == "morn cloth jean cloth"


@pytest.mark.parametrize(
    ("raw", "stem"),
    [
        ("elevators", "elev"),
        ("hamburgers", "hamburg"),
        ("illness", "ill"),
        ("dangerous", "danger"),
        ("apartments", "apart"),
        ("settings", "set"),
        ("pudding", "pud"),
        ("shelves", "shelve"),
        ("teething", "teeth"),
        ("teasing", "teas"),
        ("evening", "even"),
        ("bedding", "bed"),
    ],
)
def test_an_answer_counts_beside_the_stem_that_the_annotations_have_of_it(raw: str, stem: str):
    assert stem_answer(raw) == stem_answer(stem)


def test_phrases_keep_everything_but_their_endings():
    assert stem_answer("Riding 2 horses, eating!") == "ride 2 horse, eat!"
    assert stem_answer("") == ""


def test_stemming_a_stem_changes_nothing():
    # The data's own column of stems and its raw answers can both be used.
    for kind in ("verbs", "plurals"):
        for form in INFLECTIONS[kind]:
            assert stem_answer(stem_answer(form)) == stem_answer(form)


def test_word_forms_count_as_the_same_answer():
    answers = ["surf"] * 4 + ["surfing"] * 4 + ["wave"] * 2
    stemmed = [stem_answer(answer) for answer in answers]
    assert vqa_accuracy(stem_answer("surfing"), stemmed) == 1.0
    assert vqa_accuracy(stem_answer("Waves"), stemmed) == 0.6
