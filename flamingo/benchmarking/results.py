"""What a case gave, as JSON: a file a case, so that a benchmark goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flamingo.benchmarking.cases import Case
from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.counting import Counted
from flamingo.benchmarking.roofline import Machine
from flamingo.files import write_atomically


@dataclass
class Measured:
    """One contender in one case."""

    seconds: list[float]
    """A unit, by round."""
    memory: int | None = None
    counted: Counted | None = None
    planned: float | None = None
    """FLOPs by our own formulas, of the cases that have one."""


@dataclass
class CaseResult:
    """All contenders in one case; ``failed`` has the reasons of those that could not."""

    case: Case
    measured: dict[str, Measured]
    failed: dict[str, str]
    machine: Machine
    settings: dict[str, Any]
    circumstances: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        values = asdict(self) | {"case": self.case.name}
        write_atomically(case_file(folder, self.case), json.dumps(values, indent=1) + "\n")


def case_file(folder: Path, case: Case) -> Path:
    """Where the result of ``case`` is."""
    return folder / "cases" / f"{case.name}.json"


def finished(
    folder: Path, case: Case, settings: Mapping[str, Any], wanted: Collection[Who] = ()
) -> CaseResult | None:
    """The case's result, if it is there and all of ``wanted`` took part in it.

    Raises ``ValueError`` for one that was made with other settings.
    """
    path = case_file(folder, case)
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    unlike = {
        name: (values["settings"].get(name), settings.get(name))
        for name in sorted({*values["settings"], *settings})
        if values["settings"].get(name) != settings.get(name)
    }
    if unlike:
        told = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in unlike.items())
        raise ValueError(
            f"{path}: made with other settings ({told}); give another name=, or overwrite=true"
        )
    if {who.value for who in wanted} - {*values["measured"], *values["failed"]}:
        return None
    measured = {
        name: Measured(
            own["seconds"],
            own["memory"],
            None if own["counted"] is None else Counted(**own["counted"]),
            own["planned"],
        )
        for name, own in values["measured"].items()
    }
    return CaseResult(
        case,
        measured,
        values["failed"],
        Machine(**values["machine"]),
        values["settings"],
        values["circumstances"],
    )
