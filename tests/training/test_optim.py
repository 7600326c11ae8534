"""Schedule values by hand; parameter groups by name; the fused optimiser against the plain one."""

import math

import pytest
import torch
from torch import nn

from flamingo.choices import Schedule
from flamingo.config import TrainingConfig
from flamingo.testing import tiny_language_model
from flamingo.training.optim import (
    build_optimizer,
    clip_gradients,
    decayed_names,
    lr_factor,
    set_lr,
)
from flamingo.training.sharding import load_optimizer_state, whole_optimizer_state


def factors(schedule: Schedule, **settings) -> list[float]:
    config = TrainingConfig(schedule=schedule, **settings)
    return [lr_factor(step, config) for step in range(config.steps)]


def test_warm_up_rises_linearly_and_never_starts_at_zero():
    assert factors(Schedule.constant, steps=6, warmup_steps=3) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_falls_to_the_minimum_at_the_last_step():
    values = factors(Schedule.linear, steps=6, warmup_steps=1, min_lr_fraction=0.2)
    assert values == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2])


def test_cosine_falls_to_the_minimum_at_the_last_step():
    values = factors(Schedule.cosine, steps=5, warmup_steps=0, min_lr_fraction=0.1)
    middle = 0.1 + 0.9 * 0.5
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    assert values == pytest.approx([1, quarter, middle, 1.1 - quarter, 0.1])


def test_a_single_step_trains_at_the_full_rate():
    assert factors(Schedule.cosine, steps=1, warmup_steps=0) == [1.0]


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.gate = nn.Parameter(torch.zeros(1))
        self.resampler = nn.ModuleDict({"to_q": nn.Linear(3, 3, bias=False)})
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_only_matrices_outside_the_resampler_decay():
    model = Toy()
    groups = build_optimizer(TrainingConfig(weight_decay=0.3), model, trainable(model)).param_groups
    assert [(g["weight_decay"], g["names"]) for g in groups] == [
        (0.3, ["block.0.weight"]),
        (0.0, ["gate", "block.0.bias", "block.1.weight", "block.1.bias", "resampler.to_q.weight"]),
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_matrices_of_a_language_model_that_trains_decay(family):
    model = tiny_language_model(family, layers=1)
    layer = {name for name in decayed_names(model) if "head" not in name}
    matrices = {
        n for n, p in model.named_parameters() if p.ndim == 2 and ("h.0" in n or "layers.0" in n)
    }
    assert layer == matrices and len(matrices) == (4 if family == "gpt2" else 7)


def test_the_optimiser_is_adamw():
    """Two steps against the formulas of the paper (Loshchilov & Hutter 2019, algorithm 2)."""
    model = nn.Linear(2, 1, bias=False)
    config = TrainingConfig(weight_decay=0.1, betas=[0.9, 0.99], lr=0.01)
    optimizer = build_optimizer(config, model, trainable(model))
    expected = model.weight.detach().clone().double()
    first = second = torch.zeros_like(expected)
    for step, lr in ((1, 0.01), (2, 0.005)):
        gradient = torch.tensor([[3.0, -0.2]]) * step
        model.weight.grad = gradient.clone()
        set_lr(optimizer, lr)
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.double() ** 2
        expected = expected * (1 - lr * 0.1)
        update = first / (1 - 0.9**step) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
        expected = expected - lr * update
    assert torch.allclose(model.weight.double(), expected, atol=1e-7)


def test_moments_of_other_parameters_are_refused():
    def optimizer(*names: str) -> torch.optim.AdamW:
        model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in names})
        return build_optimizer(TrainingConfig(), model, trainable(model))

    state = whole_optimizer_state(optimizer("a", "b"), keep=True)
    assert state is not None
    load_optimizer_state(optimizer("a", "b"), state)
    for others in (["b", "a"], ["a", "c"]):
        with pytest.raises(ValueError, match="optimizer state: expected one of .*, got one of"):
            load_optimizer_state(optimizer(*others), state)


def test_clipping_keeps_the_direction_and_returns_the_norm_before():
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    assert [p.grad.item() for p in parameters] == pytest.approx([0.6, 0.8], abs=1e-5)
