"""Captions as tokens of the Penn Treebank, without Java.

Published caption scores are computed on the tokens of Stanford's ``PTBTokenizer`` (CoreNLP 3.4.1,
called by coco-caption and pycocoevalcap), lower-cased, with punctuation removed. ``TOKEN`` is a
lexer for the same tokens: clitics are split (``do n't``, ``man 's``), words with hyphens or slashes
stay whole, abbreviations keep their period, and brackets become ``-lrb-``, ``-rrb-`` and so on
(which the official list of punctuation, written in capitals, fails to remove).

Known differences: captions are read one by one, the official tokenizer reads a file of them, so
that the first word of the next caption decides whether "plan B." ends a sentence. Here it always
does. Rare emoticons, markup and runs of symbols may differ.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

_TITLES = (
    "mr|mrs|ms|drs?|profs?|sen|rep|lt|col|gen|gov|adm|rev|maj|sgt|cpl|pvt|mt|capt|ste?|ave|pres|hon"
    "|det|dept|vs|ft|cf"
)
_OTHER_ABBREVIATIONS = (
    "jr|sr|bros|blvd|rd|esq|inc|cos?|corp|ltd|plc|assn|univ|intl|jan|feb|mar|apr|jun|jul|aug|sept?"
    "|oct|nov|dec|mon|tues?|wed|thu|thurs|fri|calif|fla|penn|va|ga|ind|minn|mich|etc|al|est|ct|tel"
    "|sq|bldg|(?:ed|ph)\\.d"
)
_SENTENCE_STARTS = "An?|As|At|He|In|It|Many|One|She|Some|The|There|These|They|This|That|We|While"

TOKEN = re.compile(
    rf"""
    </?[a-z][^<>\s]*>                                                # <br>
  | (?:https?://|www\.)[^\s"<>|()]*[^\W_]/?                          # addresses
  | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
  | @[a-z_]\w* | \#[a-z]+
  | [<>]?[:;=][-o*']?[()dpo\\@|\[\]{{}}](?![^\W_])                   # :-)
  # What an apostrophe begins.
  | '(?:s|m|d|re|ve|ll)(?!\w)                                        # man 's, he 'll
  | '(?:n|till?|cause|\d0s|\d\d)(?![\w'])                             # '70s, '99
  | 'n' | 'em | 't(?=is\b|was\b)                                      # rock 'n' roll, 't is
  | n't(?![^\W_])
  # Words that keep an apostrophe.
  | (?:ol|somethin|dunkin)'(?!\w)
  | y'(?=[^\W\d_]+)                                                  # y' all
  | (?:c'mon|nor'easter|s'mores)\b | c\+\+ | [cf]\#
  | (?:[dlo]|(?-i:[A-HJ-XZn]))'[^\W\d_]{{2,}}(?:-[^\W_]+)*           # o'clock, D'Angelo
  | [^\W\d_]+[aeiouy]'[aeiou][^\W\d_]*                               # ma'am
  # Periods that do not end a sentence.
  | (?:{_TITLES}|{_OTHER_ABBREVIATIONS})\.(?![^\W_])
  | (?:nos?|figs?|pp)\.(?=\s*\d)                                     # no. 5
  | [^\W\d_](?:\.[^\W\d_])+(?![^\W_])(?:\.-[^\W_]+|\.)?              # U.S., p.m., U.S.-based
  | [^\W\d_]\.(?!\s*$|[^\W_]|\s+(?-i:{_SENTENCE_STARTS})\b)          # John F. Kennedy
  | [^\W_]+(?:-[^\W_]+)*\.(?=[,;])                                   # oz., lbs.;
  # A missing space after the end of a sentence is not put right: "dog.The" is one token.
  | (?:[^\W\d_][^\W_]*)(?:[.?!][^\W\d_][^\W_]*)+(?:-[^\W_]+)*
  # Numbers and compound words.
  | [^\W_]+(?:-[^\W\d_]+){{0,2}}(?:/[^\W_]+(?:-[^\W\d_]+){{0,2}}){{1,2}}   # 1/2-inch, w/o
  | \d+(?:[.,]\d+)+(?:-[^\W_]+)+                                     # 3.5-inch
  | [-+]?\d*(?:[.:,]\d+)+                                            # 1,000.5 or 10:30
  | (?-i:[A-Z]+&[A-Z]+)                                              # A&W
  | [^\W\d_]+?(?=n't(?![^\W_]))                                      # do n't
  | [^\W_]+(?:[-_][^\W_]+)*                                          # tri-colored
  | [-+]\d+
  | [?!]{{2,}} | \*+ | _+ | @+                                       # such runs are tokens
  | -+ | \.+                                                         # these are punctuation
  | [^\s\U00010000-\U0010ffff]                                       # emoji are dropped
    """,
    re.VERBOSE | re.IGNORECASE,
)

_ASSIMILATED = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na",
    "gimme": "gim me", "lemme": "lem me",
}  # fmt: skip
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
)
_REWRITTEN = str.maketrans(
    {
        "’": "'", "‘": "`", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‹": "`", "›": "'",
        "–": " - ", "—": " - ", "…": "...", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3",
        "⅔": "2/3", "£": "#", "€": "$", "¢": " cents", "\u00ad": "", "\u200b": " ",
    }
)  # fmt: skip
_PUNCTUATION = frozenset("' ` \" . ? ! , : ;".split())


def tokenize(text: str) -> list[str]:
    """The tokens of a caption as published scores count them: lower case, no punctuation.

    An empty list if there is nothing but punctuation.
    """
    return list(_tokens(html.unescape(text).translate(_REWRITTEN)))


def _tokens(text: str) -> Iterator[str]:
    for match in TOKEN.finditer(text):
        token = match.group().lower()
        if token in _PUNCTUATION or not token.strip("-") or not token.strip("."):
            continue
        yield from _ASSIMILATED.get(token, token.translate(_BRACKETS)).split()
