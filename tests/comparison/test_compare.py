"""A comparison from runs on disk to the files it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from flamingo.choices import Condition, Metric
from flamingo.comparison import compare
from flamingo.comparison.arms import make_arms
from flamingo.comparison.compare import Comparison, Settings, compute, read, write
from flamingo.comparison.differences import Draws
from flamingo.comparison.examples import Agreement, choose
from flamingo.comparison.output import Output
from flamingo.comparison.pictures import Data, Thumbnails
from flamingo.comparison.published import chosen, load_published
from flamingo.comparison.samples import Sample
from flamingo.config import TrainingConfig
from flamingo.runs import Run
from flamingo.types import ImageRef

from .written import answers, predicted, write_run

REAL = [Condition.real]
SETTINGS = Settings(
    draws=Draws(500, 100), published=chosen(load_published(), ["Flamingo-9B"]), examples=3
)


def vqa(right: str, shots: int = 0) -> list:
    """VQAv2 with ten equal answers each."""
    return answers(right, shots=shots, references=["yes"] * 10)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    metrics = {"vqav2": Metric.vqa_accuracy}
    return [
        write_run(
            folder,
            name,
            {
                ("vqav2", "real"): [vqa(zero), vqa(four, 4)],
                ("vqav2", "text_only_zero_shot"): [vqa("1000")],
            },
            metrics=metrics,
        )
        for name, zero, four in (("a", "1100", "1110"), ("b", "0111", "1111"))
    ]


@pytest.fixture(scope="module")
def comparison(runs: list[Run]) -> Comparison:
    return read(runs, [Condition.real, Condition.text_only_zero_shot], labels=list("ABCD"))


def test_arms_are_runs_times_conditions(runs: list[Run], comparison: Comparison) -> None:
    arms = make_arms(runs, [Condition.real, Condition.text_only_zero_shot])
    assert [arm.label for arm in arms] == [
        "a, seed 0",
        'a, seed 0: text-only "0-shot"',
        "b, seed 0",
        'b, seed 0: text-only "0-shot"',
    ]
    assert comparison.reference.label == "A"
    pairs = [(one.arm.label, other.arm.label, one.shots) for one, other in comparison.pairs]
    assert pairs == [("A", "B", 0), ("A", "C", 0), ("A", "C", 4), ("A", "D", 0)]


def test_published_zero_shot_stands_under_text_only(comparison: Comparison) -> None:
    (shots, *_), figure, _ = compute(comparison, SETTINGS)
    assert shots.header[2:5] == ["text-only “0”", "0", "4"]
    cells = {row[1]: row[2:] for row in shots.rows}
    assert cells["A"][0] == "–" and cells["A"][1].startswith("50.0 [")
    assert cells["B"][0].startswith("25.0 [") and cells["B"][1] == "–"
    assert cells["Flamingo-9B (published)"] == ["51.8", "–", "56.3", "58.0", "59.4", "60.4"]
    (panel,) = (axes for axes in figure.axes if axes.axison)
    ticks = [label.get_text() for label in panel.get_xticklabels()]
    assert ticks == ["text-only\n“0”", "0", "4", "8", "16", "32"]
    lines = [
        (list(line.get_xdata()), [round(float(y), 1) for y in line.get_ydata()])
        for line in panel.get_lines()
    ]
    assert ([0], [51.8]) in lines, "not joined with the numbers of true shots"
    assert ([2, 3, 4, 5], [56.3, 58.0, 59.4, 60.4]) in lines
    assert [50.0, 75.0] in [y for _, y in lines]


def test_files_hold_the_same_numbers(comparison: Comparison, tmp_path: Path) -> None:
    output = Output.claim(tmp_path / "out")
    write(comparison, SETTINGS, output, None, "python compare")
    names = {path.name for path in output.folder.iterdir()}
    tables = {f"{t}.{s}" for t in ("shots", "groups", "differences", "biases") for s in SUFFIXES}
    assert names == tables | {"shots.png", "shots.svg", "index.html", "comparison.json"}
    frame = pd.read_csv(output.folder / "shots.csv")
    own = frame[(frame["arm"] == "C") & (frame["shots"] == 0)].iloc[0]
    assert (own["mean"], own["n"], own["metric"]) == (0.75, 4, "vqa_accuracy")
    tests = pd.read_csv(output.folder / "differences.csv")
    assert list(tests["difference"]) == [-0.25, 0.25, 0.25, -0.25]
    assert set(tests["tests"]) == {4}
    assert "4 tests: p of the paired permutation test, corrected by Holm's method" in (
        output.folder / "differences.md"
    ).read_text(encoding="utf-8")
    groups = pd.read_csv(output.folder / "groups.csv")
    assert groups[(groups["arm"] == "A") & (groups["shots"] == 4)]["mean"].tolist() == [1.0, 0.5]
    assert Image.open(output.folder / "shots.png").format == "PNG"


SUFFIXES = ("md", "tex", "csv")


# ---------------------------------------------------------------------------- the page


def page_of(comparison: Comparison, folder: Path, examples: int = 50) -> tuple[str, dict]:
    settings = Settings(draws=Draws(200, 100), examples=examples)
    write(comparison, settings, Output.claim(folder), None, "python compare <x>")
    html = (folder / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return html, json.loads(found.group(1)) if found else {}


def test_the_page_needs_no_network_and_shows_what_is_said(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    first = write_run(tmp_path / "runs", "a", {("bench", "real"): [answers("11")]})
    second = write_run(
        tmp_path / "runs", "b", {("bench", "real"): [[predicted(i, evil) for i in range(2)]]}
    )
    html, data = page_of(read([first, second], REAL), tmp_path / "out")
    assert evil not in html
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', html)
    assert "://" not in re.sub(r"data:[^\"]*", "", html)
    assert "python compare &lt;x&gt;" in html
    (cell,) = data["cells"]
    assert cell["examples"][0]["answers"][1]["answer"] == evil
    assert cell["totals"] == {"first": 2, "second": 0, "both": 0, "neither": 0}
    assert data["prompts"] == ["<image>asked?"], "each prompt once"


def test_demonstrations_are_shown_with_their_text_in_the_prompt(
    comparison: Comparison, tmp_path: Path
) -> None:
    _, data = page_of(comparison, tmp_path / "out")
    cell = next(c for c in data["cells"] if c["shots"] == "4")
    shown = cell["examples"][0]["answers"][0]["demonstrations"]
    assert shown == [
        {"id": f"train/0{i}", "image": None, "text": "<image>shown? yes"} for i in range(4)
    ]


def test_one_arm_has_tables_and_no_browser(runs: list[Run], tmp_path: Path) -> None:
    html, data = page_of(read(runs[:1], REAL), tmp_path / "out")
    assert not data and "one arm alone" in html
    assert not (tmp_path / "out" / "differences.md").exists()


def test_disagreements_are_shown_first_and_the_rest_is_counted(tmp_path: Path) -> None:
    texts = ["yes", "yes", "no", "no", "maybe"]
    first = write_run(
        tmp_path, "a", {("bench", "real"): [[predicted(i, t) for i, t in enumerate(texts)]]}
    )
    texts = ["yes", "yes", "yes", "no", "no"]
    second = write_run(
        tmp_path, "b", {("bench", "real"): [[predicted(i, t) for i, t in enumerate(texts)]]}
    )
    ((one, other),) = read([first, second], REAL).pairs
    cell = choose(one, other, 3)
    assert [example.first.query for example in cell.examples] == ["test/2", "test/4", "test/0"]
    assert cell.totals == {
        Agreement.first: 0,
        Agreement.second: 1,
        Agreement.both: 2,
        Agreement.neither: 2,
    }
    assert cell.left_out == 2


def test_an_image_is_written_once_and_small(tmp_path: Path) -> None:
    opened = []

    def show() -> Image.Image:
        opened.append(1)
        return Image.new("RGB", (600, 300), "red")

    def damaged() -> Image.Image:
        raise ValueError("damaged")

    thumbnails = Thumbnails(tmp_path / "images")
    names = {thumbnails.of(ImageRef("a/1", show)) for _ in range(3)}
    assert len(opened) == 1
    (name,) = names
    assert name is not None
    assert Image.open(tmp_path / name).size == (144, 72)
    assert thumbnails.of(ImageRef("a/2", damaged)) is None
    assert thumbnails.damaged == ["a/2"]


# ---------------------------------------------------------------------------- refusals


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"out: expected a new or empty folder"):
        Output.claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_earlier_comparison_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    earlier = Output.claim(tmp_path / "out")
    earlier.write("old.md", "old")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "beside.txt").write_text("not in it")
    earlier.note(["../beside.txt"])
    Output.claim(tmp_path / "out").write("new.md", "new")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"new.md", "notes.txt", "comparison.json"}
    assert (tmp_path / "beside.txt").exists()


def test_an_earlier_comparison_stays_until_the_new_one_is_computed(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    Output.claim(tmp_path / "out").write("index.html", "old")
    for step in ("compute", "_images"):
        monkeypatch.setattr(compare, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(comparison, SETTINGS, Output.claim(tmp_path / "out"), Data(), "")
        assert (tmp_path / "out" / "index.html").read_text() == "old"
        monkeypatch.undo()


def test_unknown_names_are_told_with_the_known_ones(runs: list[Run]) -> None:
    with pytest.raises(ValueError, match=r"expected some of \['real', 'text_only_zero_shot'\]"):
        read(runs, [Condition.blank_query])
    with pytest.raises(ValueError, match=r"benchmarks: expected some of \['vqav2'\], got \['coco'"):
        read(runs, REAL, benchmarks=["coco"])
    with pytest.raises(ValueError, match=r"reference: expected one of \['a, seed 0', 'b, seed 0'"):
        read(runs, REAL, reference="c")
    with pytest.raises(ValueError, match="labels: expected 2, one for each of 2 runs x 1"):
        read(runs, REAL, labels=["x"])
    with pytest.raises(ValueError, match=r"expected a different one for each arm"):
        read([runs[0], runs[0]], REAL)


def test_a_run_without_results_is_refused(runs: list[Run], tmp_path: Path) -> None:
    run = write_run(tmp_path, "c", {("vqav2", "real"): [vqa("11")]})
    run.directory.results.unlink()
    with pytest.raises(ValueError, match="expected the results of an evaluation"):
        read([*runs, run], REAL)


def test_one_benchmark_under_two_metrics_is_refused(runs: list[Run], tmp_path: Path) -> None:
    metrics = {"vqav2": Metric.vqa_accuracy_always}
    run = write_run(tmp_path, "c", {("vqav2", "real"): [vqa("1111")]}, metrics=metrics)
    with pytest.raises(ValueError, match="expected one metric for all arms"):
        read([runs[0], run], REAL)


def test_arms_with_nothing_in_common_are_refused(runs: list[Run], tmp_path: Path) -> None:
    run = write_run(tmp_path, "c", {("coco", "real"): [answers("11")]})
    with pytest.raises(ValueError, match="vqav2 at 0, vqav2 at 4 against coco at 0"):
        read([runs[0], run], REAL)


def test_other_protocols_and_fewer_queries_are_said(runs: list[Run], tmp_path: Path) -> None:
    run = write_run(
        tmp_path,
        "c",
        {("vqav2", "real"): [vqa("111")]},
        metrics={"vqav2": Metric.vqa_accuracy},
        settings={"evaluation": {"protocol": "open_flamingo"}},
    )
    notes = read([runs[0], run], REAL).notes
    assert any(
        "different protocols" in note and "c, seed 0: open_flamingo" in note for note in notes
    )
    assert (
        "Differences from c, seed 0 are on the queries that both have: 3 of 4 and 3 (VQAV2)."
        in (notes)
    )


def test_arms_before_the_last_step_of_their_training_are_said(tmp_path: Path) -> None:
    cells = {("vqav2", condition): [vqa("1100")] for condition in ("real", "text_only_zero_shot")}
    metrics = {"vqav2": Metric.vqa_accuracy}
    half, whole, published = (
        write_run(
            tmp_path,
            name,
            cells,
            metrics=metrics,
            config={"training": TrainingConfig(steps=steps, warmup_steps=1)},
        )
        for name, steps in (("half", 1400), ("whole", 7), ("published", 1400))
    )
    published.directory.conversion.write_text("{}")
    both = [Condition.real, Condition.text_only_zero_shot]
    notes = read([half, whole, published], both, labels=list("ABCDEF")).notes
    assert notes == ["Evaluated after 7 of 1,400 training steps: A; B."]


def test_every_sample_is_of_its_arm(comparison: Comparison) -> None:
    def told(sample: Sample) -> tuple[str, int, float]:
        return sample.arm.label, sample.shots, float(sample.means.mean())

    assert [told(sample) for sample in comparison.samples] == [
        ("A", 0, 0.5),
        ("A", 4, 0.75),
        ("B", 0, 0.25),
        ("C", 0, 0.75),
        ("C", 4, 1.0),
        ("D", 0, 0.25),
    ]
