"""CIDEr-D, BLEU-4 and ROUGE-L of captions, as pycocoevalcap 1.2 (coco-caption) computes them.

Every function takes one candidate and the references of each image, by image, as raw text; it
returns the score of the whole set and the score of each image, unscaled (tables show 100 times
that). The texts are split by :func:`tokenize`.

Own code: rouge-score's ROUGE-L has another beta and takes the best reference as a whole (0.017 less
on our fixture), no package kept up computes CIDEr-D without Java, and sacrebleu's BLEU-4 of a set,
which is the same to 1e-12, would bring lxml and four more packages for the forty lines below.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flamingo.evaluation.metrics.tokenization import tokenize

__all__ = ["Consensus", "bleu_4", "cider_d", "rouge_l", "tokenize"]

LONGEST = 4
"""n-grams of 1 to 4 tokens, in CIDEr-D and BLEU-4."""
SIGMA = 6.0
"""CIDEr-D's penalty on length: standard deviation of a Gaussian, in tokens."""
BETA = 1.2
"""ROUGE-L's weight of recall against precision."""

Scores = tuple[float, dict[str, float]]
NGrams = Counter[tuple[str, ...]]


def cider_d(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """CIDEr-D: the mean over images, and by image (Vedantam et al. 2015, section 6).

    With ``g(x)`` the vector of tf-idf weights of the n-grams of ``x`` and ``l`` its length,

        CIDEr-D = 10/4 sum_n mean_j exp(-(l_c - l_j)^2 / 2 sigma^2) min(g(c), g(r_j)) . g(r_j)
                                    / (|g(c)| |g(r_j)|)

    The idf comes from the references given here, so that the score of a subset is not comparable
    with that of the full set, and of a single image it is 0 (every n-gram occurs in all images).
    Raises ``ValueError`` if there is no image, if the two do not name the same images, or if an
    image has no reference.
    """
    _check(candidates, references)
    consensus = Consensus(references)
    scores = {image: consensus.score(image, text) for image, text in candidates.items()}
    return _mean(scores), scores


class Consensus:
    """The references of a set of images, prepared for CIDEr-D of any number of candidates."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        counts = {i: [_ngrams(tokenize(text)) for text in texts] for i, texts in references.items()}
        frequency = Counter(gram for texts in counts.values() for gram in set().union(*texts))
        self._images = math.log(len(references))
        self._idf = {gram: self._images - math.log(n) for gram, n in frequency.items()}
        self._references = {
            image: [_Weighted.of(grams, self._idf, self._images) for grams in texts]
            for image, texts in counts.items()
        }

    def score(self, image: str, candidate: str) -> float:
        """CIDEr-D of one candidate for ``image``."""
        weighted = _Weighted.of(_ngrams(tokenize(candidate)), self._idf, self._images)
        others = self._references[image]
        similarity = math.fsum(_similarity(weighted, other) for other in others)
        return 10.0 * similarity / len(others)


def bleu_4(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """BLEU-4 (Papineni et al. 2002) of the set, and of each image on its own.

    The set's score is no mean: clipped matches and lengths are summed over images first. The
    reference length is the closest to the candidate's, the shorter of two equally close. The tiny
    constants are the official ones; they keep an image without a matching 4-gram off zero. Raises
    as :func:`cider_d` does.
    """
    _check(candidates, references)
    counts = {
        image: _BleuCounts.of(tokenize(text), [tokenize(other) for other in references[image]])
        for image, text in candidates.items()
    }
    total = sum(counts.values(), start=_BleuCounts())
    return total.score(), {image: own.score() for image, own in counts.items()}


def rouge_l(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """ROUGE-L (Lin 2004), the mean over images, and by image: with ``P`` and ``R`` the longest
    common subsequence as a share of the candidate's and of the reference's length, each the best
    over all references (not necessarily the same one),

        (1 + beta^2) P R / (R + beta^2 P)

    An empty candidate scores 0 (officially 1 if a reference is empty too). Raises as
    :func:`cider_d` does.
    """
    _check(candidates, references)
    scores = {
        image: _rouge(tokenize(text), [tokenize(other) for other in references[image]])
        for image, text in candidates.items()
    }
    return _mean(scores), scores


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates and not references:
        raise ValueError("candidates: expected at least one caption, got none")
    if candidates.keys() != references.keys():
        more = sorted(candidates.keys() - references.keys())
        less = sorted(references.keys() - candidates.keys())
        raise ValueError(
            f"candidates: expected the {len(references)} images that have references, got "
            f"{len(more)} others {more[:3]} and no candidate for {len(less)} {less[:3]}"
        )
    for image, texts in references.items():
        if isinstance(texts, str) or not texts:
            raise ValueError(f"references: expected a list of captions of {image!r}, got {texts!r}")


def _mean(scores: Mapping[str, float]) -> float:
    return math.fsum(scores.values()) / len(scores)


def _ngrams(tokens: Sequence[str]) -> NGrams:
    return Counter(
        tuple(tokens[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(tokens) - n + 1)
    )


# --------------------------------------------------------------------------------------- CIDEr-D


@dataclass(frozen=True, slots=True)
class _Weighted:
    """The tf-idf weights of a text by n-gram, their norm by n, and the text's length."""

    weights: dict[tuple[str, ...], float]
    norms: tuple[float, ...]
    length: int

    @classmethod
    def of(cls, grams: NGrams, idf: Mapping[tuple[str, ...], float], unseen: float) -> _Weighted:
        weights = {gram: count * idf.get(gram, unseen) for gram, count in grams.items()}
        squares = [0.0] * LONGEST
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        # The official code counts bigrams; the difference of two texts' lengths is the same.
        length = sum(count for gram, count in grams.items() if len(gram) == 1)
        return cls(weights, tuple(math.sqrt(square) for square in squares), length)


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    """The mean over n of the clipped cosine, with the penalty on a difference in length."""
    products = [0.0] * LONGEST
    for gram, weight in candidate.weights.items():
        other = reference.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, other) * other
    cosines = (
        product / (own * other) if own and other else 0.0
        for product, own, other in zip(products, candidate.norms, reference.norms, strict=True)
    )
    difference = candidate.length - reference.length
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * math.fsum(cosines) / LONGEST


