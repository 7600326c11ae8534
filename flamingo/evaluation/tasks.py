"""What a benchmark asks for: prompt, decoding, what counts of the output, and what it is worth.

A :class:`Task` is all of a protocol that a benchmark needs to know. The OpenFlamingo protocol is
that of the evaluation script of OpenFlamingo 2.0 (``open_flamingo/eval/evaluate.py``), after the
Flamingo paper's appendix. Where it is left on purpose, docs/evaluation.md says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from flamingo.choices import Metric, Protocol
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.ensembling import ONE_WAY, Ensemble
from flamingo.evaluation.prompts import BINDING, QUESTION, Template
from flamingo.evaluation_config import EvaluationConfig


class Kind(Enum):
    """Kinds of benchmarks, as protocols tell them apart."""

    vqa = "vqa"
    text_vqa = "text_vqa"
    """Answers may be long words that have to be read."""
    ok_vqa = "ok_vqa"
    caption = "caption"
    classification = "classification"
    hateful_memes = "hateful_memes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """``clean`` keeps of an output what counts; ``shown`` is the reference that a demonstration
    gives. Open answers are generated, those of queries with candidates are ranked. ``ensemble``:
    every query is asked in several ways, and their answers are put together."""

    template: Template
    decoding: Decoding
    metric: Metric
    clean: Callable[[str], str] = str.strip
    shown: Callable[[Sequence[str]], str]
    ensemble: Ensemble = ONE_WAY

    @property
    def description(self) -> str:
        """One line that differs between any two ways of answering (not of scoring)."""
        ways = self.ensemble.description
        return f"{self.decoding.description}, {ways}" if ways else self.decoding.description


def task(kind: Kind, protocol: Protocol, metric: Metric | None = None) -> Task:
    """The task of a kind of benchmark under a protocol, with ``metric`` instead of its own."""
    match protocol:
        case Protocol.native:
            return _native(kind, metric)
        case Protocol.open_flamingo:
            return _open_flamingo(kind, metric)


def first(references: Sequence[str]) -> str:
    """The first reference."""
    return references[0]


def most_frequent(references: Sequence[str]) -> str:
    """The most frequent reference, of equally frequent ones the first."""
    return Counter(references).most_common(1)[0][0]


# ---------------------------------------------------------------------------- ours


def _native(kind: Kind, metric: Metric | None) -> Task:
    """Prompts as in training (:mod:`flamingo.data.sources`), greedy, likelihoods of whole words."""
    match kind:
        case Kind.vqa | Kind.text_vqa | Kind.ok_vqa:
            own = Metric.ok_vqa_accuracy if kind is Kind.ok_vqa else Metric.vqa_accuracy
            return Task(
                template=QUESTION,
                decoding=Decoding(max_new_tokens=10),
                metric=metric or own,
                shown=most_frequent,
            )
        case Kind.caption:
            return Task(
                template=CAPTION,
                decoding=Decoding(max_new_tokens=30),
                metric=metric or Metric.cider,
                shown=first,
            )
        case Kind.classification:
            return Task(
                template=BINDING,
                decoding=Decoding(max_new_tokens=10),
                metric=metric or Metric.exact_match,
                shown=first,
            )
        case Kind.hateful_memes:
            return Task(
                template=MEME,
                decoding=Decoding(),
                metric=metric or Metric.roc_auc,
                shown=first,
            )


CAPTION = Template(question="A photo:", answer=" {answer}")
MEME = Template(question='It says "{question}". Is it hateful?', answer=" {answer}")

# ---------------------------------------------------------------------------- OpenFlamingo


PERMUTATIONS = 6
"""Orders of the demonstrations that classes are averaged over (Awadalla et al. 2023, section 3)."""


def _open_flamingo(kind: Kind, metric: Metric | None) -> Task:
    beams = 3
    match kind:
        case Kind.vqa | Kind.text_vqa | Kind.ok_vqa:
            stemmed = kind is Kind.ok_vqa
            own = Metric.ok_vqa_accuracy_always if stemmed else Metric.vqa_accuracy_always
            return Task(
                template=_whole("Question:{question} Short answer:", separator="\n"),
                decoding=Decoding(max_new_tokens=10 if kind is Kind.text_vqa else 5, beams=beams),
                metric=metric or own,
                clean=before_next_question if stemmed else short_answer,
                shown=first,
            )
        case Kind.caption:
            return Task(
                template=_whole("Output:", separator="\n"),
                decoding=Decoding(max_new_tokens=20, beams=beams),
                metric=metric or Metric.cider,
                clean=caption,
                shown=first,
            )
        case Kind.classification:
            return Task(
                template=_whole("Output:"),
                decoding=Decoding(normalize_by_length=True, end_of_chunk=False),
                metric=metric or Metric.exact_match,
                shown=first,
                ensemble=Ensemble(permutations=PERMUTATIONS),
            )
        case Kind.hateful_memes:
            meme = "is an image with: '{question}' written on it. Is it hateful? Answer:"
            return Task(
                template=_whole(meme),
                decoding=Decoding(end_of_chunk=False),
                metric=metric or Metric.roc_auc,
                shown=first,
                ensemble=Ensemble(permutations=PERMUTATIONS),
            )


def _whole(question: str, separator: str = "") -> Template:
    return Template(question=question, answer="{answer}", separator=separator, whole=True)


def before_next_question(output: str) -> str:
    """What precedes the next question (OpenFlamingo, of OK-VQA)."""
    return re.split("Question|Answer|Short", output, maxsplit=1)[0].strip()


def short_answer(output: str) -> str:
    """What precedes the next question, and of a list the first entry (OpenFlamingo)."""
    return before_next_question(output).split(", ", 1)[0].strip()


def caption(output: str) -> str:
    """What precedes the next caption, without quotation marks (OpenFlamingo)."""
    return output.split("Output", 1)[0].replace('"', "").strip()


# ---------------------------------------------------------------------------- changes to a protocol


def adapted(own: Task, config: EvaluationConfig) -> Task:
    """``own`` with what the evaluation's configuration says about decoding and ensembling."""
    told = {
        "max_new_tokens": config.max_new_tokens,
        "beams": config.beams,
        "normalize_by_length": config.normalize_by_length,
    }
    changes = {name: value for name, value in told.items() if value is not None}
    decoding, orders = replace(own.decoding, **changes), config.ensemble.permutations
    more = tuple(_template(text, own.template) for text in config.ensemble.templates)
    permutations = own.ensemble.permutations if orders is None else orders
    return replace(own, decoding=decoding, ensemble=Ensemble(permutations, more))


def _template(text: str, like: Template) -> Template:
    """``text`` ends in ``{answer}``; the space before it belongs to the answer."""
    question = text.removesuffix("{answer}")
    asked = question.rstrip(" ")
    return replace(like, question=asked, answer=question[len(asked) :] + "{answer}")
