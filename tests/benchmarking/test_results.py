"""A case's file, the table and the plot of results given by hand."""

import json
from dataclasses import replace

import pytest

from flamingo.benchmarking.cases import Case
from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.counting import Counted
from flamingo.benchmarking.plot import plot
from flamingo.benchmarking.results import CaseResult, Measured, case_file, finished
from flamingo.benchmarking.roofline import Machine
from flamingo.benchmarking.runner import OWN_RESAMPLER
from flamingo.benchmarking.table import beyond_parts, duration, heading, section, table

SETTINGS = {"threads": 2, "sizes": {"prompts": 4}}
RESULT = CaseResult(
    case=Case.train_documents,
    measured={
        "bare LM": Measured([1.0, 2.0]),
        "ours": Measured([2.0, 4.0], memory=3 * 2**20, counted=Counted(4e9, 1e9), planned=4e9),
        "OpenFlamingo 2.0.1": Measured([6.0, 16.0]),
        OWN_RESAMPLER: Measured([0.8, 1.2]),
    },
    failed={"Idefics of transformers": "RuntimeError: no"},
    machine=Machine(flops=4e9, bytes=1e10),
    settings=SETTINGS,
    circumstances={"agreement": {"open_flamingo": 3e-6}, "notes": {"bare": "no images"}},
)


def test_a_case_is_read_as_it_was_written(tmp_path):
    assert finished(tmp_path, RESULT.case, SETTINGS) is None
    RESULT.write(tmp_path)
    assert finished(tmp_path, RESULT.case, SETTINGS) == RESULT
    assert json.loads(case_file(tmp_path, RESULT.case).read_text())["case"] == "train_documents"


def test_a_case_of_other_settings_is_refused(tmp_path):
    RESULT.write(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(threads 2 -> 1\).*overwrite=true"):
        finished(tmp_path, RESULT.case, SETTINGS | {"threads": 1})


def test_a_case_is_not_finished_for_a_contender_that_took_no_part(tmp_path):
    RESULT.write(tmp_path)
    assert finished(tmp_path, RESULT.case, SETTINGS, [Who.ours, Who.idefics]) is not None
    assert finished(tmp_path, RESULT.case, SETTINGS, [Who.flamingo_pytorch]) is None


def test_what_a_step_costs_beyond_its_parts_is_paired_by_round():
    beyond = beyond_parts(RESULT)
    assert beyond is not None
    assert (beyond.low, beyond.high) == pytest.approx((0.1, 0.2))  # (2-1-0.8)/2, (4-2-1.2)/4
    assert beyond_parts(replace(RESULT, case=Case.decode)) is None


def test_the_table_has_ratios_roofline_and_failures():
    text = section(RESULT)
    (ours,) = (line for line in text.splitlines() if line.startswith("| ours"))
    cells = [cell.strip() for cell in ours.split("|")[1:-1]]
    assert cells[1] == "3.00 s"
    assert cells[5:] == ["2.00 (2.00 to 2.00)", "", "3", "4.0", "1", "33%", "33%"]
    (theirs,) = (line for line in text.splitlines() if line.startswith("| OpenFlamingo"))
    assert "3.50 (3.00 to 4.00)" in theirs
    assert "Ours costs 15 % (10 % to 20 %) of its step" in text
    assert "FLOPs counted over those of the plan's formulas: ours 1.000." in text
    assert "- Idefics of transformers: RuntimeError: no" in text


def test_the_heading_says_how_it_was_measured():
    text = heading([RESULT], "a CPU")
    assert "4 GFLOP/s (matrix product), 10.0 GB/s (copy)" in text
    assert "- bare LM: no images" in text
    assert "differed by at most 3.0e-06 of their spread" in text
    assert table([RESULT], text).startswith("## Speed\n")


def test_the_heading_tells_of_all_cases_whichever_was_measured_last():
    last = replace(
        RESULT,
        case=Case.decode,
        machine=Machine(flops=3e9, bytes=1e10),
        circumstances={"agreement": {}, "notes": {"ours": "as it is", "bare": "no images"}},
    )
    worse = replace(
        RESULT, case=Case.greedy, circumstances={"agreement": {"open_flamingo": 5e-6}, "notes": {}}
    )
    text = heading([RESULT, worse, last], "a CPU")
    assert "3 to 4 GFLOP/s (matrix product), 10.0 GB/s (copy)" in text
    assert text.index("- bare LM: no images") < text.index("- ours: as it is")
    assert text.count("no images") == 1
    assert "differed by at most 5.0e-06 of their spread" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.1, "100 ms"),
        (2.345, "2.35 s"),
        (123.4, "123 s"),
        (4e-6, "0.00400 ms"),
    ],
)
def test_durations_have_three_digits(seconds, text):
    assert duration(seconds) == text


def test_the_plot_is_drawn(tmp_path):
    plot([RESULT, replace(RESULT, case=Case.decode)], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
