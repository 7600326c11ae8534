"""Baselines and tables against literal values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamingo.choices import Condition
from flamingo.evaluation.baselines import (
    Baseline,
    PooledFeatures,
    last,
    majority,
    nearest_centroid,
    positive,
)
from flamingo.evaluation.metrics.classification import exact_match
from flamingo.evaluation.predictions import Prediction
from flamingo.evaluation.prompts import Episode, Item
from flamingo.evaluation.report_tables import Shown, sections
from flamingo.evaluation.results import collect
from flamingo.evaluation.runner import Cell, Outcome
from flamingo.evaluation.tables import table
from flamingo.testing import synthetic_images
from flamingo.types import Media

from . import tiny, toys

IMAGES = synthetic_images(12)


def item(index: int, answer: str, question: str = "q") -> Item:
    return Item(str(index), Media((IMAGES[index],)), question, answer)


def episode(target: str, *answers: str) -> Episode:
    shown = tuple(item(i + 1, answer) for i, answer in enumerate(answers))
    return Episode(item(0, target), shown, len(answers), cluster="i")


def test_rules_give_every_answer_they_leave_open() -> None:
    assert majority(episode("red", "blue", "red", "red")) == ("red",)
    assert majority(episode("red", "red", "blue")) == ("blue", "red")
    assert last(episode("red", "blue", "red")) == ("red",)
    assert [positive(guess) for guess in (("yes",), ("no",), ("no", "yes"), ())] == [1, 0, 0.5, 0.5]


def test_answers_match_up_to_case_and_space() -> None:
    assert exact_match(" Red ", "red") == 1.0
    assert exact_match("redd", "red") == 0.0
    assert exact_match("", "red") == 0.0


def test_the_nearest_centroid_is_that_of_a_class_not_of_an_image() -> None:
    shown = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0], [3.0, 3.0]])
    words = ["a", "a", "b", "b"]  # centroids (2, 0) and (2, 3)
    assert nearest_centroid(torch.tensor([2.0, 1.0]), shown, words) == "a"
    assert nearest_centroid(torch.tensor([1.2, 2.0]), shown, words) == "b"
    assert nearest_centroid(torch.tensor([2.0, 1.5]), shown, words) == "a", "a tie"


def test_pooled_features_are_patch_means_standardised_over_the_images() -> None:
    features = torch.randn(12, 1, 16, 5, generator=torch.Generator().manual_seed(0))
    position = {image.key: index for index, image in enumerate(IMAGES)}

    def load(media):
        return features[[position[m.frames[0].key] for m in media]]

    episodes = [episode("a", *"abc"), Episode(item(5, "b"), (item(1, "a"),), 1)]
    first, second = PooledFeatures(load, batch_size=2).of(episodes)
    pooled = features[[0, 1, 2, 3, 5]].mean(dim=(1, 2))
    expected = (pooled - pooled.mean(0)) / pooled.std(0)
    torch.testing.assert_close(first, expected[:4])
    torch.testing.assert_close(second, expected[[4, 1]])


def test_the_centroid_of_readable_features_binds_nearly_always() -> None:
    benchmark = tiny.binding(ways=2, queries=100)
    outcome = outcome_of(benchmark, {2: [0.0] * 100})
    results = collect([benchmark], outcome, PooledFeatures(tiny.load_media()), {}, step=1, seed=0)
    rows = {row["condition"]: row for row in results["baselines"]}
    assert rows["centroid"]["mean"] > 0.9
    assert rows["chance"]["mean"] == 0.5
    assert rows["majority"]["mean"] == 0.5, "every word is shown equally often"
    assert rows["last"]["mean"] == pytest.approx(0.5, abs=0.2)
    assert "prior" not in rows


def outcome_of(benchmark, scores: dict[int, list[float]], controls=None) -> Outcome:
    """Predictions with these scores, by shots; the second half of the queries is group b."""
    outcome = Outcome(new=8, seconds=2.0)
    for condition, by_shots in ((Condition.real, scores), (Condition.blank_query, controls or {})):
        for shots, own in by_shots.items():
            episodes = benchmark.episodes(shots, 0)[: len(own)]
            keys = [str(i) for i in range(len(own))]
            predictions = [
                Prediction(
                    key=key,
                    model="m",
                    query=e.query.id,
                    shots=shots,
                    demonstrations=[],
                    prompt_hash="",
                    prompt="",
                    candidates=[],
                    raw="",
                    answer=e.query.answer if score else "wrong",
                    target=e.query.answer,
                    probability=0.5,
                    score=score,
                    group="a" if i < len(own) / 2 else "b",
                    cluster=str(i),
                )
                for i, (key, e, score) in enumerate(zip(keys, episodes, own, strict=True))
            ]
            cell = Cell(benchmark, shots, 0, condition, episodes, [""] * len(keys), keys)
            outcome.cells.append((cell, predictions))
    return outcome


def test_rows_of_all_queries_of_groups_and_of_differences() -> None:
    benchmark = tiny.binding(queries=4)
    outcome = outcome_of(benchmark, {0: [1.0, 1.0, 1.0, 0.0]}, {0: [0.0, 1.0]})
    results = collect([benchmark], outcome, None, {"x": 1}, step=7, seed=3)
    means = {(r["condition"], r["group"]): (r["mean"], r["n"]) for r in results["model"]}
    assert means == {
        ("real", "all"): (0.75, 4),
        ("real", "a"): (1.0, 2),
        ("real", "b"): (0.5, 2),
        ("blank_query", "all"): (0.5, 2),
        ("blank_query", "a"): (0.0, 1),
        ("blank_query", "b"): (1.0, 1),
    }
    (difference,) = results["differences"]
    assert (difference["mean"], difference["n"]) == (0.5, 2)  # of the two queries both have
    assert results["timing"]["queries_per_second"] == 4.0
    assert (results["step"], results["seed"], results["settings"]) == (7, 3, {"x": 1})
    single = next(r for r in results["model"] if r["n"] == 1)
    assert single["standard_error"] is None, "JSON knows no NaN"


@pytest.mark.parametrize("draws", [1, 2])
def test_a_control_that_changes_nothing_differs_by_0_without_an_interval(draws: int) -> None:
    benchmark = tiny.binding(queries=4)
    outcome = outcome_of(benchmark, {0: [1.0, 1.0, 0.0, 0.0]}, {0: [1.0, 1.0, 0.0, 0.0]})
    if draws == 2:
        outcome.cells += [(replace(cell, seed=1), own) for cell, own in outcome.cells]
    results = collect([benchmark], outcome, None, {}, step=1, seed=0)
    (difference,) = results["differences"]
    numbers = [difference[name] for name in ("mean", "standard_error", "low", "high")]
    assert numbers == [0.0, 0.0, None, None] and difference["seeds"] == draws
    gap = next(row for row in results["bias"] if row["measure"] == "blank_image_gap")
    assert (gap["mean"], gap["low"]) == (0.0, None)
    (section,) = sections(results)
    shown = [cell for line in section["bias"].lines for cell in line.cells]
    assert Shown("0.0", "[–]") in shown and "nan" not in str(shown)


@pytest.mark.parametrize("draws", [1, 2])
def test_the_interval_of_a_difference_of_shares_ends_at_100_points(draws: int) -> None:
    benchmark = tiny.binding(queries=3)
    outcome = outcome_of(benchmark, {0: [1.0, 1.0, 1.0]}, {0: [0.0, 0.0, 1.0]})
    if draws == 2:
        outcome.cells += [(replace(cell, seed=1), own) for cell, own in outcome.cells]
    results = collect([benchmark], outcome, None, {}, step=1, seed=0)
    (difference,) = results["differences"]
    # Unbounded: 2/3 +- 4.303 (t on 2 degrees of freedom) / 3.
    assert difference["low"] == pytest.approx(2 / 3 - 4.302653 / 3)
    assert difference["high"] == 1.0 and difference["seeds"] == draws


def test_the_printed_table() -> None:
    benchmark = tiny.binding(queries=4, shots=[0, 1])
    outcome = outcome_of(benchmark, {0: [1.0, 0.0, 1.0, 0.0], 1: [1.0] * 4}, {0: [0.0, 1.0]})
    lines = table(collect([benchmark], outcome, None, {}, step=1, seed=0)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[:1] + cells[2:4] == [
        ["benchmark", "", "0 shots", "1 shots"],
        # Wilson's interval of 4 of 4: 1 / (1 + 1.96^2 / 4) = 0.510
        ["Synthetic, 2 ways: accuracy, %", "model", "50.0 ±28.9", "100.0 [51.0, 100.0]"],
        ["", "query image blanked", "50.0 ±50.0", "-"],
    ]
    assert cells[-1] == ["", "chance", "50.0", "50.0"]
    assert lines[1].endswith(" | ---------: | ------------------: |")
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_answers_that_are_all_worth_the_same_part_have_no_interval_and_look_it(seeds) -> None:
    benchmark = toys.vqa(seeds, shots=[2])
    # One of ten annotators said "thing".
    outcome = toys.outcome([benchmark], [Condition.real], lambda *_: ("thing", 0.5))
    results = collect([benchmark], outcome, None, {}, step=1, seed=0)
    assert {row["group"] for row in results["model"]} == {"all", "colour", "shape"}
    for row in results["model"]:
        assert row["mean"] == pytest.approx(0.3) and row["low"] is row["high"] is None
    (printed,) = [line for line in table(results).splitlines() if "| model" in line]
    assert printed.split("|")[3].strip() == "30.0 [–]"
    (section,) = sections(results)
    model, *_ = section["scores"].lines
    assert model.cells == [Shown("30.0", "[–]")] and "nan" not in str(section)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_captions_that_are_all_worth_nothing_have_no_interval(seeds) -> None:
    benchmark = toys.captions(seeds, shots=[2])
    outcome = toys.outcome([benchmark], [Condition.real], lambda *_: ("nothing", 0.5))
    (row,) = collect([benchmark], outcome, None, {}, step=1, seed=0)["model"]
    assert row["mean"] == 0 and row["low"] is row["high"] is None


def test_a_rule_that_ties_on_every_query_is_exact_wherever_it_is_shown() -> None:
    benchmark = tiny.binding(queries=8, shots=[1])
    results = collect([benchmark], outcome_of(benchmark, {1: [1.0] * 8}), None, {}, step=1, seed=0)
    tied = next(row for row in results["baselines"] if row["condition"] == "majority")
    numbers = [tied[name] for name in ("mean", "standard_error", "low", "high")]
    assert numbers == [0.5, 0, 0.5, 0.5], "each word is shown once"
    (printed,) = [line for line in table(results).splitlines() if "majority" in line]
    assert printed.split("|")[3].strip() == "50.0"
    (section,) = sections(results)
    (line,) = [line for line in section["scores"].lines if line.label.startswith("majority")]
    assert [(cell.main, cell.small) for cell in line.cells] == [("50.0", "")]


def test_every_baseline_and_condition_has_a_label_and_a_line() -> None:
    from flamingo.naming import CONDITION_LABELS
    from flamingo.plots.style import LINES

    names = {c.value for c in Condition} | {b.value for b in Baseline}
    assert set(CONDITION_LABELS) == names
    assert set(LINES) == names


def test_the_template_is_part_of_the_package() -> None:
    import flamingo.evaluation

    assert (Path(flamingo.evaluation.__file__).parent / "report.html.j2").is_file()
