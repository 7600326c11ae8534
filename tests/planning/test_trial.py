"""Real steps of small models beside their plans."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamingo.composition import compose
from flamingo.planning.options import PlanConfig
from flamingo.planning.plan import make_plan
from flamingo.planning.table import trial_text
from flamingo.planning.trial import Trial, run_trial, trial_values
from flamingo.testing import save_tiny_language_model
from tests.tiny_world import save_vision_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("backbones")
    save_tiny_language_model(folder / "language", hidden=128)
    save_vision_encoder(folder / "vision")
    return [
        "name=x",
        f"language.name={folder / 'language'}",
        f"vision.name={folder / 'vision'}",
        *("model.resampler.depth=1", "model.resampler.num_latents=8"),
        *("model.resampler.activation=gelu", "model.cross_attention.activation=gelu"),
        *("sequences=4", "tokens=96", "images=2", "learned=0.5", "trial_steps=2"),
    ]


def tried(*overrides: str) -> Trial:
    config = compose(overrides, PlanConfig, "config")
    return run_trial(config, make_plan(config).configured.batch, CPU)


@pytest.mark.parametrize(
    "overrides",
    [[], ["training.gradient_checkpointing=true"], ["data.cache_features=false", "frames=2"]],
    ids=["cached features", "checkpointing", "pixels of clips"],
)
def test_a_real_step_has_the_planned_operations_and_bytes(backbones, overrides):
    trial = tried(*backbones, "training.precision=bf16", *overrides)
    for pair in trial.flops.values():
        assert pair.measured == pytest.approx(pair.planned, rel=0.01) and pair.planned > 0
    for name in ("frozen weights", "trained weights, fp32", "gradients", "Adam states"):
        assert trial.bytes[name].measured == trial.bytes[name].planned > 0
    kept = trial.bytes["activations"]
    assert kept.measured == pytest.approx(kept.planned, rel=0.25)
    assert (trial.batch.rows, trial.batch.media, trial.batch.learned) == (4, 8, 192)
    assert trial.seconds > 0 and trial.peak is not None and trial.peak > 1e8
    needed = sum(pair.planned for pair in trial.flops.values())
    assert (trial.needed < needed) is ("training.gradient_checkpointing=true" in overrides)


def test_a_trial_is_told_as_text_and_as_json(backbones):
    trial = tried(*backbones, "training.precision=fp32", "peak_tflops=0.01")
    text = trial_text(trial)
    assert "cpu in float32: a micro-batch of 4 sequences of 96 tokens, 8 media" in text
    share = trial.needed / 1e10 / trial.seconds
    assert f"at the peak of 0.01 TFLOP/s: mfu={share:.2f}" in text
    frozen = trial.bytes["frozen weights"]
    assert frozen.measured == frozen.planned > 0
    values = json.loads(json.dumps(trial_values(trial)))
    assert values["flops"]["forward"]["planned"] == trial.flops["forward"].planned


def test_a_trial_s_mfu_is_of_real_tokens_alone(backbones):
    config = compose([*backbones, "training.precision=fp32"], PlanConfig, "config")
    full = make_plan(config).configured.batch
    halves = tuple(replace(one, tokens=one.tokens // 2) for one in full.sequences)
    padded = run_trial(config, replace(full, sequences=halves), CPU)
    whole = run_trial(config, full, CPU)
    assert padded.flops == whole.flops
    assert whole.needed == sum(pair.planned for pair in whole.flops.values())
    assert 0.5 < padded.needed / whole.needed < 0.9


def test_a_trial_leaves_the_random_state_alone(backbones):
    before = torch.get_rng_state()
    tried(*backbones)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_script_says_both(backbones, tmp_path: Path, capsys):
    from experiments.plan import main

    out = tmp_path / "plan.json"
    main(compose([*backbones, f"out={out}"], PlanConfig, "config"))
    assert "Measured here" in capsys.readouterr().out
    assert json.loads(out.read_text())["trial"]["steps"] == 2
