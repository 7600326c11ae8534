"""A table as Markdown, LaTeX (booktabs) and CSV.

Markdown and LaTeX are for readers: rounded, in per cent. CSV is for programs: a row a number, as
fractions, unrounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Table:
    """``header`` and ``rows`` for readers, the first ``names`` columns of which are text;
    ``records`` for programs. ``name`` is that of its files."""

    name: str
    title: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping[str, Any]]
    names: int = 2


def markdown(table: Table) -> str:
    """A heading, the table, its caption."""
    rule = ["---" if i < table.names else "---:" for i in range(len(table.header))]
    lines = [_line(table.header), _line(rule, escape=False), *map(_line, table.rows)]
    return "\n".join([f"## {table.title}", "", *lines, "", table.caption, ""])


def _line(cells: Sequence[str], escape: bool = True) -> str:
    texts = [cell.replace("\\", "\\\\").replace("|", "\\|") if escape else cell for cell in cells]
    return f"| {' | '.join(text.replace(chr(10), ' ') for text in texts)} |"


def latex(table: Table) -> str:
    """A ``table`` environment; needs ``\\usepackage{booktabs}``."""
    frame = pd.DataFrame([list(map(_tex, row)) for row in table.rows])
    columns = "l" * table.names + "r" * (len(table.header) - table.names)
    return frame.to_latex(
        index=False,
        header=list(map(_tex, table.header)),
        escape=False,
        column_format=columns,
        caption=_tex(table.caption),
        label=f"tab:{table.name}",
        position="t",
    )


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "“": "``",
    "”": "''",
    '"': r"\textquotedbl{}",
    "–": "--",
    "×": r"$\times$",
    "±": r"$\pm$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _tex(text: str) -> str:
    """Escaped; a minus before a number is one."""
    escaped = "".join(_SPECIAL.get(character, character) for character in text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)


def csv(table: Table) -> str:
    """``records``, with a header; an empty cell is what does not apply."""
    return pd.DataFrame(list(table.records)).to_csv(index=False)
