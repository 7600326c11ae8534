"""The page holds everything it shows."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from flamingo.choices import LanguageTraining
from flamingo.config import LanguageConfig, RunConfig
from flamingo.evaluation.perturbations import Condition
from flamingo.evaluation.report import RunFacts, facts_of, gallery, write_report
from flamingo.evaluation.results import collect
from flamingo.evaluation.runner import Cell, LeftOut, Outcome
from flamingo.plots import plot_gates, plot_loss, plot_shots

from . import tiny
from .test_results import outcome_of

METRICS = [
    {"step": 10, "train/loss": 2.0, "train/loss/binding": 2.0, "gate/layer_1/attention": 0.5},
    {"step": 20, "train/loss": 1.0, "train/loss/binding": 1.0, "gate/layer_1/attention": 0.6},
    {"step": 20, "validation/loss": 1.1},
]


def outcome() -> Outcome:
    benchmark = tiny.binding(queries=8)
    result = outcome_of(
        benchmark,
        {0: [0.0, 1.0] * 4, 1: [1.0] * 6 + [0.0] * 2, 2: [1.0] * 4 + [0.0] * 4},
        {0: [0.0] * 8, 1: [1.0] * 8, 2: [0.0] * 8},
    )
    result.left_out.append(LeftOut("synthetic_2_ways", 8, "too few <images>"))
    return result


@pytest.fixture(scope="module")
def results() -> dict:
    return collect([tiny.binding(queries=8)], outcome(), None, {"precision": "x"}, step=5, seed=0)


def facts(metrics=METRICS) -> RunFacts:
    return RunFacts("a <run>", 5, metrics, "training:\n  steps: 5", {"code": "abc"}, ["make it"])


class Page(HTMLParser):
    """Collects images, links out, and text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs) -> None:
        values = dict(attrs)
        if tag == "img":
            self.images.append(values["src"])
        self.links += [values[name] for name in ("href",) if name in values]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> tuple[Path, Page]:
    path = write_report(tmp_path_factory.mktemp("report"), results, outcome(), facts())
    return path, Page(path.read_text())


def test_the_page_needs_no_other_file(page) -> None:
    _, content = page
    assert not content.links
    for source in content.images:
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", source).groups()
        assert Image.open(io.BytesIO(base64.b64decode(data))).format.lower() == kind


def test_the_page_says_everything(page) -> None:
    _, content = page
    for text in ("a <run>", "make it", "steps: 5", "Synthetic, 2 ways", "abc"):
        assert text in content.text
    assert "75.0" in content.text  # accuracy at 1 shot
    assert "too few <images>" in content.text


