"""The questions most like a question, by their words: exact search over an inverted index.

Cosine of tf-idf vectors of lower-case words, with idf ``ln((1 + N) / (1 + df)) + 1`` (the smoothed
one of scikit-learn's ``TfidfVectorizer``) over the ``N`` questions of the index. Own code: it is
half a page of numpy, where scikit-learn would bring scipy and a dense or sparse matrix product.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

WORD = re.compile(r"\w+")
TIE = 1e-9
"""Cosines closer than this are equal: the same bag of words in another order of summation."""


class QuestionIndex:
    """``questions``, best all different. Raises ``ValueError`` without any."""

    def __init__(self, questions: Sequence[str]) -> None:
        if not questions:
            raise ValueError("questions: expected at least one, got none")
        self.questions = questions
        self._number: dict[str, int] = {}
        sizes, terms, counts = [], [], []
        for question in questions:
            words = Counter(WORD.findall(question.lower()))
            sizes.append(len(words))
            terms += [self._number.setdefault(word, len(self._number)) for word in words]
            counts += words.values()
        self._ends = np.cumsum(sizes)
        self._terms = np.array(terms, dtype=np.int64)
        rows = np.repeat(np.arange(len(questions)), sizes)
        frequency = np.bincount(self._terms, minlength=len(self._number))
        self._idf = np.log((1 + len(questions)) / (1 + frequency)) + 1
        weights = np.array(counts, dtype=float) * self._idf[self._terms]
        norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(questions)))
        self._weights = weights / norms[rows]
        self._postings = rows[np.argsort(self._terms, kind="stable")]
        self._posted = np.concatenate([[0], np.cumsum(frequency)])

    def nearest(self, question: str, barred: frozenset[int] = frozenset()) -> list[int]:
        """Places of the questions with the largest cosine, in ascending order, without ``barred``.

        All of them where several are equally near; none if no word is known. Exact: words are
        looked up from the rarest on, until no question without them can be as near (a unit
        vector's product with what is left of the query is at most the length of what is left).
        """
        words = Counter(WORD.findall(question.lower()))
        known = {self._number[w]: count for w, count in words.items() if w in self._number}
        if not known:
            return []
        order = sorted(known, key=lambda term: (self._posted[term + 1] - self._posted[term], term))
        query = np.zeros(len(self._number))
        query[order] = [known[term] * self._idf[term] for term in order]
        query /= np.linalg.norm(query)
        seen = np.empty(0, dtype=np.int64)
        cosines = np.empty(0)
        for done, term in enumerate(order, start=1):
            own = self._postings[self._posted[term] : self._posted[term + 1]]
            new = np.setdiff1d(own, seen, assume_unique=True)
            if barred:
                new = np.setdiff1d(new, list(barred), assume_unique=True)
            seen = np.concatenate([seen, new])
            cosines = np.concatenate([cosines, self._cosines(query, new)])
            left = float(np.linalg.norm(query[order[done:]]))
            if len(cosines) and cosines.max() > left + TIE:
                break
        if not len(cosines):
            return []
        return sorted(seen[cosines >= cosines.max() - TIE].tolist())

    def _cosines(
        self, query: Float[np.ndarray, " term"], places: Int[np.ndarray, " place"]
    ) -> Float[np.ndarray, " place"]:
        """Of questions that have at least one word each."""
        if not len(places):
            return np.empty(0)
        starts = np.where(places > 0, self._ends[places - 1], 0)
        sizes = self._ends[places] - starts
        firsts = np.cumsum(sizes) - sizes
        entries = np.repeat(starts - firsts, sizes) + np.arange(sizes.sum())
        return np.add.reduceat(query[self._terms[entries]] * self._weights[entries], firsts)
