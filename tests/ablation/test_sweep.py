"""The sweeps of ``conf/sweeps``: composed, checked, built tiny; and what no sweep may be."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from flamingo.ablation.sweep import SWEEPS, Sweep, compose_sweep, folder_name, load_sweep
from flamingo.composition import compose
from flamingo.identity import differences
from flamingo.testing import save_tiny_language_model
from tests.test_ablations import LAYERS, build, step

NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml"))


@cache
def sweep(name: str) -> Sweep:
    return compose_sweep(name, seeds=[0])


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    return save_tiny_language_model(tmp_path_factory.mktemp("language"), layers=LAYERS)


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(f"question: Why?\nexperiment: quickstart\nreference: as it is\n{text}")
    return str(path)


def test_there_are_the_sweeps_that_were_promised():
    promised = "gate_init resampler layers media loss demonstrations features"
    assert sorted(f"ablation_{name}" for name in promised.split()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_of_a_sweep_builds_tiny_and_learns(name: str, language: Path):
    found = sweep(name)
    assert found.title == name and found.config.question.endswith("?")
    for run in found.runs:
        torch.manual_seed(0)
        learns = step(build(run.config, language))
        assert any(learns.values())
        assert run.config.data.easy_vqa is not None and run.config.evaluation.binding is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_the_experiment_itself_so_that_sweeps_share_its_runs(name: str):
    found = sweep(name)
    own = compose([f"experiment={found.config.experiment}"])
    reference = found.runs[0]
    assert (reference.arm, reference.config) == (found.config.reference, own)
    assert found.changes(reference.arm) == {}
    assert all(found.changes(arm) for arm in found.config.arms)


def test_arms_without_demonstrations_see_as_many_questions():
    sources = {run.arm: run.config.data.easy_vqa for run in sweep("ablation_demonstrations").runs}
    questions = {
        arm: (source.pairs, source.sequences * source.pairs)
        for arm, source in sources.items()
        if source is not None
    }
    assert questions == {
        "4 pairs, and binding": (4, 32),
        "4 pairs alone": (4, 32),
        "1 pair, and binding": (1, 32),
    }


def test_the_words_of_a_run_are_what_trains_it():
    found = compose_sweep(
        "ablation_media", ["training.steps=300"], run_name="short", runs="r", seeds=[4, 1]
    )
    assert found.title == "ablation_media-short"
    told = [(run.arm, run.seed) for run in found.runs]
    assert told == [("last image", 4), ("all images", 4), ("last image", 1), ("all images", 1)]
    last = found.runs[-1].config
    assert compose(found.runs[-1].words) == last
    assert str(last.directory) == "r/short-all_images/seed=1"
    assert last.training.steps == 300


def test_overrides_that_make_other_runs_need_a_name_of_their_own():
    with pytest.raises(ValueError, match=r"name: .* quickstart's \(training.steps differ\)"):
        compose_sweep("ablation_media", ["training.steps=300"])
    found = compose_sweep("ablation_media", ["evaluation.control_queries=0"], seeds=[0])
    assert not differences(found.runs[0].config, compose(["experiment=quickstart"]))


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("arms: {}", "arms: expected at least one"),
        ("arms: {as it is: [seed=1]}", "reference: expected no arm's name"),
        ("arms: {a b: [x=1], a_b: [x=2]}", "arms: expected names that differ"),
        ("arms: {a: [seed=1]}", "arms.a: expected none of name, seed"),
        ("arms: {a: [training.lr=1.0]}\nseeds: [0, 0]", "seeds: expected different seeds"),
        ("arms: {a: [training.lr=2e-4]}", r"mine.yaml: arm 'a': expected a change .*lr=2e-4"),
        ("arms: {a: [training.lr=1e-4], b: [training.lr=0.0001]}", "got 'a' and 'b': the same"),
        ("arms: {a: [evaluation.shots=[0]]}", "mine.yaml: line 4: expected YAML"),
        ("arms: {a: [x=1], a: [x=2]}", "mine.yaml: line 4: expected YAML.*duplicate key a"),
        ("arms: {a: training.lr=1e-4}", r"arms.a: expected a list of overrides.*got 'training.lr"),
        ("arms: {1e-3: [training.lr=1e-3]}", "arms: expected names that are text .in quotes., got"),
        ("arms: [a]", "arms: expected a mapping"),
        ("arms: {a: [training.lrr=1.0]}", "arm 'a': training.lrr: unknown .*did you mean"),
        ("arms: {a: [training.steps=500]}", "'a': training.steps: expected the reference's 1000"),
        ("arms: {a: [training.lr=1.0, evaluation.seed=3]}", "got another evaluation.seed"),
        ("arm: {}", "mine.yaml: arm: unknown configuration key"),
    ],
)
def test_a_sweep_that_would_say_nothing_is_refused(tmp_path: Path, arms: str, message: str):
    with pytest.raises(ValueError, match=message):
        compose_sweep(written(tmp_path, arms))


def test_a_sweep_may_be_about_the_shards_that_are_trained_on(tmp_path: Path):
    def of(first: str, second: str) -> str:
        base = "data.cache_features=false"
        arms = [f"'data.interleaved.shards.files=[/{name}/*.jsonl]'" for name in (first, second)]
        return written(tmp_path, f"arms: {{a: [{base}, {arms[0]}], b: [{base}, {arms[1]}]}}")

    found = compose_sweep(of("few", "many"), seeds=[0])
    key = "data.interleaved.shards.files"
    assert [found.changes(arm)[key][1] for arm in "ab"] == [["/few/*.jsonl"], ["/many/*.jsonl"]]
    with pytest.raises(ValueError, match="got 'a' and 'b': the same"):
        compose_sweep(of("few", "few"))


def test_a_key_of_each_run_is_refused_by_its_own_name():
    with pytest.raises(ValueError, match=r"seed: expected none .*seeds=.* got 'seed=3'"):
        compose_sweep("ablation_media", ["seed=3"])


def test_an_unknown_sweep_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="ablation_media.*got 'ablation_medium'; did you mean"):
        load_sweep("ablation_medium")


def test_folders_are_named_by_letters_and_digits():
    assert folder_name("4 pairs, and binding") == "4_pairs_and_binding"
    assert folder_name("7 x 7 (all)") == "7_x_7_all"
