"""Caption scores against pycocoevalcap's, with the official tokenizer's tokens as truth."""

from __future__ import annotations

import math

import pytest

from flamingo.evaluation.metrics.caption import bleu_4, cider_d, rouge_l, tokenize

from . import fixtures

OFFICIAL = fixtures.read("caption_scores.json")
CANDIDATES = {row["image"]: row["candidate"] for row in OFFICIAL["rows"]}
REFERENCES = {row["image"]: row["references"] for row in OFFICIAL["rows"]}
METRICS = (cider_d, bleu_4, rouge_l)


def test_every_caption_has_the_official_tokens():
    pairs = [
        pair
        for row in OFFICIAL["rows"]
        for pair in [
            (row["candidate"], row["candidate_tokens"]),
            *zip(row["references"], row["references_tokens"], strict=True),
        ]
    ]
    assert len(pairs) == 400
    assert wrongly_split(pairs) == {}


def test_hard_sentences_have_the_official_tokens():
    rows = fixtures.read("ptb_tokens.json")["rows"]
    assert len(rows) > 250
    assert wrongly_split([(row["caption"], row["tokens"]) for row in rows]) == {}


def wrongly_split(pairs):
    """Caption -> its tokens, where these are not the expected ones."""
    tokens = {caption: tokenize(caption) for caption, _ in pairs}
    return {caption: tokens[caption] for caption, own in pairs if tokens[caption] != own.split()}


def test_nothing_but_punctuation_gives_no_token():
    assert tokenize("") == tokenize(' ... - "!" \'') == []


def test_cider_is_the_official_one():
    corpus, by_image = cider_d(CANDIDATES, REFERENCES)
    assert corpus == pytest.approx(OFFICIAL["cider"], abs=1e-9)
    assert by_image == pytest.approx({r["image"]: r["cider"] for r in OFFICIAL["rows"]}, abs=1e-9)


def test_bleu_and_rouge_are_the_official_ones():
    assert bleu_4(CANDIDATES, REFERENCES)[0] == pytest.approx(OFFICIAL["bleu4"], abs=1e-9)
    assert rouge_l(CANDIDATES, REFERENCES)[0] == pytest.approx(OFFICIAL["rouge_l"], abs=1e-9)


def test_cider_by_hand():
    candidates = {"1": "red dog", "2": "blue cat"}
    references = {"1": ["red dog"], "2": ["blue car"]}
    corpus, by_image = cider_d(candidates, references)
    # One reference an image: every n-gram has idf log 2. Two orders of four match in full; "blue"
    # is one of two unigrams of equal weight, cosine 1/2.
    assert by_image == pytest.approx({"1": 10 * 2 / 4, "2": 10 * 0.5 / 4})
    assert corpus == pytest.approx((5 + 1.25) / 2)


def test_cider_punishes_length_and_repetition():
    filler = {"2": "a cat sleeps"}
    references = {"1": ["a red dog runs"], "2": ["a cat sleeps"]}

    def score(caption: str) -> float:
        return cider_d({"1": caption} | filler, references)[1]["1"]

    exact = score("a red dog runs")
    assert exact == pytest.approx(10.0)
    assert score("a red dog runs runs runs runs") < exact * math.exp(-(3**2) / 72)
    assert score("dog") < exact
    assert score("") == 0.0


def test_a_word_in_every_image_counts_for_nothing_in_cider():
    candidates, references = {"1": "dog"}, {"1": ["dog"]}
    assert cider_d(candidates, references) == (0.0, {"1": 0.0})


def test_bleu_by_hand():
    corpus, _ = bleu_4({"1": "a b c d e"}, {"1": ["a b c d x", "e y"]})
    # matches 5/5, 3/4, 2/3, 1/2; no penalty, the closest reference has 5 tokens
    assert corpus == pytest.approx((1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    corpus, _ = bleu_4({"1": "a b c d"}, {"1": ["a b c d e"]})
    assert corpus == pytest.approx(math.exp(1 - 5 / 4))


def test_bleu_counts_a_repeated_word_as_often_as_a_reference_does():
    one, _ = bleu_4({"1": "the the the the the"}, {"1": ["the cat", "the the"]})
    assert one == pytest.approx(((2 / 5) * (1 / 4) * (1e-15 / 3) * (1e-15 / 2)) ** 0.25)


def test_bleu_of_equally_close_references_takes_the_shorter():
    corpus, _ = bleu_4({"1": "a b c d"}, {"1": ["a b c d e", "x y z"]})
    assert corpus == pytest.approx(1.0)


def test_bleu_of_a_set_is_no_mean():
    candidates = {"1": "a b c d e f", "2": "u v w x"}
    corpus, by_image = bleu_4(candidates, {"1": ["a b c d e f"], "2": ["q r s t"]})
    assert by_image["1"] == pytest.approx(1.0)
    assert by_image["2"] < 1e-6
    assert corpus == pytest.approx((6 / 10 * 5 / 8 * 4 / 6 * 3 / 4) ** 0.25)


def test_rouge_by_hand():
    # longest common subsequence "a c d" of 4 and 5 tokens
    corpus, by_image = rouge_l({"1": "a b c d"}, {"1": ["a x c y d"]})
    precision, recall = 3 / 4, 3 / 5
    assert corpus == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))
    assert by_image == {"1": corpus}


def test_rouge_takes_the_best_precision_and_the_best_recall():
    corpus, _ = rouge_l({"1": "a b c d"}, {"1": ["a b c x y z", "d"]})
    assert corpus == pytest.approx(2.44 * (3 / 4) * 1 / (1 + 1.44 * 3 / 4))
    assert rouge_l({"1": "a"}, {"1": ["b", ""]})[0] == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_images_does_not_matter(metric):
    backwards = dict(reversed(CANDIDATES.items()))
    assert metric(backwards, REFERENCES)[0] == pytest.approx(metric(CANDIDATES, REFERENCES)[0])


@pytest.mark.parametrize("metric", METRICS)
def test_images_must_match(metric):
    with pytest.raises(ValueError, match="expected at least one caption"):
        metric({}, {})
    with pytest.raises(ValueError, match=r"got 1 others \['b'\] and no candidate for 1 \['a'\]"):
        metric({"b": "x"}, {"a": ["x"]})
    with pytest.raises(ValueError, match="expected a list of captions of 'a'"):
        metric({"a": "x"}, {"a": []})
    with pytest.raises(ValueError, match="expected a list of captions of 'a', got 'x y'"):
        metric({"a": "x"}, {"a": "x y"})
