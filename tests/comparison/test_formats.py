"""Tables as text: escaped, aligned, and whole for programs."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from flamingo.comparison.cells import p_value, percent, signed, with_interval
from flamingo.comparison.formats import Table, csv, latex, markdown

TABLE = Table(
    name="shots",
    title="Shots",
    caption="100 % of a_b, “quoted”.",
    header=["benchmark", "arm", "0"],
    rows=[["A & B", "x|y", "-1.5 [-2.0, +1.0]"], ["$", "a-1", "< 0.001"]],
    records=[{"mean": 1 / 3, "low": None}],
)


def test_markdown_escapes_its_own_bars() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "## Shots"
    assert lines[2:5] == [
        "| benchmark | arm | 0 |",
        "| --- | --- | ---: |",
        r"| A & B | x\|y | -1.5 [-2.0, +1.0] |",
    ]
    assert lines[-1] == "100 % of a_b, “quoted”."


def test_latex_is_escaped_and_uses_booktabs() -> None:
    text = latex(TABLE)
    assert r"\caption{100 \% of a\_b, ``quoted''.}" in text
    assert r"\begin{tabular}{llr}" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert r"A \& B & x\textbar{}y & $-$1.5 [$-$2.0, +1.0] \\" in text
    assert r"\$ & a-1 & \textless{} 0.001 \\" in text
    assert r"\label{tab:shots}" in text


def test_csv_keeps_every_digit() -> None:
    frame = pd.read_csv(io.StringIO(csv(TABLE)))
    assert frame["mean"][0] == 1 / 3
    assert pd.isna(frame["low"][0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.7494), "74.9"),
        (percent(float("nan")), "–"),
        (signed(0.012), "+1.2"),
        (signed(-0.0031), "-0.3"),
        (signed(-0.0001), "0.0"),
        (p_value(0.0009), "< 0.001"),
        (p_value(0.05), "0.050"),
        (with_interval(0.5, 0.25, 0.75), "50.0 [25.0, 75.0]"),
        (with_interval(0.5, float("nan"), float("nan")), "50.0"),
    ],
)
def test_numbers_are_rounded_for_readers(text: str, expected: str) -> None:
    assert text == expected
