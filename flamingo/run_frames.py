"""Several runs as one data frame: what differs between them, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from flamingo.choices import Condition
from flamingo.naming import ALL
from flamingo.run_checks import of_group
from flamingo.run_selection import differing
from flamingo.runs import CELL, NUMBERS, Run


def frame(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = ("train/loss", "validation/loss"),
    condition: Condition = Condition.real,
) -> pd.DataFrame:
    """What differs between ``runs``: a row a run, in their order, indexed by its path.

    Columns: ``name`` and ``seed``; each config value that differs, by its key (None where the
    section is switched off, lists as tuples); ``step``, the last logged, and ``finished``; of
    ``metrics`` the last logged value; of results the mean over all queries under ``condition``, as
    ``"<benchmark>, <n> shots"``. NaN for what a run does not have (yet).
    """
    told = _varied(runs)
    rows = []
    for run in runs:
        logged = run.metrics
        row: dict[str, Any] = {
            "step": int(logged.index[-1]) if len(logged) else 0,
            "finished": run.finished,
        }
        for name in metrics:
            own = logged[name].dropna().tolist() if name in logged else []
            row[name] = own[-1] if own else float("nan")
        scores = run.scores() if run.evaluated else pd.DataFrame(columns=[*CELL, *NUMBERS])
        for _, score in scores[scores["condition"] == condition.value].iterrows():
            row[f"{score['benchmark']}, {score['shots']} shots"] = score["mean"]
        rows.append(row)
    return pd.concat([told, pd.DataFrame(rows, index=told.index)], axis=1)


def scores(runs: Sequence[Run], group: str | None = ALL) -> pd.DataFrame:
    """:meth:`Run.scores` of all ``runs`` that have results, one below the other.

    In front of each row the ``run`` (its path), its ``name``, ``seed`` and config values that
    differ, as in :func:`frame`. Raises ``ValueError`` for a ``group`` that none of them has.
    """
    return of_group(_stacked(runs, [r.scores(None) if r.evaluated else None for r in runs]), group)


def metrics(runs: Sequence[Run]) -> pd.DataFrame:
    """:attr:`Run.metrics` of all ``runs``, one below the other, as :func:`scores`; ``step`` is a
    column."""
    logged = [run.metrics for run in runs]
    return _stacked(runs, [own.reset_index() if len(own) else None for own in logged])


def _varied(runs: Sequence[Run]) -> pd.DataFrame:
    """Name, seed and the config values that differ, indexed by path."""
    configs = [run.config for run in runs]
    columns = {"name": [c.name for c in configs], "seed": [c.seed for c in configs]}
    index = pd.Index([str(run.path) for run in runs], name="run")
    return pd.DataFrame({**columns, **differing(configs)}, index=index)


def _stacked(runs: Sequence[Run], tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame:
    told = _varied(runs).reset_index()
    parts = [
        told.iloc[[place] * len(table)].reset_index(drop=True).join(table.reset_index(drop=True))
        for place, table in enumerate(tables)
        if table is not None
    ]
    return pd.concat(parts, ignore_index=True) if parts else told.iloc[:0]
