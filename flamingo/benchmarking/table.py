"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.numbers import Ratio, Spread, paired_ratio
from flamingo.benchmarking.results import CaseResult, Measured
from flamingo.benchmarking.roofline import Machine, roof
from flamingo.benchmarking.runner import OWN_RESAMPLER, TRAINING

MIB = 2**20
HEAD = (
    "| contender | median | quartiles | least | rounds | to the bare LM | to ours | MiB at peak "
    "| GFLOP | GFLOP/s | of peak | of the roof |",
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
)


def table(results: Sequence[CaseResult], heading: str) -> str:
    """A section a case; ``heading`` says what was measured, and where."""
    return "\n\n".join([heading, *map(section, results)]) + "\n"


def section(result: CaseResult) -> str:
    """One case: a row a contender, then what the step costs beyond its parts, then failures."""
    lines = [f"### {result.case.value} (`{result.case.name}`)", "", *HEAD]
    lines += [_row(name, result) for name in result.measured]
    if (beyond := beyond_parts(result)) is not None:
        lines += [
            "",
            f"Ours costs {_interval(beyond, percent=True)} of its step beyond the bare LM and the "
            "resampler on the real images.",
        ]
    if checked := _planned(result):
        lines += ["", checked]
    if result.failed:
        lines += ["", *(f"- {name}: {reason}" for name, reason in result.failed.items())]
    return "\n".join(lines)


def beyond_parts(result: CaseResult) -> Ratio | None:
    """What our training step costs beyond the bare LM's and our resampler, as a part of it."""
    names = (Who.ours.value, Who.bare.value, OWN_RESAMPLER)
    if result.case not in TRAINING or any(name not in result.measured for name in names):
        return None
    ours, bare, resampler = (result.measured[name].seconds for name in names)
    rest = [a - b - c for a, b, c in zip(ours, bare, resampler, strict=False)]
    return paired_ratio(rest, ours)


def _row(name: str, result: CaseResult) -> str:
    own = result.measured[name]
    spread = Spread.of(own.seconds)
    cells = [
        name,
        duration(spread.median),
        f"{duration(spread.lower)} to {duration(spread.upper)}",
        duration(spread.least),
        str(spread.rounds),
        *(_against(own, result.measured.get(other.value)) for other in (Who.bare, Who.ours)),
        "" if own.memory is None else f"{own.memory / MIB:,.0f}",
        *_roofline(own, spread.median, result.machine),
    ]
    return f"| {' | '.join(cells)} |"


def _against(own: Measured, other: Measured | None) -> str:
    if other is None or other is own:
        return ""
    return _interval(paired_ratio(own.seconds, other.seconds))


def _interval(ratio: Ratio, percent: bool = False) -> str:
    values = (ratio.median, ratio.low, ratio.high)
    if percent:
        median, low, high = (f"{100 * value:.0f} %" for value in values)
    else:
        median, low, high = (f"{value:.2f}" for value in values)
    return f"{median} ({low} to {high})"


def _roofline(own: Measured, seconds: float, machine: Machine) -> list[str]:
    if own.counted is None:
        return [""] * 4
    reached = roof(own.counted, seconds, machine)
    return [
        f"{own.counted.flops / 1e9:,.1f}",
        f"{reached.flops / 1e9:,.0f}",
        f"{reached.of_peak:.0%}",
        f"{reached.of_roof:.0%}",
    ]


def _planned(result: CaseResult) -> str:
    """The counter against the plan's formulas, which both may be wrong in."""
    told = [
        f"{name} {own.counted.flops / own.planned:.3f}"
        for name, own in result.measured.items()
        if own.counted is not None and own.planned
    ]
    return f"FLOPs counted over those of the plan's formulas: {', '.join(told)}." if told else ""


def duration(seconds: float) -> str:
    """With three digits, in s or ms."""
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    digits = max(0, 2 - floor(log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f} {unit}"


def heading(results: Sequence[CaseResult], where: str) -> str:
    """What stands above the table of ``results``, whose cases may come from several runs.

    Whoever took part in any case has its note (that of its last case). Peaks of the machine are a
    range where runs differ; of an agreement the worst is told.
    """
    told = [result.circumstances for result in results]
    notes = {who: own["notes"][who.name] for own in told for who in Who if who.name in own["notes"]}
    agreement = {
        who: max(own["agreement"][who.name] for own in told if who.name in own["agreement"])
        for who in Who
        if any(who.name in own["agreement"] for own in told)
    }
    peaks = [(result.machine.flops / 1e9, result.machine.bytes / 1e9) for result in results]
    products, copies = zip(*peaks, strict=True)
    lines = [
        "## Speed",
        "",
        f"{where}. Peaks of the machine, measured in the same process: "
        f"{_range(products, 0)} GFLOP/s (matrix product), {_range(copies, 1)} GB/s (copy).",
        "",
        "Time of a call (or of a token, or a query, where the case says so), medians over rounds, "
        "in turns. Ratios are paired by round: the median, and an interval that holds it with "
        "95 % (from six rounds on; below that, least and greatest).",
        "",
        *(f"- {who.value}: {notes[who]}" for who in Who if who in notes),
    ]
    for who, difference in agreement.items():
        lines += [
            "",
            f"{who.value} has our weights: before timing, logits in fp32 differed by at most "
            f"{difference:.1e} of their spread.",
        ]
    return "\n".join(lines)


def _range(values: Sequence[float], digits: int) -> str:
    """One number, or least and greatest where they differ as they are written."""
    ends = dict.fromkeys(f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return " to ".join(ends)
