"""What a reopened run is asked for and lacks: said with what there is, and before loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from flamingo.naming import ALL
from flamingo.structured import nearest


def choose(name: str, value: object, known: Sequence[str]) -> None:
    """Raise ``ValueError`` naming the argument, what there is, and what is nearest to ``value``."""
    names = sorted(set(known))
    if value not in names:
        near = nearest(str(value), names)
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}{near}")


def of_group(table: pd.DataFrame, group: str | None, known: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of ``group``; all for None. Raises ``ValueError`` for one neither there nor known."""
    if group is None or "group" not in table:
        return table
    if known or len(table):
        choose("group", group, [ALL, *known, *table["group"]])
    return table.loc[table["group"] == group].reset_index(drop=True)


NEEDED = (
    *("benchmark", "condition", "shots", "query", "demonstrations"),
    *("prompt", "candidates", "prompt_hash"),
)
"""Columns of a prediction that say which images it showed."""


def as_row(row: object) -> dict[str, Any]:
    """One prediction, of either table. Raises ``ValueError`` for what is none, or not all of it."""
    if not isinstance(row, Mapping | pd.Series):
        kind = type(row).__name__
        if isinstance(row, pd.DataFrame):
            kind = f"a DataFrame of {len(row)}: take one of them, frame.iloc[0]"
        raise ValueError(
            f"row: expected one row of run.episodes() or run.predictions(), got {kind}"
        )
    prediction: dict[str, Any] = dict(row)
    if missing := [name for name in NEEDED if name not in prediction]:
        raise ValueError(
            f"row: expected one row of run.episodes() or run.predictions() with all its columns, "
            f"got none of {', '.join(missing)}"
        )
    return prediction


def check_backbones(language_model: object, vision_encoder: object) -> None:
    """Raise ``ValueError``, saying how it is loaded, for one that is no model."""
    for field, given in (("language_model", language_model), ("vision_encoder", vision_encoder)):
        if given is not None and not isinstance(given, nn.Module):
            section = field.partition("_")[0]
            name = str(given) if isinstance(given, str | Path) else "..."
            raise ValueError(
                f"{field}: expected a loaded model, got {given!r}; a folder's or a hub's is loaded "
                f"by flamingo.backbones.{section}.load_{field}("
                f"dataclasses.replace(run.config.{section}, name={name!r}, revision=None))"
            )


def check_device(device: torch.device | str) -> None:
    """Raise ``ValueError``, naming those of this machine, for a device that it has not."""
    kinds = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    refusal = f"device: expected one of this machine ({', '.join(kinds)}), got {str(device)!r}"
    try:
        known = torch.device(device)
    except RuntimeError as error:  # with a list of all that torch was ever built for
        raise ValueError(refusal) from error
    try:
        torch.empty(0, device=known)
    # torch says an AssertionError of a kind of device that it was not built for.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{refusal}: {str(error).splitlines()[0]}") from error
