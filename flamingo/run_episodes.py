"""Predictions as a table of episodes: what was asked and shown, in words, and what was answered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

import pandas as pd

from flamingo.evaluation.predictions import Prediction
from flamingo.types import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

COLUMNS = (
    "benchmark",
    "condition",
    "shots",
    "query",
    "question",
    "references",
    "candidates",
    "demonstrations",
    "demonstration_questions",
    "demonstration_answers",
    "raw",
    "answer",
    "probability",
    "score",
    "target",
    "group",
    "cluster",
    "prompt",
    "prompt_hash",
    "contents",
    "model",
    "key",
)
"""Of :func:`episode_table`, in this order; a ``seed`` may stand behind ``condition``."""

Texts = tuple[str | None, str | None]
"""A question and its answer; None where they are not known."""


def episode_table(
    predictions: Iterable[tuple[Mapping[str, Any], Prediction]],
    templates: Mapping[str, str],
    labels: tuple[str, ...] = ("benchmark", "condition"),
) -> pd.DataFrame:
    """A row a prediction, each with its labels (``labels``: ``benchmark`` and others) in front.

    ``templates``: the text of a demonstration by benchmark, as ``results.json`` has it.
    """
    rows = []
    for own, prediction in predictions:
        question, shown = texts(prediction, templates.get(own["benchmark"]))
        questions, answers = zip(*shown, strict=True) if shown else ((), ())
        row = {name: getattr(prediction, name) for name in COLUMNS if hasattr(prediction, name)}
        listed = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
        told = {
            "question": question,
            "demonstration_questions": questions,
            "demonstration_answers": answers,
        }
        rows.append({**own, **row, **listed, **told})
    return pd.DataFrame(rows, columns=[*labels, *(c for c in COLUMNS if c not in labels)])


def texts(prediction: Prediction, template: str | None) -> tuple[str | None, list[Texts]]:
    """The query's question, and question and answer of each demonstration, in prompt order.

    Of a prediction of an earlier version, which did not write them, they are read from the prompt:
    None without a ``template``, and where the prompt does not tell question from answer (nothing
    but a space between them, and not exactly one question mark to end the question).
    """
    if prediction.question is not None:
        return prediction.question, [(q, a) for q, a in prediction.shown]
    count = len(prediction.demonstrations)
    unknown: list[Texts] = [(None, None)] * count
    if template is None:
        return None, unknown
    body, _, separator = template.removeprefix(IMAGE_TOKEN).partition(END_OF_CHUNK_TOKEN)
    first, *others = prediction.prompt.split(END_OF_CHUNK_TOKEN)
    parts = [first, *(part.removeprefix(separator) for part in others)]
    *shown, asked = [part.removeprefix(IMAGE_TOKEN) for part in parts]
    question = _fields(asked, body.partition("{answer}")[0].rstrip(" "))
    read = [_fields(text, body) for text in shown]
    return (
        None if question is None else question[0],
        [fields or (None, None) for fields in read] if len(read) == count else unknown,
    )


def _fields(text: str, template: str) -> tuple[str, str] | None:
    """Question and answer that ``template`` makes ``text`` of, "" for a field that it lacks.

    None if there are none, or several.
    """
    shortest, longest = (_match(text, template, any_text) for any_text in (".*?", ".*"))
    if shortest == longest:
        return shortest
    if re.search(r"\{question\}\s+\{answer\}", template) and text.count("?") == 1:
        return _match(text, template, r"[^?]*\?")
    return None


def _match(text: str, template: str, question: str) -> tuple[str, str] | None:
    patterns = {"question": f"(?P<question>{question})", "answer": "(?P<answer>.*)"}
    pattern = "".join(
        re.escape(literal) + (patterns[field] if field else "")
        for literal, field, _, _ in Formatter().parse(template)
    )
    found = re.fullmatch(pattern, text, re.DOTALL)
    if found is None:
        return None
    fields = found.groupdict(default="")
    return fields.get("question", ""), fields.get("answer", "")
