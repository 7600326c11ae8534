"""Predictions as a table of episodes: what was asked and shown, in words, and what was answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from flamingo.evaluation.predictions import Prediction

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


def episode_table(
    predictions: Iterable[tuple[Mapping[str, Any], Prediction]],
    labels: tuple[str, ...] = ("benchmark", "condition"),
) -> pd.DataFrame:
    """A row a prediction, each with its labels (``labels``: ``benchmark`` and others) in front."""
    rows = []
    for own, prediction in predictions:
        shown = prediction.shown
        questions, answers = zip(*shown, strict=True) if shown else ((), ())
        row = {name: getattr(prediction, name) for name in COLUMNS if hasattr(prediction, name)}
        listed = {k: tuple(v) for k, v in row.items() if isinstance(v, list)}
        told = {"demonstration_questions": questions, "demonstration_answers": answers}
        rows.append({**own, **row, **listed, **told})
    return pd.DataFrame(rows, columns=[*labels, *(c for c in COLUMNS if c not in labels)])
