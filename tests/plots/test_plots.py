"""What the pictures hold: the data of their axes, their labels, and marks beside the colours."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from flamingo.choices import Condition
from flamingo.evaluation.permutation import paired_permutation
from flamingo.plots import (
    Exhibit,
    figure_bytes,
    plot_arms,
    plot_confusion,
    plot_differences,
    plot_gallery,
    plot_gates,
    plot_groups,
    plot_lines,
    plot_loss,
    plot_visibility,
)
from flamingo.plots.images import square
from flamingo.plots.lines import ENOUGH_IMAGES
from flamingo.plots.style import BLUE, COLOURS, LINES, ORANGE, VERMILLION, arm_line


def row(condition: str, group: str, mean: float | None, **more: Any) -> dict[str, Any]:
    interval = {"low": None, "high": None} if mean is None else {"low": mean - 0.1, "high": 0.95}
    own = {"benchmark": "toys", "shots": 2, "condition": condition, "group": group, "mean": mean}
    return own | interval | {"n": 10} | more


RESULTS = {
    "benchmarks": [{"name": "toys", "title": "Toys", "unit": "images", "metric": "exact_match"}],
    "model": [
        row("real", "all", 0.8, n=30),
        row("real", "shape", 0.9),
        row("real", "colour", 0.7, n=20),
        row("blank_query", "all", 0.5),
        row("blank_query", "shape", 0.4, low=None, high=None),
        row("real", "unknown", None),
        row("real", "all", 0.1, shots=4),
    ],
    "baselines": [],
}
IMAGE = Image.new("RGB", (40, 20), "red")


def drawn(figure: Figure) -> bytes:
    return figure_bytes(figure)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def ticks(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_bars_by_type_hold_the_results_and_differ_in_hatch():
    figure = plot_groups(RESULTS, "toys", shots=2, conditions=["real", "blank_query", "swap_query"])
    (panel,) = figure.axes
    bars = [found for found in panel.containers if isinstance(found, BarContainer)]
    assert [[bar.get_height() for bar in found] for found in bars] == [[0.8, 0.7, 0.9], [0.5, 0.4]]
    assert len({found[0].get_hatch() for found in bars}) == 2
    assert len({found[0].get_facecolor() for found in bars}) == 2
    assert ticks(panel.get_xticklabels()) == ["all\nn = 30 (10)", "colour\nn = 20", "shape\nn = 10"]
    assert panel.get_xlabel() == "n: queries of the first bar (of the others)"
    assert legend(figure) == ["model", "query image blanked"]
    assert panel.get_ylabel() == "accuracy, %"
    assert drawn(figure)


def test_bars_of_all_conditions_differ_in_hatch_for_some_have_one_colour():
    names = [condition.value for condition in Condition]
    rows = [row(name, "all", 0.5) for name in names]
    figure = plot_groups({**RESULTS, "model": rows}, "toys", shots=2, conditions=names)
    (panel,) = figure.axes
    bars = [found[0] for found in panel.containers if isinstance(found, BarContainer)]
    assert len({bar.get_hatch() for bar in bars}) == len(bars) == len(names)
    assert len({bar.get_facecolor() for bar in bars}) < len(bars)
    assert legend(figure) == [condition.label for condition in Condition]


def test_bars_of_equally_many_queries_say_so_once():
    (panel,) = plot_groups(RESULTS, "toys", shots=2, conditions=["real"]).axes
    assert ticks(panel.get_xticklabels()) == ["all\nn = 30", "colour\nn = 20", "shape\nn = 10"]
    assert panel.get_xlabel() == ""
    three = [row("swap_query", "all", 0.4, n=10), row("blur_query", "all", 0.4, n=8)]
    more = {**RESULTS, "model": [*RESULTS["model"], *three]}
    asked = ["real", "blank_query", "swap_query", "blur_query"]
    (panel,) = plot_groups(more, "toys", shots=2, conditions=asked).axes
    assert ticks(panel.get_xticklabels())[0] == "all\nn = 30 (10, 8)"
    (panel,) = plot_groups(RESULTS, "toys", shots=2, conditions=["blank_query"]).axes
    assert ticks(panel.get_xticklabels()) == ["all\nn = 10", "colour\n", "shape\nn = 10"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"benchmark": "x", "shots": 2}, r"benchmark: expected one of \['toys'\], got 'x'"),
        ({"benchmark": "toys", "shots": 3}, r"shots: expected one of \[2, 4\], got 3"),
    ],
)
def test_bars_of_what_was_not_evaluated_are_refused(asked: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        plot_groups(RESULTS, **asked)


def test_a_confusion_counts_right_answers_down_and_given_ones_across():
    targets = ["cat", "cat", "cat", "dog", "cow", "emu"]
    answers = ["cat", "dog", "cat", "dog", "cat", "yes"]
    figure = plot_confusion(targets, answers, most=2)
    (panel,) = figure.axes
    assert ticks(panel.get_yticklabels()) == ["cat", "dog", "other"]
    cells = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in panel.texts
    }
    assert cells == {(0, 0): "2", (0, 1): "1", (1, 1): "1", (2, 0): "1", (2, 2): "1"}
    shade = panel.images[0].get_array()
    assert shade is not None
    assert shade.tolist() == [
        [pytest.approx(2 / 3), pytest.approx(1 / 3), 0],
        [0, 1, 0],
        [0.5, 0, 0.5],
    ]
    with pytest.raises(ValueError, match="answers: expected as many as targets, 1, got 2"):
        plot_confusion(["a"], ["a", "b"])


def test_an_answer_that_reads_other_has_a_place_beside_all_others():
    (panel,) = plot_confusion(["other", "other", "cat", "emu"], ["other", "cat", "cat", "yes"],
                              most=2).axes  # fmt: skip
    assert ticks(panel.get_yticklabels()) == ["other", "cat", "other"]
    shade = panel.images[0].get_array()
    assert shade is not None
    assert shade.tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]


def test_a_confusion_has_no_other_where_all_answers_are_shown():
    (panel,) = plot_confusion(["a", "b"], ["b", "b"]).axes
    assert ticks(panel.get_xticklabels()) == ["b", "a"]


def test_lines_hold_each_arm_with_its_interval_in_the_order_given():
    points = pd.DataFrame(
        {
            "shots": [4, 0, 0, 4],
            "mean": [0.5, 0.25, 0.1, 0.2],
            "low": [0.4, 0.2, None, 0.2],
            "high": [0.7, 0.3, None, 0.2],
            "arm": ["b", "b", "a", "a"],
        }
    )
    figure = plot_lines(points, x="shots", by="arm", ylabel="accuracy")
    (panel,) = figure.axes
    assert legend(figure) == ["b", "a"]
    first, second = [c for c in panel.containers if isinstance(c, ErrorbarContainer)]
    assert [list(found[0].get_ydata()) for found in (first, second)] == [[0.25, 0.5], [0.1, 0.2]]
    assert ticks(panel.get_xticklabels()) == ["0", "4"]
    spans = [segment[:, 1].tolist() for segment in first[2][0].get_segments()]
    assert spans == [[0.2, 0.3], [pytest.approx(0.4), pytest.approx(0.7)]]
    styles = {(found[0].get_marker(), found[0].get_linestyle()) for found in (first, second)}
    assert len(styles) == 2
    split = plot_lines(points, x="shots", by="arm", panel="arm")
    assert [axis.get_title(loc="left") for axis in split.axes] == ["b", "a"]
    with pytest.raises(ValueError, match=r"columns: expected \['seed'\] too"):
        plot_lines(points, x="shots", by="seed")


TOYS = {"name": "toys", "title": "Toys", "unit": "images", "metric": "exact_match"}


def arm(label: str, shots: int, mean: float, **more: Any) -> dict[str, Any]:
    own = {"benchmark": "toys", "arm": label, "condition": "real", "shots": shots, "mean": mean}
    return own | {"low": mean - 0.1, "high": mean + 0.2, "source": ""} | more


def test_arms_stand_beside_published_numbers_without_intervals():
    rows = [
        arm("ours", 4, 0.5),
        arm("ours", 0, 0.3),
        arm("printed", 0, 0.2, condition="text_only_zero_shot", source="paper"),
        arm("printed", 8, 0.6, source="paper"),
    ]
    figure = plot_arms([TOYS], rows)
    (panel,) = figure.axes
    assert legend(figure) == ["ours", "printed (published)"]
    assert ticks(panel.get_xticklabels()) == ["text-only\n“0”", "0", "4", "8"]
    (ours,) = [found for found in panel.containers if isinstance(found, ErrorbarContainer)]
    assert list(ours[0].get_xdata()) == [1, 2]
    assert list(ours[0].get_ydata()) == [pytest.approx(30), pytest.approx(50)]
    spans = [segment[:, 1].tolist() for segment in ours[2][0].get_segments()]
    assert spans == [[pytest.approx(20), pytest.approx(50)], [pytest.approx(40), pytest.approx(70)]]
    thin = [line for line in panel.lines if line.get_linewidth() < 1]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in thin] == [
        ([0], [pytest.approx(20)]),
        ([3], [pytest.approx(60)]),
    ]
    assert panel.get_ylabel() == "accuracy, %"


def test_a_published_model_looks_alike_beside_any_benchmark():
    def marker(rows: list[dict[str, Any]]) -> Any:
        (line,) = plot_arms([TOYS], rows, published=["a", "b"]).axes[0].lines
        return line.get_marker(), line.get_color()

    first, second = (arm(name, 4, 0.5, source="paper") for name in "ab")
    assert marker([second]) != marker([first])
    both = plot_arms([TOYS], [second, first], published=["a", "b"]).axes[0].lines
    assert [(line.get_marker(), line.get_color()) for line in both] == [
        marker([second]),
        marker([first]),
    ]


def differences(*rows: tuple[str, float, float | None, float | None, int]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["label", "mean", "low", "high", "clusters"])


def marks(figure: Figure) -> list[Any]:
    (panel,) = figure.axes
    return [c[0] for c in panel.containers if isinstance(c, ErrorbarContainer)]


def test_a_difference_is_filled_where_its_interval_leaves_out_zero():
    rows = differences(
        ("apart", 0.2, 0.1, 0.3, 9), ("below", -0.2, -0.3, -0.1, 9), ("with", 0.1, -0.1, 0.3, 9)
    )
    figure = plot_differences(rows, xlabel="accuracy")
    (panel,) = figure.axes
    drawn = marks(figure)
    assert [float(m.get_xdata()[0]) for m in drawn] == [0.2, -0.2, 0.1]
    assert [m.get_markerfacecolor() for m in drawn] == [BLUE, BLUE, "white"]
    assert [m.get_color() for m in drawn] == [BLUE, BLUE, ORANGE]
    assert legend(figure) == ["interval leaves out 0", "not told from none"]
    assert ticks(panel.get_yticklabels()) == ["apart", "below", "with"]
    bottom, top = panel.get_ylim()
    assert bottom > top  # the first row on top


def test_a_difference_that_all_images_agree_on_is_told_and_looks_like_no_other():
    rows = differences(
        ("apart", 0.2, 0.1, 0.3, 60),
        ("always", 1.0, None, None, 60),
        ("never", -1.0, None, None, 6),
        ("few images", 1.0, None, None, 5),
        ("one image", 0.3, None, None, 1),
        ("same", 0.0, None, None, 60),
        ("same but for rounding", 1e-17, None, None, 60),
    )
    figure = plot_differences(rows)
    (panel,) = figure.axes
    bars = [c.has_xerr for c in panel.containers if isinstance(c, ErrorbarContainer)]
    assert bars == [True] + [False] * 6
    drawn = marks(figure)
    assert [m.get_markerfacecolor() for m in drawn] == [BLUE] * 3 + ["white"] * 4
    assert [m.get_marker() for m in drawn] == ["D", "s", "s", "D", "D", "D", "D"]
    told = ["interval leaves out 0", "nothing varies: no interval", "not told from none"]
    assert legend(figure) == told


def test_so_many_images_as_are_enough_are_told_by_the_sign_flip_test():
    for images in range(1, 12):
        p = paired_permutation([1.0] * images, [0.0] * images, range(images)).p_value
        assert (p < 0.05) == (images >= ENOUGH_IMAGES)


def test_differences_without_a_count_of_images_are_refused():
    rows = differences(("same", 0.0, None, None, 9)).drop(columns="clusters")
    with pytest.raises(ValueError, match=r"columns: expected \['clusters'\] too"):
        plot_differences(rows)


def test_a_gallery_says_right_and_wrong_with_a_mark_beside_the_colour():
    exhibits = [
        Exhibit([IMAGE, IMAGE], ["red?", "query"], "red", right=True),
        Exhibit([IMAGE], ["$5"], "blue", right=False),
        Exhibit([IMAGE], ["query"], "grey"),
    ]
    figure = plot_gallery(exhibits)
    said = [text for panel in figure.axes for text in panel.texts]
    assert [text.get_text() for text in said] == ["✓ red", "✗ blue", "grey"]
    assert said[1].get_color() == VERMILLION
    shown = [panel for panel in figure.axes if panel.images]
    assert [panel.get_title() for panel in shown] == ["red?", "query", "$5", "query"]
    assert drawn(figure)  # a lone dollar is no formula
    long = Exhibit([IMAGE], ["is there a gray shape in the image?\nno"], "no")
    (title,) = [panel.get_title() for panel in plot_gallery([long]).axes if panel.images]
    assert title == "is there a gray\nshape in the\nimage?\nno"
    with pytest.raises(ValueError, match=r"exhibits\[0\].captions: expected 1, .* got 2"):
        plot_gallery([Exhibit([IMAGE], ["a", "b"], "x")])
    with pytest.raises(ValueError, match="expected at least one"):
        plot_gallery([])


def test_visibility_shows_a_panel_for_each_rule():
    mask = np.array([[True, False], [False, True], [False, False]])
    figure = plot_visibility({"one": mask, "two": ~mask}, ["a", "$b", "c"], [IMAGE, IMAGE])
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("one", "two")
    array = first.collections[0].get_array()
    assert array is not None and array.reshape(3, 2).tolist() == mask.tolist()
    assert ticks(first.get_yticklabels()) == ["a", "$b", "c"]
    assert drawn(figure)


@pytest.mark.parametrize("plot", [plot_loss, plot_gates])
def test_training_is_drawn_alike_from_entries_and_from_a_data_frame(plot):
    entries = [
        {"step": 10, "train/loss": 2.0, "gate/layer_1/attention": 0.5, "gate/layer_1/ff": 0.1},
        {"step": 20, "train/loss": 1.0, "gate/layer_1/attention": 0.6, "gate/layer_1/ff": 0.2},
        {"step": 20, "validation/loss": 1.5},
    ]
    frame = pd.DataFrame(entries).set_index("step")
    lines = [
        [line.get_xydata().tolist() for line in plot(metrics).axes[0].lines]
        for metrics in (entries, frame)
    ]
    assert lines[0] == lines[1]
    assert [[10, 2.0], [20, 1.0]] in lines[0] or [[10, 0.5], [20, 0.6]] in lines[0]


def test_losses_are_told_apart_without_their_colours():
    sources = ("", "/binding", "/easy_vqa", "/laion")
    entries = [
        {"step": step, **{f"{part}/loss{own}": 1.0 for own in sources}}
        for step in range(1, 301)
        for part in (["train"] if step % 100 else ["train", "validation"])
    ]
    figure = plot_loss(entries)
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert legend(figure) == list(lines) and len(lines) == 8
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines.values()}) == 8
    for own in sources:
        train, validation = lines[f"train/loss{own}"], lines[f"validation/loss{own}"]
        assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")
        assert train.get_marker() == validation.get_marker() != ""
        assert train.get_color() == validation.get_color()
    assert drawn(figure)


def test_gates_of_ten_layers_are_told_apart_without_their_shades():
    names = [f"gate/layer_{i}/{branch}" for i in range(10) for branch in ("attention", "ff")]
    figure = plot_gates([{"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)])
    lines = figure.axes[0].lines
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 20


@pytest.mark.parametrize("points", [1, 2, 7, 8, 100])
def test_every_line_has_some_of_its_markers_and_not_too_many(points):
    entries = [
        {"step": step, **{f"train/loss/{name}": 1.0 for name in "abcdef"}} for step in range(points)
    ]
    for line in plot_loss(entries).axes[0].lines:
        places: Any = line.get_markevery()
        first, every = places
        assert 1 <= len(range(first, points, every)) <= 15


def test_styles_differ_in_more_than_colour():
    arms = [arm_line(i) for i in range(30)]
    assert len({(line.colour, line.marker, line.dash) for line in arms}) == 30
    assert len({(line.marker, line.dash) for line in arms[:8]}) == 8
    conditions = [(line.marker, line.dash) for line in LINES.values()]
    assert len(set(conditions)) == len(conditions)
    assert len(set(COLOURS)) == 6


def test_images_are_drawn_as_models_see_them_upright_and_on_white() -> None:
    lying = Image.new("RGB", (20, 10), "red")
    lying.paste("blue", (10, 0, 20, 10))  # the right half; upright it is the upper one
    exif = lying.getexif()
    exif[0x0112] = 8  # to be turned by 90 degrees, anticlockwise
    stored = io.BytesIO()
    lying.save(stored, "png", exif=exif)
    shown = square(Image.open(stored))
    assert (shown.getpixel((112, 20)), shown.getpixel((112, 204))) == ((0, 0, 255), (255, 0, 0))
    assert square(Image.new("RGBA", (4, 4), (0, 0, 0, 0))).getpixel((100, 100)) == (255, 255, 255)
