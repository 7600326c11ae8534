"""Gradient norms by group: every trainable parameter in one, and nothing lost between them."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_run import tiny_config, tiny_parts
from torch import nn

from flamingo.choices import Gate
from flamingo.data.collate import collate
from flamingo.training.gradients import gradient_group, gradient_norms
from flamingo.training.loss import batch_loss

GROUPS = {
    "resampler",
    "cross_attention/attention",
    "cross_attention/feed_forward",
    "gates",
    "new_tokens",
}


def with_gradients(folder, gate: Gate = Gate.scalar):
    config = tiny_config(folder)
    config.model.cross_attention = replace(config.model.cross_attention, gate=gate)
    model, _, mixture, load_media = tiny_parts(config)
    rows = mixture.step(0)
    batch = collate([row for _, row in rows], [s for s, _ in rows], 0, load_media)
    batch_loss(model, batch, torch.ones(2))[0].backward()
    return model


def test_the_squares_of_the_groups_add_up_to_that_of_the_whole(tmp_path):
    parameters = with_gradients(tmp_path).trainable_parameters()
    norms = gradient_norms(parameters)
    assert norms.keys() == GROUPS and all(value > 0 for value in norms.values())
    whole = torch.cat([p.grad.flatten() for p in parameters.values()]).double().norm().item()
    assert math.hypot(*norms.values()) == pytest.approx(whole, rel=1e-6)
    gates = [p.grad for name, p in parameters.items() if name.endswith("gate")]
    assert norms["gates"] == pytest.approx(torch.cat(gates).norm().item(), rel=1e-6)


def test_a_model_without_gates_has_no_such_group(tmp_path):
    norms = gradient_norms(with_gradients(tmp_path, Gate.none).trainable_parameters())
    assert norms.keys() == GROUPS - {"gates"}


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("resampler.layers.0.attention.to_q.weight", "resampler"),
        ("cross_attention.7.attention_gate", "gates"),
        ("cross_attention.7.feed_forward.gate.weight", "cross_attention/feed_forward"),
        ("cross_attention.7.attention.norm.bias", "cross_attention/attention"),
        ("language_model.model.layers.0.mlp.up_proj.lora_A.default.weight", "language_model"),
    ],
)
def test_a_parameter_belongs_to_the_part_that_its_name_says(name: str, group: str):
    assert gradient_group(name) == group


def test_parameters_without_a_gradient_count_for_nothing():
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    used.grad = torch.tensor([3.0, 4.0])
    assert gradient_norms({"new_tokens.input": used, "resampler.latents": unused}) == {
        "new_tokens": 5.0
    }
    assert gradient_norms({"resampler.latents": unused}) == {}
