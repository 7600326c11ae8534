"""What there is to predict, and what makes a prediction another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from flamingo.choices import Condition, Metric, Protocol
from flamingo.evaluation.benchmarks import DatasetBenchmark
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import image_ref
from flamingo.evaluation.cells import Cell, PromptLengths, plan_cells
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.ensembling import Ensemble
from flamingo.evaluation.planner import Planner
from flamingo.evaluation.prompts import BINDING
from flamingo.evaluation.tasks import Kind, Task, task
from flamingo.evaluation_config import DemonstrationsConfig, EvaluationConfig

from . import tiny, toys

COLOURS = ("red", "lime", "blue", "gray", "white", "black")
NATIVE = task(Kind.vqa, Protocol.native, Metric.exact_match)


def pictures(folder: Path, *, size: int = 8) -> Path:
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (size, size), colour).save(folder / f"{colour}.png")
    return folder


def colours(
    folder: Path, *, own: Task = NATIVE, seed: int = 0, seeds=(0,), shots=(0, 2)
) -> DatasetBenchmark:
    """Of which colour is the picture? Two queries, the other four demonstrate."""
    examples = [
        Example(name, (image_ref(name, folder, f"{name}.png"),), "Which?", (name,))
        for name in COLOURS
    ]
    return DatasetBenchmark(
        name="colours",
        title="Colours",
        task=own,
        test=examples[:2],
        train=examples[2:],
        planner=Planner(DemonstrationsConfig()),
        queries=0,
        pool=0,
        seed=seed,
        seeds=list(seeds),
        shots=list(shots),
    )


def plan(
    benchmark, *conditions: Condition, model_id: str = "m", precision: str = "float32"
) -> list[Cell]:
    config = EvaluationConfig(conditions=[Condition.real, *conditions])
    lengths = PromptLengths(tiny.tokenizer())
    return plan_cells([benchmark], config, lengths, model_id=model_id, precision=precision)[0]


def keys(*arguments, **compute: str) -> list[str]:
    return [key for cell in plan(*arguments, **compute) for key in cell.keys]


CHANGED = (Condition.blank_query, Condition.blur_query, Condition.swap_query)


def test_images_of_the_same_names_that_show_something_else_are_other_predictions(tmp_path) -> None:
    clean, fog = pictures(tmp_path / "clean"), pictures(tmp_path / "fog", size=9)
    own, other = keys(colours(clean), *CHANGED), keys(colours(fog), *CHANGED)
    assert len(own) == len(other) == 2 * 2 * (1 + len(CHANGED))
    assert not set(own) & set(other)


def test_one_other_demonstration_makes_other_predictions_of_those_who_see_it(tmp_path) -> None:
    first, second = pictures(tmp_path / "first"), pictures(tmp_path / "second")
    (none, some), benchmark = plan(colours(first)), colours(second)
    shown = {d.id for d in some.episodes[0].demonstrations}
    name = next(iter(shown)).removeprefix("train/")
    Image.new("RGB", (9, 9), "pink").save(second / f"{name}.png")
    same, other = plan(benchmark)
    assert same.keys == none.keys, "asked without demonstrations"
    for episode, before, after in zip(some.episodes, some.keys, other.keys, strict=True):
        assert (before == after) == (f"train/{name}" not in {d.id for d in episode.demonstrations})


def test_images_that_were_moved_are_the_same_predictions(tmp_path) -> None:
    before = keys(colours(pictures(tmp_path / "here")), *CHANGED)
    (tmp_path / "here").rename(tmp_path / "there")
    assert keys(colours(tmp_path / "there"), *CHANGED) == before


def test_the_text_only_zero_shot_is_asked_with_every_draw() -> None:
    cells = plan(toys.vqa(seeds=(0, 1, 2), shots=(0, 2)), Condition.text_only_zero_shot)
    drawn = [(c.shots, c.condition.value, c.seed) for c in cells]
    assert drawn == [
        (0, "real", 0),  # nothing to draw
        (0, "text_only_zero_shot", 0),
        (0, "text_only_zero_shot", 1),
        (0, "text_only_zero_shot", 2),
        (2, "real", 0),
        (2, "real", 1),
        (2, "real", 2),
    ]
    shown = {tuple(d.id for d in c.episodes[0].demonstrations) for c in cells[1:4]}
    assert len(shown) == 3


def test_a_condition_whose_prompts_are_too_long_is_left_out_and_named() -> None:
    benchmark = toys.vqa(shots=(0,))
    lengths = PromptLengths(tiny.tokenizer())
    (real,) = plan(benchmark)
    longest = max(lengths(episode, benchmark.task.template) for episode in real.episodes)
    config = EvaluationConfig(
        conditions=[Condition.text_only_zero_shot, Condition.real, Condition.blank_query],
        max_tokens=longest + benchmark.task.decoding.max_new_tokens,
    )
    cells, left_out = plan_cells([benchmark], config, lengths, model_id="m", precision="float32")
    assert [cell.condition for cell in cells] == [Condition.real, Condition.blank_query]
    (left,) = left_out
    assert (left.shots, left.condition) == (0, Condition.text_only_zero_shot)
    assert f"evaluation.max_tokens is {config.max_tokens}" in left.reason


def test_without_the_real_prompts_there_are_no_controls() -> None:
    config = EvaluationConfig(max_tokens=7)
    lengths = PromptLengths(tiny.tokenizer())
    cells, left_out = plan_cells(
        [toys.vqa(shots=(0, 2))], config, lengths, model_id="m", precision="float32"
    )
    assert not cells
    assert [(left.shots, left.condition) for left in left_out] == [
        (0, Condition.real),
        (2, Condition.real),
    ]


@pytest.mark.parametrize(("orders", "same"), [(1, True), (3, False)])
def test_orders_are_drawn_by_a_seed_that_predictions_depend_on(tmp_path, orders, same) -> None:
    folder = pictures(tmp_path / "own")
    own = replace(NATIVE, ensemble=Ensemble(permutations=orders))
    # Both queries are asked and the whole pool is offered: nothing else depends on that seed.
    told = [sorted(keys(colours(folder, own=own, seed=seed, shots=(2,)))) for seed in (0, 1)]
    assert (told[0] == told[1]) == same


def test_answered_in_another_way_they_are_other_predictions(tmp_path) -> None:
    folder = pictures(tmp_path / "own")
    decodings = [
        Decoding(),
        Decoding(max_new_tokens=6),
        Decoding(beams=2),
        Decoding(beams=2, length_penalty=1.0),
        Decoding(normalize_by_length=True),
        Decoding(end_of_chunk=False),
    ]
    ensembles = [
        Ensemble(templates=(BINDING,)),
        Ensemble(permutations=2),
        Ensemble(permutations=3),
    ]
    ways = [replace(NATIVE, decoding=decoding) for decoding in decodings]
    ways += [replace(NATIVE, ensemble=ensemble) for ensemble in ensembles]
    told = [key for own in ways for key in keys(colours(folder, own=own), *CHANGED)]
    assert len(set(told)) == len(told) == len(ways) * 2 * 2 * (1 + len(CHANGED))


@pytest.mark.parametrize("compute", [{"precision": "bfloat16"}, {"model_id": "n"}])
def test_other_weights_and_another_precision_make_other_predictions(tmp_path, compute) -> None:
    benchmark = colours(pictures(tmp_path / "own"))
    assert not set(keys(benchmark, *CHANGED)) & set(keys(benchmark, *CHANGED, **compute))