# ---------------------------------------------------------------------------------------- BLEU-4


@dataclass(frozen=True, slots=True)
class _BleuCounts:
    """Lengths, and the number of n-grams and of those that match, by n."""

    length: int = 0
    reference_length: int = 0
    guesses: tuple[int, ...] = (0,) * LONGEST
    matches: tuple[int, ...] = (0,) * LONGEST

    @classmethod
    def of(cls, tokens: Sequence[str], references: Sequence[Sequence[str]]) -> _BleuCounts:
        grams, most = _ngrams(tokens), Counter[tuple[str, ...]]()
        for reference in references:
            most |= _ngrams(reference)
        length = len(tokens)
        closest = min((abs(len(other) - length), len(other)) for other in references)[1]
        return cls(length, closest, _by_order(grams), _by_order(grams & most))

    def __add__(self, other: _BleuCounts) -> _BleuCounts:
        return _BleuCounts(
            self.length + other.length,
            self.reference_length + other.reference_length,
            tuple(a + b for a, b in zip(self.guesses, other.guesses, strict=True)),
            tuple(a + b for a, b in zip(self.matches, other.matches, strict=True)),
        )

    def score(self) -> float:
        tiny, small = 1e-15, 1e-9
        precision = 1.0
        for matches, guesses in zip(self.matches, self.guesses, strict=True):
            precision *= (matches + tiny) / (guesses + small)
        ratio = (self.length + tiny) / (self.reference_length + small)
        return precision ** (1 / LONGEST) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def _by_order(grams: NGrams) -> tuple[int, ...]:
    orders = [0] * LONGEST
    for gram, count in grams.items():
        orders[len(gram) - 1] += count
    return tuple(orders)


# --------------------------------------------------------------------------------------- ROUGE-L


def _rouge(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = [_longest_common_subsequence(tokens, other) for other in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(tokens)
    recall = max(c / len(other) for c, other in zip(common, references, strict=True) if other)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    row = [0] * (len(second) + 1)
    for token in first:
        before = 0  # the row above, one column to the left
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = before + 1 if token == other else max(above, row[column - 1])
            before = above
    return row[-1]
