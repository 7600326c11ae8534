"""The report of a conversion: what went where, and how it was checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from flamingo.interop.check import Check
from flamingo.interop.moves import How, Move, Part


@dataclass(frozen=True)
class Report:
    """Of one conversion."""

    source: str
    target: str
    moves: Sequence[Move]
    notes: Sequence[str]
    checks: Sequence[Check]

    def text(self) -> str:
        """For the terminal."""
        lines = [f"{self.source}\n-> {self.target}", "", table(self.moves), ""]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"checked: {check.what}: {check.found}" for check in self.checks]
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """For ``conversion.json``."""
        return {
            "source": self.source,
            "target": self.target,
            "moves": [
                {
                    "source": list(move.source),
                    "target": move.target,
                    "part": move.part.value,
                    "how": move.how.value,
                    "shape": list(move.shape),
                }
                for move in self.moves
            ],
            "notes": list(self.notes),
            "checks": [{"what": check.what, "found": check.found} for check in self.checks],
        }


def table(moves: Sequence[Move]) -> str:
    """Tensors and numbers by where they went."""
    rows: dict[str, list[int]] = {}
    for move in moves:
        sums = rows.setdefault(_place(move), [0, 0])
        sums[0] += len(move.source)
        sums[1] += prod(move.shape)
    width = max(map(len, rows), default=0)
    lines = [f"  {'to':<{width}} {'tensors':>8} {'parameters':>15}"]
    lines += [f"  {place:<{width}} {n:>8,} {size:>15,}" for place, (n, size) in rows.items()]
    return "\n".join(lines)


def _place(move: Move) -> str:
    match move.part:
        case Part.trained:
            rows = f" ({move.shape[0]} rows)" if move.how is How.rows else ""
            return f"{move.target.split('.')[0]}{rows}"
        case Part.language_model | Part.vision_encoder:
            return f"the {move.part.value}"
        case Part.unused:
            return "nothing: the backbone that was given has its own"
        case Part.copy:
            return "nothing: second names of other tensors"
        case Part.derived:
            return "nothing: tables that the model computes"
