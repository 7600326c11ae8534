"""Stems of OK-VQA's answers: what is lenient about its accuracy.

OK-VQA's annotations hold each answer twice, as given (``raw_answer``) and stemmed (``answer``), and
its scores compare stems (Marino et al. 2019; v1.1 of the data). The stemmer that made them is not
published. OpenFlamingo (``open_flamingo/eval/ok_vqa_utils.py``) comes near it: verbs that end in
"ing" to their base form, plural nouns to the singular, and words that the annotations stem in
another way. So does :func:`stem_answer`, with those words (but for misspellings) and simplemma's
English dictionary in the place of tagger, WordNet and singular rules, which need downloads. Other
words may still differ from OpenFlamingo's.
"""

from __future__ import annotations

import re
from functools import lru_cache

import simplemma

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_ANNOTATED = _pairs(
    """
    adhesives adhesive            alertness alert               apartments apart
    awning awn                    backpackers backpack          badness bad
    baldness bald                 belongings belong             blindness blind
    brightness bright             browsing brows                buildings build
    casings case                  clothes cloth                 clothing cloth
    coding code                   conferences confer            coniferous conifer
    containers contain            controllers control           couponing coupon
    dangerous danger              decorations decor             designers design
    directions direct             drunkenness drunken           earnings earn
    electronics electron          elevators elev                emirates emir
    expressions express           firefighters firefight        haircutting haircut
    hamburgers hamburg            illness ill                   jeans jean
    kindergartener kindergarten   markings mark                 meetings meet
    minerals miner                mopeds mope                   morning morn
    mountainous mountain          nationals nation              overseas oversea
    paintings paint               pants pant                    personals person
    plating plate                 playfulness play              polarizing polar
    professionals profession      projections project           propellers propel
    protesters protest            pudding pud                   purring pure
    reflections reflect           reminders remind              reporters report
    revelations revel             ripeness ripe                 routes rout
    sadness sad                   settings set                  shelves shelve
    sickness sick                 skateboarders skateboard      smugness smug
    socializing social            sometimes sometime            stockings stock
    sunbathing sunbath            sunblocker sunblock           suspenders suspend
    teasing teas                  teething teeth                toppings top
    transitions transit           travelers travel              travellers travel
    urinating urine               vacationing vacate            vastness vast
    weddings wed                  wetness wet                   wilderness wilder
    """
)
"""Words that OK-VQA's own column of stems has in another form than the rules below would give."""

_EXCEPTIONS = (
    # Verbs whose "ing" form simplemma takes for a noun, or for a form of a rare word ("playe").
    _pairs(
        """
        acting act              advertising advertise   baking bake             bathing bathe
        beating beat            bedding bed             beginning begin         breathing breathe
        breeding breed          brewing brew            building build          burning burn
        buying buy              carving carve           casting cast            clipping clip
        closing close           crossing cross          cutting cut             drawing draw
        dressing dress          evening even            feeding feed            feeling feel
        filing file             filling fill            fishing fish            fixing fix
        folding fold            following follow        freezing freeze         gathering gather
        greeting greet          growing grow            guarding guard          hanging hang
        housing house           hunting hunt            icing ice               lining line
        living live             mating mate             mining mine             mixing mix
        nursing nurse           playing play            serving serve           siding side
        singing sing            sitting sit             smoking smoke           swinging swing
        thinking think          trading trade           wedding wed             wiring wire
        wrestling wrestle       writing write
        """
    )
    # Plurals that it takes for verbs, or does not know.
    | _pairs(
        """
        calves calf   crosses cross  halves half    leaves leaf    lenses lens    lives life
        loaves loaf   skies sky      thieves thief  tvs tv         wives wife
        children child  feet foot    geese goose    mice mouse     teeth tooth    oxen ox
        """
    )
)


@lru_cache(maxsize=1 << 16)  # the same short answers over and over
def stem_answer(text: str) -> str:
    """``text`` in lower case with each word stemmed; for predictions and answers alike.

    Without a tagger the third person of a verb ("runs") is brought to its base form as well.
    """
    return _WORD.sub(lambda match: _stem(match.group()), text.lower())


def _stem(word: str) -> str:
    # The rules come behind, as a stem of the annotations ("teas") is brought to its own ("tea").
    word = _ANNOTATED.get(word, word)
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
