"""Runs found by their folders and by the values in their configs."""

import shutil
import warnings

import numpy as np
import pytest

from flamingo.choices import Gate, Schedule
from flamingo.config import (
    BindingSourceConfig,
    CrossAttentionConfig,
    DataConfig,
    ModelConfig,
    ResamplerConfig,
    RunConfig,
    TrainingConfig,
)
from flamingo.run_directory import RunDirectory
from flamingo.run_selection import differing
from flamingo.runs import find


def arm(folder, name: str, seed: int = 0, *, depth: int = 1, layers=(0, 2), **fields) -> RunConfig:
    model = ModelConfig(
        resampler=ResamplerConfig(depth=depth),
        cross_attention=CrossAttentionConfig(every=None, layers=list(layers)),
    )
    return RunConfig(name=name, seed=seed, runs=str(folder), model=model, **fields)


@pytest.fixture
def root(tmp_path):
    """Two arms with three seeds of one of them, below each other's folders."""
    binding = DataConfig(binding=BindingSourceConfig(images=9))
    for seed in (0, 2, 10):
        RunDirectory.open(arm(tmp_path / "runs", "shallow", seed))
    RunDirectory.open(arm(tmp_path / "runs", "deep", depth=3, layers=(1,), data=binding))
    return tmp_path / "runs"


def found(root, where=None, **also) -> list[tuple[str, int]]:
    return [(r.config.name, r.config.seed) for r in find(where, root=root, **also)]


def test_all_runs_below_a_folder_by_name_and_seed(root):
    every = [("deep", 0), ("shallow", 0), ("shallow", 2), ("shallow", 10)]
    assert found(root) == every
    assert found(root / "shallow") == every[1:]
    assert found(root / "deep" / "seed=0") == every[:1]
    shutil.copytree(root, root / "copies" / "of march")
    assert found(root) == [*every, *every]  # the folder of copies comes first
    assert [run.path.is_relative_to(root / "copies") for run in find(root=root)].count(True) == 4


def test_runs_are_selected_by_one_value_or_several_of_a_key(root):
    assert found(root, {"model.resampler.depth": 3}) == [("deep", 0)]
    assert found(root, {"model.resampler.depth": 1, "seed": [0, 2]}) == [
        ("shallow", 0),
        ("shallow", 2),
    ]
    assert found(root, {"model": {"resampler": {"depth": range(2, 9)}}}) == [("deep", 0)]
    assert found(root, name="deep") == found(root, {"seed": 0}, name=["deep", "other"])
    assert found(root, seed=np.arange(5)) == [("deep", 0), ("shallow", 0), ("shallow", 2)]
    assert found(root, {"model.resampler.depth": 2}) == []


def test_a_field_that_is_a_list_is_matched_whole_or_by_several_lists(root):
    key = "model.cross_attention.layers"
    assert found(root, {key: [1]}) == [("deep", 0)]
    assert found(root, {key: (0, 2), "seed": 0}) == [("shallow", 0)]
    assert found(root, {key: [[1], [0, 2]], "seed": 0}) == [("deep", 0), ("shallow", 0)]
    assert found(root, {key: 1 * [0]}) == []


def test_values_are_taken_as_the_config_takes_them(root):
    assert len(found(root, {"training.schedule": Schedule.cosine})) == 4
    assert len(found(root, {"training.schedule": "cosine", "training.weight_decay": "1e-1"})) == 4
    assert found(root, {"model.cross_attention.gate": Gate.none}) == []
    assert len(found(root, {"training.min_lr_fraction": 0})) == 4


def test_a_section_that_is_off_is_null_and_has_no_values(root):
    assert found(root, {"data.binding": None, "seed": 0}) == [("shallow", 0)]
    assert found(root, {"data.binding.images": 9}) == [("deep", 0)]
    assert found(root, {"data.binding.images": 8}) == []
    assert found(root, {"data.binding.path": None}) == [("deep", 0)]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"model.resampler.depht": 1, "sed": 0},
            r"model.resampler.depht: unknown configuration key; did you mean "
            r"model.resampler.depth\?\nsed: unknown configuration key; did you mean seed\?",
        ),
        ({"seed": "first"}, r"seed: expected a whole number, got 'first'"),
        ({"training.schedule": "cosinus"}, r"expected one of .*cosine.*did you mean cosine\?"),
        ({"model.resampler": 4}, r"model.resampler: expected a section"),
        ({"seed": []}, r"seed: expected at least one value, got none"),
    ],
)
def test_what_no_config_can_have_is_refused(root, where, message):
    with pytest.raises(ValueError, match=message):
        find(where, root=root)


def test_a_name_alone_is_refused_with_how_runs_are_found_by_name(root):
    message = r"where: expected a mapping .* got 'deep'; by name: find\(name='deep'\)"
    with pytest.raises(ValueError, match=message):
        find.__wrapped__("deep", root=root)  # without the tests' own check of types
    assert found(root, name="deep") == [("deep", 0)]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: expected a folder of runs, found none"):
        find(root=tmp_path / "nowhere")
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match=r"expected runs \(folders with a config.yaml\)"):
        find(root=tmp_path)


def test_broken_runs_are_named_in_a_warning_and_the_others_found(root):
    (root / "shallow" / "seed=2" / "config.yaml").write_text("name: x\ntraining: {later: 1}\n")
    (root / "shallow" / "seed=10" / "config.yaml").unlink()
    (root / "lost" / "here").mkdir(parents=True)
    (root / "lost" / "here" / "metrics.jsonl").write_text("")
    (root / "benchmarks").mkdir()
    (root / ".trash" / "seed=5").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be opened are left out") as warned:
        assert found(root) == [("deep", 0), ("shallow", 0)]
    (told,) = [str(one.message) for one in warned]
    assert f"{root / 'shallow' / 'seed=2' / 'config.yaml'}: expected a configuration" in told
    assert "training.later" in told
    for name in ("shallow/seed=10", "lost/here"):
        assert f"{root / name}: expected config.yaml in the folder of a run, found none" in told
    assert "benchmarks" not in told and "trash" not in told


def test_sound_runs_cause_no_warning(root):
    (root / "shallow" / "seed=0" / "checkpoints" / "step_1").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(found(root)) == 4


def test_what_differs_between_configs_is_told_without_their_place():
    shallow, deep = arm("a", "shallow"), arm("b", "deep", seed=3, depth=2, layers=(1, 3))
    sgd = arm("c", "deep", depth=2, training=TrainingConfig(schedule=Schedule.linear))
    assert differing([shallow, deep, sgd]) == {
        "model.resampler.depth": [1, 2, 2],
        "model.cross_attention.layers": [(0, 2), (1, 3), (0, 2)],
        "training.schedule": ["cosine", "cosine", "linear"],
    }
    bound = arm("a", "x", data=DataConfig(binding=BindingSourceConfig(images=9)))
    columns = differing([shallow, bound])
    assert columns["data.binding.images"] == [None, 9]
    assert differing([shallow]) == {} == differing([])
