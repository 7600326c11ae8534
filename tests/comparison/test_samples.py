"""Which predictions on disk a number of results.json is made of."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from flamingo.choices import Condition, Metric
from flamingo.comparison.arms import make_arms
from flamingo.comparison.samples import Sample, common, read_samples
from flamingo.evaluation.metrics.caption import cider_d
from flamingo.evaluation.predictions import Prediction
from flamingo.runs import Run

from .written import answers, predicted, write_run

REAL = ("bench", "real")


def samples(run, benchmark: str = "bench") -> list[Sample]:
    (arm,) = make_arms([run], [Condition.real])
    return read_samples(arm, arm.benchmarks[benchmark])


def predictions(run: Run) -> Path:
    return run.directory.predictions_of(*REAL)


def test_scores_are_computed_anew_by_the_benchmark_s_metric(tmp_path: Path) -> None:
    ten = ["cat"] * 3 + ["dog"] * 7
    own = [predicted(0, "cat", "cat", references=ten, score=0.123)]
    run = write_run(tmp_path, "a", {REAL: [own]}, metrics={"bench": Metric.vqa_accuracy})
    (sample,) = samples(run)
    assert sample.scores.tolist() == [[pytest.approx(0.9)]]


def test_queries_are_in_one_order_whatever_that_of_the_file(tmp_path: Path) -> None:
    own = answers("1101")
    run = write_run(tmp_path, "a", {REAL: [own[::-1]]})
    (sample,) = samples(run)
    assert sample.queries == [f"test/{i}" for i in range(4)]
    assert sample.means.tolist() == [1, 1, 0, 1]


def test_draws_of_demonstrations_are_averaged_per_query(tmp_path: Path) -> None:
    first, second = answers("1100", shots=4, seed=0), answers("1010", shots=4, seed=1)
    run = write_run(tmp_path, "a", {REAL: [[*first, *second]]}, seeds=2)
    (sample,) = samples(run)
    assert sample.scores.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]]
    assert sample.means.tolist() == [1, 0.5, 0.5, 0]


def test_a_prediction_that_two_draws_share_counts_for_both(tmp_path: Path) -> None:
    first, second = answers("110", shots=4, seed=0), answers("1", shots=4, seed=1)
    run = write_run(tmp_path, "a", {REAL: [[*first, *second]]}, seeds=2)
    (sample,) = samples(run)
    assert sample.scores.tolist() == [[1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("newer", [True, False])
@pytest.mark.parametrize(
    "others",
    [
        answers("0000", model="step_3-old"),
        answers("0000", seed=5),
        answers("111000")[3:],  # of other queries, the first of which is counted
    ],
)
def test_of_all_predictions_those_that_the_results_count_are_taken(
    tmp_path: Path, newer: bool, others: list[Prediction]
) -> None:
    counted = answers("1110")
    run = write_run(tmp_path, "a", {REAL: [counted]}, extra={REAL: [] if newer else others})
    if newer:
        lines = [json.dumps(asdict(p)) + "\n" for p in others]
        log = predictions(run)
        log.write_text(log.read_text() + "".join(lines))
    (sample,) = samples(run)
    assert sample.queries == [f"test/{i}" for i in range(4)]
    assert sample.means.tolist() == [1, 1, 1, 0]


def test_draws_are_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    first, second = answers("1100", shots=4, seed=0), answers("1010", shots=4, seed=1)
    run = write_run(tmp_path, "a", {REAL: [[*first, *second]]}, seeds=2)
    lines = run.directory.cells.read_text().splitlines(keepends=True)
    run.directory.cells.write_text("".join(reversed(lines)))
    assert samples(run)[0].scores.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]]


def test_a_missing_prediction_is_named(tmp_path: Path) -> None:
    own = answers("1110")
    run = write_run(tmp_path, "a", {REAL: [own]})
    log = predictions(run)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    message = rf"bench/real.jsonl: expected a prediction of key '{own[0].key}'"
    with pytest.raises(ValueError, match=message):
        samples(run)


def test_an_evaluation_of_an_earlier_version_is_to_be_repeated(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", {REAL: [answers("1110")]})
    run.directory.cells.unlink()
    with pytest.raises(ValueError, match=r"cells.jsonl: expected .*: evaluate the run again"):
        samples(run)


def test_results_without_their_cell_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", {REAL: [answers("11"), answers("11", shots=4)]})
    lines = run.directory.cells.read_text().splitlines(keepends=True)
    run.directory.cells.write_text(lines[0])
    with pytest.raises(ValueError, match="expected a cell of bench, real at 4 shots"):
        samples(run)


def test_arms_meet_on_their_common_queries(tmp_path: Path) -> None:
    first = samples(write_run(tmp_path, "a", {REAL: [answers("1101")]}))[0]
    second = samples(write_run(tmp_path, "b", {REAL: [answers("000111")[2:]]}))[0]
    one, other = common(first, second)
    assert one.queries == other.queries == ["test/2", "test/3"]
    assert (one.means.tolist(), other.means.tolist()) == ([0, 1], [0, 1])


def test_cider_s_idf_is_that_of_the_common_queries(tmp_path: Path) -> None:
    texts = ["a cat on a mat", "a dog in the sun", "the cat and a boat", "one red bus"]
    own = [predicted(i, "a cat in the sun", text) for i, text in enumerate(texts)]
    run = write_run(tmp_path, "a", {REAL: [own]}, metrics={"bench": Metric.cider})
    (sample,) = samples(run)
    _, direct = cider_d({"0": own[0].answer, "1": own[1].answer}, {"0": texts[:1], "1": texts[1:2]})
    assert sample.only(["test/0", "test/1"]).means.tolist() == pytest.approx(list(direct.values()))
    assert not np.allclose(sample.means[:2], list(direct.values()))


def test_arms_without_a_common_query_are_refused_with_their_seeds(tmp_path: Path) -> None:
    first = samples(write_run(tmp_path, "a", {REAL: [answers("11")]}))[0]
    moved = [replace(p, query=f"test/{i + 7}") for i, p in enumerate(answers("11"))]
    second = samples(write_run(tmp_path, "b", {REAL: [moved]}, seed=3))[0]
    with pytest.raises(ValueError, match=r"got none \(drawn by the seeds 0 and 3\)"):
        common(first, second)


def test_one_id_for_two_images_is_refused(tmp_path: Path) -> None:
    first = samples(write_run(tmp_path, "a", {REAL: [answers("11")]}))[0]
    second = samples(write_run(tmp_path, "b", {REAL: [answers("11", image=9)]}))[0]
    told = r"2 of 2 ids, such as 'test/0' \(\S+, \S+\), name another image"
    with pytest.raises(ValueError, match=told):
        common(first, second)


def test_a_torn_last_line_is_left_alone_and_a_line_of_another_form_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", {REAL: [answers("1110")]})
    path = run.directory.predictions / "bench" / "real.jsonl"
    torn = path.read_text() + '{"key": "x", "mo'
    path.write_text(torn)
    assert samples(run)[0].means.tolist() == [1, 1, 1, 0]
    assert path.read_text() == torn
    path.write_text('{"key": "x"}\n')
    with pytest.raises(ValueError, match=r"real.jsonl, line 1: expected a prediction"):
        samples(run)
