"""What a reopened run is asked for and lacks: said with what there is, and before loading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    return table[table["group"] == group].reset_index(drop=True)


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
    try:
        torch.empty(0, device=device)
    # torch says an AssertionError of a kind of device that it was not built for.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        kinds = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device: expected one of this machine ({', '.join(kinds)}), got {str(device)!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
