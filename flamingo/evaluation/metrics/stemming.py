"""Stems of OK-VQA's answers: what is lenient about its accuracy.

OK-VQA's annotations hold each answer twice, as given (``raw_answer``) and stemmed (``answer``), and
its scores compare stems (Marino et al. 2019; v1.1 of the data). No official stemmer is known to us.
OpenFlamingo brings the last word forms together again: verbs that end in "ing" to their base form,
plural nouns to the singular, and exceptions by hand. So does :func:`stem_answer`, with simplemma's
English dictionary in the place of tagger, WordNet and singular rules, which need downloads.
"""

from __future__ import annotations

import re
from functools import lru_cache

import simplemma

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_EXCEPTIONS = (
    # Verbs whose "ing" form simplemma takes for a noun, or for a form of a rare word ("playe").
    _pairs(
        """
        acting act        advertising advertise  baking bake        bathing bathe
        beating beat      beginning begin        breathing breathe
        breeding breed    brewing brew           building build     burning burn
        buying buy        carving carve          casting cast       clipping clip
        closing close     crossing cross         cutting cut        drawing draw
        dressing dress    feeding feed           feeling feel       filing file
        filling fill      fishing fish           fixing fix         folding fold
        following follow  freezing freeze        gathering gather   greeting greet
        growing grow      guarding guard         hanging hang       hunting hunt
        icing ice         living live            mating mate        mixing mix
        nursing nurse     playing play           serving serve      singing sing
        sitting sit       smoking smoke          swinging swing     thinking think
        trading trade     wedding wed            wrestling wrestle  writing write
        buildings build   paintings paint        weddings wed
        """
    )
    # Plurals that it takes for verbs, or does not know.
    | _pairs(
        """
        calves calf   crosses cross  halves half    leaves leaf    lenses lens    lives life
        loaves loaf   shelves shelf  skies sky      thieves thief  tvs tv         wives wife
        children child  feet foot    geese goose    mice mouse     teeth tooth    oxen ox
        """
    )
    # Stems of OK-VQA's own column of stemmed answers, from memory: not checked against its file.
    | _pairs("clothes cloth clothing cloth jeans jean morning morn pants pant")
)


@lru_cache(maxsize=1 << 16)  # the same short answers over and over
def stem_answer(text: str) -> str:
    """``text`` in lower case with each word stemmed; for predictions and answers alike.

    Without a tagger the third person of a verb ("runs") is brought to its base form as well.
    """
    return _WORD.sub(lambda match: _stem(match.group()), text.lower())


def _stem(word: str) -> str:
    if word in _EXCEPTIONS:
        return _EXCEPTIONS[word]
    if not word.endswith(("ing", "s", "men")):
        return word
    lemma = simplemma.lemmatize(word, lang="en").lower()
    if word.endswith("ing"):
        return lemma
    # A plural keeps nearly all letters of its singular; "is", "us" and "has" are no plurals.
    plural = 2 < len(lemma) < len(word) or word.endswith("men")
    return lemma if plural and word.startswith(lemma[:-2]) else word
