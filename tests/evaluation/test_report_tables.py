"""The report's tables and curves for every metric, from toy results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flamingo.choices import Condition
from flamingo.evaluation.report import RunFacts, gallery, write_report
from flamingo.evaluation.report_tables import Table, headline, power_table, sections
from flamingo.evaluation.results import collect
from flamingo.evaluation.runner import Outcome
from flamingo.evaluation.tables import table
from flamingo.plots import plot_shots

from . import toys

CONDITIONS = [
    Condition.real,
    Condition.blank_query,
    Condition.reversed_order,
    Condition.text_only_zero_shot,
]
RUN = RunFacts("toy", 1, [], "", {"protocol": "native"}, ["make it"])


def results_of(benchmarks, outcome: Outcome) -> dict[str, Any]:
    return collect(benchmarks, outcome, None, {"precision": "fp32"}, step=1, seed=0)


@pytest.fixture(scope="module")
def evaluated():
    benchmarks = [toys.vqa((0, 1)), toys.captions((0, 1)), toys.yes_no()]
    outcome = toys.outcome(benchmarks, CONDITIONS, control_queries=8)
    return results_of(benchmarks, outcome), outcome


def lines(shown: Table | None) -> dict[str, list[str]]:
    assert shown is not None
    return {line.label: [f"{c.main} {c.small}".strip() for c in line.cells] for line in shown.lines}


def row(results, benchmark: str, shots: int, condition: str = "real", group: str = "all"):
    (found,) = [
        r
        for r in results["model"]
        if (r["benchmark"], r["shots"], r["condition"], r["group"])
        == (benchmark, shots, condition, group)
    ]
    return found


def cell(found) -> str:
    numbers = [100 * found[name] for name in ("mean", "low", "high")]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*numbers)


def test_each_benchmark_says_metric_normalisation_queries_draws_and_prompt(evaluated) -> None:
    vqa, captions, memes = sections(evaluated[0])
    assert vqa["how"].startswith(
        "VQA accuracy, %; normalisation of answers: official (only where the annotators' answers "
        "differ). 24 queries on 12 images, 2 draws of demonstrations."
    )
    assert captions["how"].startswith("CIDEr-D × 100;")
    assert vqa["prompt"] == "<image>{question} {answer}<|endofchunk|>"
    assert "1 draw of" in memes["how"]


def test_groups_have_their_own_intervals(evaluated) -> None:
    results, _ = evaluated
    shown = sections(results)[0]["scores"]
    own = [line for line in shown.lines if line.kind == "group"][:2]
    assert [line.label for line in own] == ["colour (n = 12)", "shape (n = 12)"]
    for line, group in zip(own, ("colour", "shape"), strict=True):
        for place, shots in enumerate((0, 2, 4)):
            shown = f"{line.cells[place].main} {line.cells[place].small}"
            assert shown == cell(row(results, "toy_vqa", shots, group=group))


def test_text_only_zero_shot_is_no_zero_shot_of_the_model(evaluated) -> None:
    results, _ = evaluated
    shown = lines(sections(results)[0]["scores"])
    real, texts = shown["model"], shown['text-only "0-shot" (n = 8)']
    assert texts == [cell(row(results, "toy_vqa", 0, "text_only_zero_shot")), "–", "–"]
    assert real[0] == cell(row(results, "toy_vqa", 0))
    printed = [line for line in table(results).splitlines() if 'text-only "0-shot"' in line]
    assert len(printed) == 3
    (curve, *_) = plot_shots(results).axes
    blue = next(line for line in curve.lines if line.get_color() == "#0072B2")
    assert list(blue.get_ydata()) == [row(results, "toy_vqa", s)["mean"] for s in (0, 2, 4)]


def test_captions_are_in_cider_times_a_hundred_above_a_hundred(evaluated) -> None:
    results, _ = evaluated
    mean = row(results, "toy_captions", 0)["mean"]
    assert mean > 1
    top = headline(results, results["benchmarks"][1])
    assert top is not None
    assert top["metric"] == "CIDEr-D × 100"
    assert "chance" not in top["beside"]
    assert f"{100 * mean:.1f} ±" in table(results)
    panel = plot_shots(results).axes[1]
    assert panel.get_ylabel() == "CIDEr-D × 100"
    assert panel.get_ylim()[1] > mean
    assert panel.yaxis.get_major_formatter()(1.5) == "150"
    assert plot_shots(results).axes[0].get_ylim() == (0, 1.02)
    assert "BLEU-4" in lines(sections(results)[1]["metrics"])


def test_spread_by_source_where_there_are_several_draws(evaluated) -> None:
    results, _ = evaluated
    vqa, _, memes = sections(results)
    found = row(results, "toy_vqa", 4)
    shown = lines(vqa["spread"])
    assert [cells[0] for cells in shown.values()] == ["–"] * 3, "nothing is drawn at 0 shots"
    names = ("error_new_seeds", "error_new_images", "standard_error")
    assert [cells[2] for cells in shown.values()] == [f"± {100 * found[n]:.1f}" for n in names]
    assert memes["spread"] is None


def test_bias_shows_what_is_beyond_the_right_answers(evaluated) -> None:
    results, _ = evaluated
    shown = sections(results)[2]["bias"]
    labels = [line.label for line in shown.lines]
    assert labels[:2] == ["copies the last answer", "beyond the right answers"]
    found = next(
        r
        for r in results["bias"]
        if (r["benchmark"], r["shots"], r["measure"]) == ("toy_yes_no", 4, "copy_last")
    )
    assert found["excess"]["mean"] == 0
    assert shown.lines[1].cells[-1].main == "0.0", "without a sign"


def test_detectable_effects_stand_in_one_table(evaluated) -> None:
    results, _ = evaluated
    shown = lines(power_table(results))
    assert list(shown) == [
        "Toy VQA: VQA accuracy, %",
        "Toy captions: CIDEr-D × 100",
        "Toy yes or no: accuracy, %",
    ]
    assert shown["Toy VQA: VQA accuracy, %"][:2] == ["4", "24"]


def test_the_page_shows_it_all(evaluated, tmp_path: Path) -> None:
    page = write_report(tmp_path, *evaluated, RUN).read_text()
    for text in ("CIDEr-D × 100", "Bias and grounding", "What these numbers can show", "F1 of yes"):
        assert text in page
    assert "Scores against shots" in page


def test_an_area_that_is_undefined_breaks_nothing(tmp_path: Path) -> None:
    benchmark = toys.yes_no(shots=[2], metric=None)
    outcome = toys.outcome([benchmark], CONDITIONS[:2], control_queries=2)  # two circles
    results = results_of([benchmark], outcome)
    assert row(results, "toy_memes", 2, "blank_query")["mean"] is None
    assert lines(sections(results)[0]["scores"])["query image blanked (n = 2)"] == ["–"]
    assert "| -" in table(results)
    write_report(tmp_path, results, outcome, RUN)


def test_a_benchmark_without_annotations_is_shown_without_verdicts(tmp_path: Path) -> None:
    benchmark = toys.captions(shots=[2])
    outcome = toys.outcome([benchmark], [Condition.real])
    ((known, own),) = outcome.cells
    blank = replace(known, episodes=[replace(e, references=()) for e in known.episodes])
    hidden = Outcome([(blank, own)], [], 1, 1.0)
    (shown,) = gallery(hidden)
    assert [episode["right"] for episode in shown["episodes"]] == [None] * 3
    results = results_of([benchmark], hidden)
    assert results["model"] == []
    write_report(tmp_path, results, hidden, RUN)


def test_partial_scores_are_told_beside_the_verdict() -> None:
    def answerer(condition, episode, draw) -> tuple[str, float]:
        return ("thing" if "0" in episode.query.id else episode.references[0]), 0.5

    outcome = toys.outcome([toys.vqa(shots=[2])], [Condition.real], answerer)
    (shown,) = gallery(outcome)
    told = {(episode["right"], episode["score"]) for episode in shown["episodes"]}
    # One of ten annotators said "thing": (9 * 1 + 0) / 30.
    assert told == {(True, ""), (False, "VQA accuracy 30.0")}
    captions = toys.outcome([toys.captions(shots=[2])], [Condition.real])
    for episode in gallery(captions)[0]["episodes"]:
        assert episode["score"].startswith("CIDEr-D ")
