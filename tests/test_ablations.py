"""Every ablation of ``conf/ablation``: a few lines on top of an experiment, built tiny."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import Gate, LanguageTraining, ResamplerKind
from flamingo.composition import CONF, compose
from flamingo.config import RunConfig
from flamingo.identity import differences, flatten
from flamingo.model.resampler import MLPResampler, PoolingResampler
from flamingo.structured import plain
from flamingo.testing import save_tiny_language_model

ABLATIONS = sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
EXPERIMENTS = ("quickstart", "openflamingo_9b_training")
"""One with gates open and layers listed; one of the paper's shape, on streams."""
LAYERS, VISION_DIM, PATCHES = 30, 12, 9


LAUNCHING = (CONF.parent / "docs" / "launching.md").read_text(encoding="utf-8")


@cache
def of(experiment: str, *ablations: str) -> RunConfig:
    chosen = [f"ablation=[{','.join(ablations)}]"] if ablations else []
    return compose([f"experiment={experiment}", *chosen])


def settings(ablation: str) -> dict:
    return flatten(yaml.safe_load((CONF / "ablation" / f"{ablation}.yaml").read_text()))


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    return save_tiny_language_model(tmp_path_factory.mktemp("language"), layers=LAYERS)


def build(config: RunConfig, language: Path) -> FlamingoForConditionalGeneration:
    """The configured architecture between tiny backbones, its widths divided by eight."""
    model = config.model
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        replace(config.language, name=str(language), revision=None),
        vision_dim=VISION_DIM,
        resampler=replace(model.resampler, heads=2, dim_head=8),
        cross_attention=replace(model.cross_attention, heads=2, dim_head=8),
    )


def step(model: FlamingoForConditionalGeneration) -> dict[str, bool]:
    """One forward and backward; which trained parameters got a gradient that is not zero."""
    image = model.config.image_token_id
    ids = torch.tensor([[image, 5, 6, image, 7, 8], [image, 9, 10, 11, 12, 13]])
    features = torch.randn(2, 2, 1, PATCHES, VISION_DIM)
    loss = model.train()(input_ids=ids, vision_features=features, labels=ids.clamp(max=511)).loss
    assert loss.isfinite()
    loss.backward()
    trained = model.trainable_parameters()
    return {n: p.grad is not None and bool(p.grad.any()) for n, p in trained.items()}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_changes_what_its_file_says_and_nothing_else(ablation: str):
    ablates = False
    for experiment in EXPERIMENTS:
        if ablates:  # it may be the quickstart's own setting: then it changes the other
            break
        base, config = of(experiment), of(experiment, ablation)
        ablates = bool(differences(base, config))
        before, after, own = flatten(plain(base)), flatten(plain(config)), settings(ablation)
        assert own and all(after[key] == value for key, value in own.items())
        changed = {key for key in after if after[key] != before.get(key)}
        assert changed <= own.keys()
    assert ablates


def test_the_documentation_says_which_ablations_leave_the_quickstart_as_it_is():
    (sentence,) = re.findall(r"For the quickstart ([^;]*) change nothing;", LAUNCHING)
    base = of("quickstart")
    idle = {name for name in ABLATIONS if not differences(base, of("quickstart", name))}
    assert set(re.findall(r"`(\w+)`", sentence)) == idle


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_builds_and_its_parameters_get_gradients(ablation: str, language: Path):
    config = of("quickstart", ablation)
    learns = step(build(config, language))
    closed = config.model.cross_attention.gate is not Gate.none and (
        config.model.cross_attention.gate_init == 0
    )
    # (Not of queries: those of one latent have nothing to choose from.)
    names = [n for n in learns if n.startswith("cross_attention") and n.endswith("to_out.weight")]
    assert names and all(learns[name] != closed for name in names)
    gates = [n for n in learns if n.endswith("attention_gate")]
    assert all(learns[name] for name in gates)
    assert bool(gates) == (config.model.cross_attention.gate is not Gate.none)
    trains = config.language.train is not LanguageTraining.frozen
    layers = [n for n in learns if n.startswith("language_model.") and ".layers." in n]
    assert bool(layers) == trains and all(learns[name] for name in layers)


def test_ablations_combine():
    config = of("quickstart", "no_gates", "resampler_mlp").model
    assert config.cross_attention.gate is Gate.none
    assert config.resampler.kind is ResamplerKind.mlp


def test_the_command_line_has_the_last_word_over_an_ablation():
    config = compose(
        ["experiment=quickstart", "ablation=every_4", "model.cross_attention.every=3", "name=mine"]
    )
    assert (config.model.cross_attention.every, config.name) == (3, "mine")


def test_the_resamplers_of_the_ablations_are_of_their_kind(language: Path):
    for ablation, kind in (
        ("resampler_mlp", MLPResampler),
        ("resampler_pooling", PoolingResampler),
    ):
        assert isinstance(build(of("quickstart", ablation), language).resampler, kind)


def test_the_single_block_stands_in_the_middle(language: Path):
    assert list(build(of("quickstart", "single_middle"), language).cross_attention) == [
        str(LAYERS // 2)
    ]


def test_an_unknown_ablation_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="ablation: expected one of .*no_gates.*, got 'no_gate'"):
        compose(["experiment=quickstart", "ablation=no_gate"])