def test_shots_are_a_picture_beside_it(page) -> None:
    path, _ = page
    with Image.open(path.parent / "shots.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400


def test_the_gallery_shows_right_and_wrong_episodes_with_their_images() -> None:
    (shown,) = gallery(outcome())
    assert shown["shots"] == "2 demonstrations a class"
    assert [episode["right"] for episode in shown["episodes"]] == [True] * 3 + [False] * 3
    first = outcome().cells[2][0].episodes[0]
    episode = shown["episodes"][0]
    assert [d["answer"] for d in episode["demonstrations"]] == [
        d.answer for d in first.demonstrations
    ]
    assert all(d["question"] == "This is a" for d in episode["demonstrations"])
    assert [label for label, _ in episode["controls"]] == ["query image blanked"]


def gallery_with_controls(controls: dict[int, str], condition: Condition) -> list[dict]:
    """The gallery's episodes; ``controls``: a query's place -> its control's prompt hash."""
    benchmark = tiny.binding(queries=8)
    result = outcome_of(benchmark, {2: [1.0, 0.0] * 4})
    ((cell, real),) = result.cells
    real = [replace(p, prompt_hash=f"real {i}") for i, p in enumerate(real)]
    places = sorted(controls)
    own = [replace(real[i], prompt_hash=controls[i], answer="control") for i in places]
    episodes = [cell.episodes[i] for i in places]
    keys = [str(i) for i in places]
    control = Cell(benchmark, 2, 0, condition, episodes, [""] * len(keys), keys)
    (shown,) = gallery(replace(result, cells=[(cell, real), (control, own)]))
    return shown["episodes"]


def test_a_shuffle_that_changed_nothing_is_marked() -> None:
    hashes = {0: "real 0", 2: "another", 1: "real 1"}
    episodes = gallery_with_controls(hashes, Condition.shuffled_answers)
    plain, marked = (
        "demonstration answers shuffled",
        "demonstration answers shuffled (this shuffle changed nothing)",
    )
    assert [[label for label, _ in e["controls"]] for e in episodes] == [
        [marked],  # query 0
        [plain],  # query 2
        [],  # query 4
        [marked],  # query 1
        [],
        [],
    ]


def test_the_mark_is_in_the_page(results, tmp_path) -> None:
    result = outcome()
    cell, predictions = result.cells[2]
    shuffled = replace(cell, condition=Condition.shuffled_answers)
    result.cells.append((shuffled, predictions))
    page = Page(write_report(tmp_path, results, result, facts()).read_text())
    assert "demonstration answers shuffled (this shuffle changed nothing): " in page.text


def test_episodes_with_controls_are_shown_before_earlier_ones_without() -> None:
    episodes = gallery_with_controls({7: "a", 4: "b"}, Condition.blank_query)
    benchmark = tiny.binding(queries=8)
    places = {e.query.id: i for i, e in enumerate(benchmark.episodes(2, 0))}
    shown = [places[episode["prediction"].query] for episode in episodes]
    assert shown == [4, 0, 2, 7, 1, 3]  # right ones are even, wrong ones odd
    assert [bool(e["controls"]) for e in episodes] == [True, False, False] * 2


@pytest.mark.parametrize("train", LanguageTraining)
def test_the_report_says_whether_the_language_model_was_trained(results, train) -> None:
    told = facts_of(RunConfig(language=LanguageConfig(name="lm", train=train)), {}, results)
    words = {"frozen": "lm (frozen)", "full": "lm (trained: full)"}
    assert told["language model"] == words.get(train.value, "lm (trained: scratch)")


def test_a_run_without_metrics_has_a_report(results, tmp_path) -> None:
    path = write_report(tmp_path, results, outcome(), facts(metrics=[]))
    assert "Training" not in Page(path.read_text()).text


def test_the_last_image_gain_of_each_source_is_told(results, tmp_path) -> None:
    gain = "validation/image_gain"
    metrics = [
        *METRICS,
        {"step": 20, f"{gain}/binding": 0.5, f"{gain}/easy_vqa": 0.1},
        {"step": 30, f"{gain}/binding": 1.25, f"{gain}/easy_vqa": -0.0625},
        {"step": 40, "train/loss": 1.0},
    ]
    page = Page(write_report(tmp_path, results, outcome(), facts(metrics=metrics)).read_text())
    assert "binding 1.250, easy_vqa -0.062." in " ".join(page.text.split())


def test_the_curve_of_the_model_has_its_means_and_intervals(results) -> None:
    (panel,) = plot_shots(results).axes
    rows = [r for r in results["model"] if (r["condition"], r["group"]) == ("real", "all")]
    drawn = {tuple(line.get_ydata()) for line in panel.lines}
    assert tuple(row["mean"] for row in rows) in drawn
    assert tuple(row["low"] for row in rows) in drawn
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "1", "2"]


def test_losses_and_gates_are_drawn_against_their_steps() -> None:
    (loss,) = plot_loss(METRICS).axes
    curves = {line.get_label(): list(line.get_xdata()) for line in loss.lines}
    assert curves == {
        "train/loss": [10, 20],
        "train/loss/binding": [10, 20],
        "validation/loss": [20],
    }
    (gates,) = plot_gates(METRICS).axes
    assert list(gates.lines[0].get_ydata()) == [0.5, 0.6]


def test_losses_stand_on_a_logarithmic_axis_also_where_one_is_zero() -> None:
    (panel,) = plot_loss([*METRICS, {"step": 30, "train/loss/binding": 0.0}]).axes
    assert panel.get_yscale() == "log"
    low, high = panel.get_ylim()
    assert 0.5 < low < 1.0 and 2.0 < high < 4.0


@pytest.mark.parametrize(
    ("values", "zero"), [((0.5, 0.6), False), ((0.6, 0.5), False), ((-0.1, 0.1), True)]
)
def test_gates_fill_their_axis_and_zero_is_drawn_only_where_they_reach_it(values, zero) -> None:
    metrics = [{"step": step, "gate/layer_1/attention": v} for step, v in enumerate(values)]
    (panel,) = plot_gates(metrics).axes
    low, high = panel.get_ylim()
    span = max(values) - min(values)
    assert min(values) - 0.2 * span < low < min(values)
    assert max(values) < high < max(values) + 0.2 * span
    assert any(list(line.get_ydata()) == [0, 0] for line in panel.lines) is zero


def test_gates_that_never_move_have_a_figure() -> None:
    (panel,) = plot_gates([{"step": s, "gate/layer_1/attention": 0.0} for s in (1, 2)]).axes
    low, high = panel.get_ylim()
    assert low < 0 < high
