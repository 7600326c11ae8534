"""Does the model look, or does it copy? Bias and grounding from predictions and demonstrations.

``demonstrations`` are the answers shown before each query, the last one next to it. Texts are
compared after ``normalize``: by default case and surrounding space do not count, as in
:func:`flamingo.evaluation.metrics.classification.exact_match`; pass a benchmark's own
normalisation where it has one. No rate speaks for itself: even a perfect model says the last
demonstration's answer wherever that is the right one. So each is reported with the rate of the
right answers themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

from flamingo.evaluation.statistics import Estimate, estimate, paired_difference

Normalize = Callable[[str], str]


def plain(text: str) -> str:
    """Lower case, without surrounding space."""
    return text.strip().lower()


class ContextRule(Enum):
    """A way of answering from the demonstrations' answers alone."""

    copy_last = "copy_last"
    """The answer of the last demonstration (recency)."""
    majority_label = "majority_label"
    """The most frequent answer; one of ``m`` equally frequent ones counts ``1 / m``, as in
    :func:`flamingo.evaluation.baselines.majority`."""
    among_demonstrations = "among_demonstrations"
    """Any of the answers."""


def follows(
    rule: ContextRule, answer: str, demonstrations: Sequence[str], normalize: Normalize = plain
) -> float:
    """How far ``answer`` is what ``rule`` gives, in [0, 1].

    Raises ``ValueError`` without demonstrations: there is nothing to follow.
    """
    if not demonstrations:
        raise ValueError("demonstrations: expected at least one for each query, got none")
    said, shown = normalize(answer), [normalize(text) for text in demonstrations]
    match rule:
        case ContextRule.copy_last:
            return float(said == shown[-1])
        case ContextRule.among_demonstrations:
            return float(said in shown)
        case ContextRule.majority_label:
            counts = Counter(shown)
            most = max(counts.values())
            tied = [text for text, count in counts.items() if count == most]
            return float(said in tied) / len(tied)


@dataclass(frozen=True, slots=True)
class ContextRate:
    """How often predictions follow a rule, how often the right answers do, and the difference.

    ``excess`` above zero: the model follows the rule where that is wrong. Its interval is paired.
    """

    rule: ContextRule
    rate: Estimate
    right: Estimate
    excess: Estimate


def context_rate(
    rule: ContextRule,
    predictions: Sequence[str],
    targets: Sequence[str],
    demonstrations: Sequence[Sequence[str]],
    clusters: Sequence[Hashable],
    normalize: Normalize = plain,
) -> ContextRate:
    """Copy-last rate, majority-label agreement or answer-among-demonstrations rate.

    One entry a query; ``targets`` are the right answers (the first of several). Raises
    ``ValueError`` without queries, for unequal lengths, or for a query without demonstrations.
    """
    _check_lengths(
        len(clusters), predictions=predictions, targets=targets, demonstrations=demonstrations
    )
    said = _followed(rule, predictions, demonstrations, normalize)
    right = _followed(rule, targets, demonstrations, normalize)
    return ContextRate(
        rule=rule,
        rate=estimate(said, clusters),
        right=estimate(right, clusters),
        excess=paired_difference(said, right, clusters, share=True),
    )


def recency(
    predictions: Sequence[str],
    demonstrations: Sequence[Sequence[str]],
    clusters: Sequence[Hashable],
    normalize: Normalize = plain,
) -> Estimate:
    """Agreement with the last demonstration's answer minus that with the others', on average.

    Zero in expectation for a model that does not care about order, if the order is random: unlike
    the copy-last rate it needs no right answers. Raises ``ValueError`` as :func:`context_rate`, and
    for a query with fewer than two demonstrations.
    """
    _check_lengths(len(clusters), predictions=predictions, demonstrations=demonstrations)
    last, others = [], []
    for number, (said, shown) in enumerate(zip(predictions, demonstrations, strict=True)):
        if len(shown) < 2:
            raise ValueError(
                f"demonstrations[{number}]: expected at least two answers, got {len(shown)}"
            )
        agreement = [float(normalize(said) == normalize(text)) for text in shown]
        last.append(agreement[-1])
        others.append(sum(agreement[:-1]) / len(agreement[:-1]))
    return paired_difference(last, others, clusters, share=True)


def flip_rate(
    first: Sequence[str],
    second: Sequence[str],
    clusters: Sequence[Hashable],
    normalize: Normalize = plain,
) -> Estimate:
    """How often the answer changes between two conditions on the same queries.

    Under two orders of the same demonstrations this is the order-flip rate: what should be zero.
    Between the real and a blank image it is what should not. Raises ``ValueError`` without queries
    or for unequal lengths.
    """
    _check_lengths(len(clusters), first=first, second=second)
    flips = [float(normalize(a) != normalize(b)) for a, b in zip(first, second, strict=True)]
    return estimate(flips, clusters)


def _check_lengths(queries: int, **fields: Sequence[object]) -> None:
    for field, values in fields.items():
        if len(values) != queries:
            raise ValueError(f"{field}: expected {queries}, one a query, got {len(values)}")


def _followed(
    rule: ContextRule,
    answers: Sequence[str],
    demonstrations: Sequence[Sequence[str]],
    normalize: Normalize,
) -> list[float]:
    return [
        follows(rule, answer, shown, normalize)
        for answer, shown in zip(answers, demonstrations, strict=True)
    ]
