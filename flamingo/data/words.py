"""Made-up words: pronounceable, without meaning, and one token where the tokenizer allows it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

from transformers import PreTrainedTokenizerBase

ONSETS = "bcdfghjklmnprstvwyz"
VOWELS = "aeiou"
CODAS = "bcdfgklmnprstvxz"
NEEDED = 200
"""Words that are always there; a tokenizer with fewer one-token words is filled up."""
HELD_OUT_SHARE = 0.2
SPLIT_SEED = 0
"""The split is a property of the words, not of a run: every run and evaluation agrees on it."""


@dataclass(frozen=True, slots=True)
class Words:
    """Made-up words, without leading space. ``multi_token`` lists those of more than one token."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]
    multi_token: frozenset[str]


def made_up_words(
    tokenizer: PreTrainedTokenizerBase, seed: int = SPLIT_SEED, needed: int = NEEDED
) -> Words:
    """Words such as ``dop`` and ``zub`` for ``tokenizer``, split into seen and held out.

    Candidates are consonant-vowel-consonant syllables that are no English word
    (:data:`NOT_MADE_UP`). All that are one token with a leading space are taken. If these are
    fewer than ``needed``, the list is filled up to ``needed`` with candidates of several tokens,
    in an order fixed by hash; ``Words.multi_token`` names them. Which side of the split a word
    falls on depends on the word and ``seed`` alone. Both lists are sorted.
    """
    candidates = sorted(
        (word for word in map("".join, product(ONSETS, VOWELS, CODAS)) if word not in NOT_MADE_UP),
        key=lambda word: _hash("order", word, seed),
    )
    if needed > len(candidates):
        raise ValueError(f"needed: expected at most {len(candidates)} words, got {needed}")
    encoded = tokenizer([f" {word}" for word in candidates], add_special_tokens=False)["input_ids"]
    single = [word for word, ids in zip(candidates, encoded, strict=True) if len(ids) == 1]
    several = [word for word, ids in zip(candidates, encoded, strict=True) if len(ids) > 1]
    several = several[: max(0, needed - len(single))]
    words = sorted(single + several)
    boundary = int(HELD_OUT_SHARE * 2**64)
    return Words(
        seen=tuple(word for word in words if _hash("split", word, seed) >= boundary),
        held_out=tuple(word for word in words if _hash("split", word, seed) < boundary),
        multi_token=frozenset(several),
    )


def _hash(purpose: str, word: str, seed: int) -> int:
    digest = hashlib.sha256(f"word {purpose} {seed} {word}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


# Syllables of the pattern above that an English text knows: words of a common dictionary, frequent
# names, abbreviations and fragments, and what one would not want to read in a prompt.
NOT_MADE_UP = frozenset(
    """
    bad bag bam ban bar bat bed beg ben bet bib bid big bin bit bob bog bon bop bot box bud bug bum
    bun bur bus but cab cad cal cam can cap car cat cis cob cod cog col com con cop cos cot cox cub
    cud cul cum cup cur cut cuz dab dad dam dan das dat deb dec def del dem den der des dev dic did
    dig dil dim din dip dis doc dog dom don dos dot doz dub dud dug dun fad fag fan far fat fax feb
    fed fem fen fer fez fib fig fin fir fit fix fob fog fop for fox fug fum fun fur gab gad gag gal
    gap gas gaz gel gem gen get gif gig gin git gob god gop got gov gum gun gus gut had hag hal ham
    han has hat hed hem hen hep her hes hex hid him hip his hit hiv hob hoc hod hog hon hop hos hot
    hub hug hum hun hut jab jag jam jan jar jet jib jig jim jin job jog jon jot jug jul jun jut kat
    keg ken kid kil kim kin kit lab lad lag lam lan lap las lat lav lax led leg len les let lib lid
    lil lin lip lit liv lix liz lob log lol lop los lot lox lug mac mad mag man map mar mas mat max
    med meg mel men mes met mic mid mil min mit mix mob mod mom mon mop mos mud mug mum nab nag nam
    nap nat ned neg net nib nig nil nip nit nix nob nod non nor nos not nov nub nud nun nut pac pad
    pal pam pan pap par pas pat peg pen pep per pet pic pig pin pip pis pit pod pol pop pos pot pox
    pub pug pun pup pus put raf rag ram ran rap rat rec red ref reg rep res rev rex rib rid rig rim
    rip rob rod rom ron rot rub rug rum run rut sac sad sag sal sam san sap sat sax sec sen sep set
    sex sic sid sim sin sip sir sis sit six sob sod sol son sop sos sot sox sub suc sum sun sup sur
    suv tab tad tag tam tan tap tar tat tax ted tel ten tex tic til tim tin tip tis tit tog tom ton
    top tor tot tub tug tun tux vag val van var vat vet vex vic vim vip viz vol von wad wag wan war
    was wat wax web wed wen wes wet wid wig win wis wit wiz wod wok won wot yak yam yap yen yep yes
    yet yin yip yon yuk yum yup zap zed zen zip zit
    """.split()
)
