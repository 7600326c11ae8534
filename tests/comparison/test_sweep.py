"""Arms of several seeds: what is said of them, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flamingo.choices import Metric
from flamingo.comparison import sweep_table
from flamingo.comparison.formats import csv
from flamingo.comparison.seeds import difference_over_seeds, mean_over_seeds
from flamingo.comparison.sweep import SweepArm, compare_sweep, read_results, results_text
from flamingo.comparison.sweep_table import (
    control_table,
    difference_table,
    sweep_markdown,
    sweep_tables,
)
from flamingo.evaluation.resampling import paired_bootstrap
from flamingo.evaluation.statistics import student_p_value, student_quantile
from flamingo.plots import Figure, plot_forest
from flamingo.runs import Run

from .written import answers, default, predicted, write_run

# ---------------------------------------------------------------------------- statistics


def test_the_p_value_of_t_agrees_with_its_closed_forms_and_its_quantiles() -> None:
    assert student_p_value(1.0, 1.0) == pytest.approx(0.5)  # Cauchy
    assert student_p_value(-2.0, 2.0) == pytest.approx(1 - 2 / math.sqrt(6))
    assert student_p_value(1.959963984540054, math.inf) == pytest.approx(0.05)
    for freedom in (1.0, 3.7, 30.0):
        quantile = student_quantile(0.975, freedom)
        assert student_p_value(quantile, freedom) == pytest.approx(0.05)


def test_without_a_spread_over_queries_it_is_the_t_test_over_seeds() -> None:
    reference = np.zeros((3, 4))
    arm = np.repeat([[0.1], [0.2], [0.3]], 4, axis=1)
    found = difference_over_seeds(arm, reference, list("abcd"), share=True)
    assert found.mean == pytest.approx(0.2)
    assert found.by_seed == pytest.approx((0.1, 0.2, 0.3))
    # t = 0.2 / (0.1 / sqrt(3)) on 2 degrees of freedom.
    assert found.p_value == pytest.approx(0.0741799)
    assert (found.low, found.high) == pytest.approx((-0.0484138, 0.4484138))


def test_seeds_that_agree_leave_the_spread_over_images() -> None:
    generator = np.random.default_rng(0)
    once = generator.integers(-1, 2, 400).astype(float)
    three = np.stack([once] * 3)
    clusters = [str(i // 2) for i in range(400)]
    found = difference_over_seeds(three, np.zeros((3, 400)), clusters, share=True)
    boot = paired_bootstrap(once.tolist(), [0.0] * 400, clusters).difference
    assert found.standard_error == pytest.approx(boot.standard_error, rel=0.03)
    assert (found.low, found.high) == pytest.approx((boot.low, boot.high), abs=0.01)


def test_seeds_that_differ_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(3, 200))
    clusters = [str(i) for i in range(200)]
    same = difference_over_seeds(noise, np.zeros_like(noise), clusters, share=False)
    apart = noise + np.array([[-1.0], [0.0], [1.0]])
    other = difference_over_seeds(apart, np.zeros_like(noise), clusters, share=False)
    assert other.mean == pytest.approx(same.mean)
    assert other.high - other.low > 5 * (same.high - same.low)


def test_what_cannot_be_told_is_not_a_number() -> None:
    ones = np.ones((2, 3))
    assert math.isnan(difference_over_seeds(ones, 0 * ones, list("aaa"), share=True).p_value)
    same = difference_over_seeds(ones, ones, list("abc"), share=True)
    assert same.p_value == 1.0 and math.isnan(same.low), "no interval of no width"


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_difference_that_does_not_vary_is_tested_by_flipping_signs(seeds: int) -> None:
    ones = np.ones((seeds, 100))
    for count, expected in ((3, 2 / 2**3), (10, 2 / 2**10), (100, 1 / 10_001)):
        clusters = [str(i % count) for i in range(100)]
        for difference in (1.0, 1 / 3, -0.1):
            found = difference_over_seeds(difference * ones, 0 * ones, clusters, share=True)
            assert found.p_value == pytest.approx(expected)
            assert math.isnan(found.low) and math.isnan(found.high)
    # Differences of nothing but rounding are none.
    third = difference_over_seeds((0.1 + 0.2) * ones, 0.3 * ones, clusters, share=True)
    assert third.p_value == 1.0


def test_the_interval_of_a_difference_of_shares_stays_within_100_points() -> None:
    right, wrong = np.ones((2, 4)), np.zeros((2, 4))
    right[0, 0] = 0
    found = difference_over_seeds(right, wrong, "abcd", share=True)
    other = difference_over_seeds(right, wrong, "abcd", share=False)
    assert (found.high, found.low) == (1.0, other.low)
    assert other.high > 1.0
    assert difference_over_seeds(wrong, right, "abcd", share=True).low == -1.0


def test_the_interval_of_a_share_stays_within_its_range_and_keeps_a_width() -> None:
    clusters = [str(i) for i in range(50)]
    for seeds in (1, 3):
        all_right = mean_over_seeds(np.ones((seeds, 50)), clusters, share=True)
        assert (all_right.mean, all_right.high) == (1.0, 1.0)
        assert 0.9 < all_right.low < 0.96
        for share in (True, False):
            equal = mean_over_seeds(np.full((seeds, 50), 0.3), clusters, share=share)
            assert equal.mean == pytest.approx(0.3)
            assert math.isnan(equal.low) and math.isnan(equal.high), "nothing varies"
    apart = np.zeros((2, 50))
    apart[0] = 1
    assert mean_over_seeds(apart, clusters, share=True).low == 0
    assert mean_over_seeds(apart, clusters, share=True).high == 1


# ---------------------------------------------------------------------------- results

RIGHT = {  # by arm and seed: 0 shots, 2 shots, 8 shots
    "reference": ["110010", "111110", "111111"],
    "better": ["110110", "111111", "111111"],
    "worse": ["000010", "100000", "111110"],
}


def run_of(folder: Path, name: str, seed: int, right=None, **config) -> Run:
    lists = right or [shift(own, seed) for own in RIGHT[name]]
    shots = (0, 2, 8)
    return write_run(
        folder,
        name,
        {("bench", "real"): [answers(r, shots=k) for r, k in zip(lists, shots, strict=True)]},
        config={"seed": seed, **config},
    )


def shift(right: str, seed: int) -> str:
    """Other queries are answered rightly with another seed."""
    return right[seed:] + right[:seed]


def arms(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> list[SweepArm]:
    return [SweepArm(name, [run_of(folder, name, seed) for seed in seeds]) for name in RIGHT]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    return compare_sweep("s", "Which?", arms(tmp_path_factory.mktemp("runs")), shots=4)


def test_a_cell_is_the_mean_over_seeds_and_queries(results: dict) -> None:
    cells = {(cell["arm"], cell["shots"]): cell for cell in results["cells"]}
    assert cells["reference", 0]["mean"] == 0.5
    assert cells["worse", 2]["by_seed"] == [pytest.approx(1 / 6, abs=1e-6)] * 3
    assert (cells["better", 8]["mean"], cells["better", 8]["high"]) == (1.0, 1.0)
    assert {(cell["n"], cell["images"]) for cell in results["cells"]} == {(6, 6)}


def test_a_difference_is_paired_by_seed_and_query(tmp_path: Path) -> None:
    # Each seed's run answers more queries rightly than the one before; the arm always one more than
    # the reference of its seed. Paired, no seed says anything else.
    def right(count: int) -> list[str]:
        return ["1" * count + "0" * (6 - count), "1" * 6, "1" * 6]

    one = [run_of(tmp_path, "a", s, right(s + 1)) for s in (0, 1, 2)]
    two = [run_of(tmp_path, "b", s, right(s + 2)) for s in (0, 1, 2)]
    found = compare_sweep("s", "?", [SweepArm("a", one), SweepArm("b", two[::-1])], shots=0)
    row = found["differences"][0]
    assert row["by_seed"] == [pytest.approx(1 / 6, abs=1e-6)] * 3
    assert row["difference"] == pytest.approx(1 / 6, abs=1e-6)


def test_answers_about_one_image_count_together(tmp_path: Path) -> None:
    def arm(name: str, right: str) -> SweepArm:
        own = [predicted(i, "yes" if r == "1" else "no", image=i // 2) for i, r in enumerate(right)]
        return SweepArm(name, [write_run(tmp_path, name, {("bench", "real"): [own]})])

    found = compare_sweep("s", "?", [arm("a", "0000"), arm("b", "1100")])
    # Residuals add up to 1 and -1 for the two images: 2 / 1 * (1 + 1) / 4^2 = 0.25.
    for row in (found["cells"][1], *found["differences"]):
        assert (row["n"], row["images"], row["standard_error"]) == (4, 2, 0.5)


def test_arms_are_tested_at_the_most_shots_allowed_and_corrected_together(results: dict) -> None:
    tested = [row for row in results["differences"] if row["tested"]]
    assert [(row["arm"], row["shots"]) for row in tested] == [("better", 2), ("worse", 2)]
    low, high = sorted(row["p"] for row in tested)
    assert sorted(row["p_holm"] for row in tested) == pytest.approx([2 * low, max(2 * low, high)])
    assert all(row["p_holm"] is None for row in results["differences"] if not row["tested"])


def test_one_seed_alone_has_student_s_interval_over_images() -> None:
    # t = -1 on 3 degrees of freedom, whose 97.5 % quantile is 3.182446.
    one = np.array([[0.0, 1.0, 1.0, 1.0]])
    found = difference_over_seeds(one, np.ones((1, 4)), "abcd", share=False)
    assert found.mean == -0.25 and found.standard_error == pytest.approx(0.25)
    assert found.p_value == pytest.approx(0.3910022)
    assert (found.low, found.high) == pytest.approx((-0.25 - 0.7956116, -0.25 + 0.7956116))


def test_seeds_that_both_have_are_compared(tmp_path: Path) -> None:
    reference, other, _ = arms(tmp_path)
    found = compare_sweep("s", "?", [reference, replace(other, runs=other.runs[1:2])])
    assert {tuple(row["seeds"]) for row in found["differences"]} == {(1,)}
    assert "Of one seed alone" in difference_table(found).caption
    missing = replace(reference, runs=reference.runs[:1])
    with pytest.raises(ValueError, match=r"'better': expected a seed of 'reference' \(\[0\]\)"):
        compare_sweep("s", "?", [missing, replace(other, runs=other.runs[1:2])])


def test_runs_of_other_steps_or_data_sets_are_refused(tmp_path: Path) -> None:
    reference = SweepArm("reference", [run_of(tmp_path, "reference", 0)])
    longer = replace(default().training, steps=2000)
    other = SweepArm("better", [run_of(tmp_path, "better", 0, training=longer)])
    with pytest.raises(ValueError, match="expected training steps as .*, got 2000, not 1000"):
        compare_sweep("s", "?", [reference, other])
    asked = write_run(
        tmp_path,
        "asked",
        {("bench", "real"): [answers("11")]},
        settings={"evaluation": {"max_tokens": 1}},
    )
    with pytest.raises(ValueError, match=r"data sets and settings .* evaluation.max_tokens 1, not"):
        compare_sweep("s", "?", [reference, SweepArm("asked", [asked])])


def test_runs_of_an_arm_differ_in_their_seed_alone(tmp_path: Path) -> None:
    reference, other, _ = arms(tmp_path, (0,))
    changed = replace(default().training, lr=1.0)
    mixed = SweepArm("better", [*other.runs, run_of(tmp_path, "better", 1, training=changed)])
    with pytest.raises(ValueError, match="differ in their seed alone, got training.lr"):
        compare_sweep("s", "?", [reference, mixed])


def test_other_queries_are_refused(tmp_path: Path) -> None:
    reference, other, _ = arms(tmp_path, (0,))
    fewer = run_of(tmp_path, "fewer", 0, ["11", "11", "11"])
    with pytest.raises(ValueError, match="bench, 0 shots: expected the queries of"):
        compare_sweep("s", "?", [reference, replace(other, runs=[fewer])])


def test_a_metric_that_is_no_mean_is_left_out_and_named(tmp_path: Path) -> None:
    cells = {
        ("bench", "real"): [answers("10")],
        ("memes", "real"): [answers("10", candidates=["yes", "no"])],
    }
    made = [
        SweepArm(name, [write_run(tmp_path, name, cells, metrics={"memes": Metric.roc_auc})])
        for name in ("a", "b")
    ]
    found = compare_sweep("s", "?", made)
    assert found["left_out"] == ["memes"]
    assert {cell["benchmark"] for cell in found["cells"]} == {"bench"}


def test_complete_separation_is_a_test_and_a_single_image_none(tmp_path: Path) -> None:
    def arm(name: str, right: str, **own) -> SweepArm:
        cells = {("bench", "real"): [answers(right, **own)]}
        return SweepArm(
            name, [write_run(tmp_path, f"{name}{s}", cells, config={"seed": s}) for s in (0, 1, 2)]
        )

    found = compare_sweep("s", "?", [arm("none", "0" * 12), arm("all", "1" * 12)])
    (row,) = found["differences"]
    assert (row["difference"], row["low"], row["high"]) == (1.0, None, None)
    assert row["p"] == row["p_holm"] == pytest.approx(2 / 2**12, abs=1e-6)
    table = difference_table(found)
    assert table.rows[0][3:6] == ["+100.0", "< 0.001", "< 0.001"] and "1 tests" in table.caption
    figure = forest(found)
    (panel,) = figure.axes
    (square,) = (line for line in panel.get_lines() if line.get_marker() == "s")
    assert square.get_markerfacecolor() != "white"
    assert "nothing varies: no interval" in [t.get_text() for t in figure.legends[0].get_texts()]

    single = {"cluster": "i"}
    found = compare_sweep("s", "?", [arm("one", "0000", **single), arm("two", "1110", **single)])
    assert found["differences"][0]["p"] is None
    assert "0 tests" in difference_table(found).caption


# ---------------------------------------------------------------------------- files


def forest(results: dict) -> Figure:
    return plot_forest(sweep_table.tested_rows(results), reference=results["reference"])


def test_results_are_read_as_they_were_written(results: dict, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(results_text(results))
    assert read_results(path) == json.loads(json.dumps(results)) == results
    assert len(path.read_text().splitlines()) < 50
    path.write_text('{"sweep": 1}')
    with pytest.raises(ValueError, match=r"s.json: expected the results of a sweep, which has"):
        read_results(path)


def test_results_that_are_kept_with_the_code_can_be_read_and_drawn() -> None:
    files = sorted((Path(__file__).parents[2] / "experiments" / "results").glob("*.json"))
    assert files
    for file in files:
        kept = read_results(file)
        assert kept["sweep"] == file.stem
        assert all(arm["name"] in sweep_markdown(kept) for arm in kept["arms"])
        assert forest(kept).axes


def test_the_table_says_what_was_asked_and_found(results: dict) -> None:
    told = sweep_markdown(results)
    assert told.startswith("Which? 1,000 training steps.")
    assert "| BENCH | reference (3) | 50.0 [" in told
    row = next(line for line in told.splitlines() if line.startswith("| BENCH | worse | 2 |"))
    assert "| -66.7 [" in row and "| -66.7, -66.7, -66.7 | 6 | 6 |" in row
    assert "2 tests (at up to 4 shots)" in told
    assert csv(difference_table(results)).count("\n") == 1 + 2 * 3


def test_the_ticks_of_the_forest_are_written_as_they_are(results: dict) -> None:
    written = forest(results).axes[0].xaxis.get_major_formatter()
    ticks = [written(place, None) for place in (-0.075, 0.0, 0.025, 0.1)]
    assert ticks == ["-7.5", "0", "+2.5", "+10"]


def test_the_forest_shows_each_tested_difference_with_its_interval(results: dict) -> None:
    figure = forest(results)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == ["better", "worse"]
    diamonds = [line for line in panel.get_lines() if line.get_marker() == "D"]
    tested = [row for row in results["differences"] if row["tested"]]
    assert [list(line.get_xdata()) for line in diamonds] == [[r["difference"]] for r in tested]
    told = [row["p_holm"] is not None and row["p_holm"] < 0.05 for row in tested]
    assert [line.get_markerfacecolor() != "white" for line in diamonds] == told
    assert len(figure.legends[0].get_texts()) == 3  # nothing of squares, where there is none
    none = {**results, "differences": []}
    with pytest.raises(ValueError, match="at least one tested difference"):
        forest(none)


def test_controls_stand_beside_each_arm_where_it_is_tested(tmp_path: Path) -> None:
    def with_blank(name: str, right: str, blank: str) -> SweepArm:
        cells = {
            ("bench", "real"): [answers(right, shots=0), answers(right, shots=2)],
            ("bench", "blank_query"): [answers(blank, shots=2)],
        }
        return SweepArm(
            name, [write_run(tmp_path, f"{name}{s}", cells, config={"seed": s}) for s in (0, 1)]
        )

    found = compare_sweep(
        "s", "?", [with_blank("a", "1111", "1000"), with_blank("b", "1110", "0011")]
    )
    told = {
        (row["arm"], row["condition"]): (row["shots"], row["mean"]) for row in found["controls"]
    }
    assert told == {("a", "blank_query"): (2, 0.25), ("b", "blank_query"): (2, 0.5)}
    table = control_table(found)
    assert table.header == ["benchmark", "arm", "shots", "model", "query image blanked"]
    assert [row[1:3] for row in table.rows] == [["a", "2"], ["b", "2"]]
    assert table.rows[1][3].startswith("75.0 [") and table.rows[1][4].startswith("50.0 [")
    assert [own.name for own in sweep_tables(found)] == ["scores", "controls", "differences"]


def test_without_controls_there_is_no_table_of_them(results: dict) -> None:
    assert results["controls"] == []
    assert [own.name for own in sweep_tables(results)] == ["scores", "differences"]
