"""VQA accuracy, exactly as the official evaluation computes it (``vqaEval.py`` of VQA v2).

With ``m`` of ``n`` annotators giving the predicted answer, each annotator is left out in turn and
the prediction is worth ``min(matches among the others / 3, 1)``; the score is the mean:

    ((n - m) * min(m, 3) + m * min(m - 1, 3)) / 3n

which for ten annotators is 0, 0.3, 0.6, 0.9, 1. Left out is one annotator, not everyone who gave
the same answer: harnesses that compare values lose identical answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache

from flamingo.evaluation.metrics.stemming import stem_answer

__all__ = ["Mode", "normalize_answer", "stem_answer", "vqa_accuracy"]

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?![0-9])")
_MOST_PERIODS = 32
"""The official call passes ``re.UNICODE``, which is 32, where ``sub`` expects a count."""
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

# Spellings that lack every apostrophe. The official table has some of a kind and lacks others
# (it knows "hes" and not "shes"), and its capitalised entries are never met by lower-cased words.
_WITHOUT_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
    who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
# Spellings that lack one apostrophe of several.
_WITHOUT_ONE_APOSTROPHE = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
    y'all'd've you'd've 'ow's'at
""".split()


def _lacking_one(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, c in enumerate(word) if c == "'"]


_CONTRACTIONS = (
    {word.replace("'", ""): word for word in _WITHOUT_APOSTROPHE}
    | {short: word for word in _WITHOUT_ONE_APOSTROPHE for short in _lacking_one(word)}
    | {"somebody'd": "somebodyd"}  # the wrong way round, as in the official table
)


class Mode(StrEnum):
    """When answers are normalised before they are compared. The results must name it."""

    official = "official"
    """Only if the annotators' answers differ: with ten times "yes", "Yes." is wrong."""
    always = "always"
    """What OpenFlamingo does."""


@lru_cache(maxsize=1 << 16)  # the same short answers over and over
def normalize_answer(text: str) -> str:
    """An answer as the official evaluation compares it (``processPunctuation`` and
    ``processDigitArticle``, with their oddities, after their handling of white space)."""
    return _without_articles(_without_punctuation(_one_line(text)))


def vqa_accuracy(prediction: str, answers: Sequence[str], mode: str = "official") -> float:
    """The score of ``prediction`` in [0, 1] given one answer of each annotator.

    ``mode`` is the value of a :class:`Mode`. A full score takes four matching annotators; where
    fewer were asked it cannot be reached (``(n - 1) / 3`` with ``n`` < 4, so 0 with a single one:
    use :func:`~flamingo.evaluation.metrics.classification.exact_match` there). Raises
    ``ValueError`` without answers, and for an unknown mode.
    """
    if not answers:
        raise ValueError("answers: expected one of each annotator, got none")
    if mode not in set(Mode):
        raise ValueError(f"mode: expected one of {[m.value for m in Mode]}, got {mode!r}")
    prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
    if Mode(mode) is Mode.always or len(set(answers)) > 1:
        prediction = normalize_answer(prediction)
        answers = [normalize_answer(answer) for answer in answers]
    count, matches = len(answers), answers.count(prediction)
    # Integers until the last division: 3 matches of 10 give the float 0.9, not one beside it.
    worth = (count - matches) * min(matches, 3) + matches * min(matches - 1, 3)
    return worth / (3 * count)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Deletes a mark that stands beside a space somewhere, and every mark of a text with a number
    such as ``1,000``; otherwise a space takes its place."""
    has_number = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        delete = has_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _without_articles(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
