"""The loss without all logits at once, against the loss of all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import flamingo.model.loss
from flamingo import FlamingoForConditionalGeneration
from tests.model.conftest import features, prompt

Build = Callable[..., FlamingoForConditionalGeneration]


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flamingo.model.loss, "CPU_LOGITS", 2000)  # three or four rows


def example(model: FlamingoForConditionalGeneration) -> dict[str, torch.Tensor]:
    ids = torch.cat([prompt(model, 9, [0, 4], 1), prompt(model, 9, [2], 2)])
    labels = ids.clone()
    labels[0, :3] = labels[1, 5] = -100
    labels[1, 3] = model.config.end_of_chunk_token_id  # a new token is learned too
    return {"input_ids": ids, "labels": labels, "vision_features": features(2, 2)}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("gpt_neox", {"tie_word_embeddings": False}),
        ("gemma", {"final_logit_softcapping": 3.0}),  # as Gemma 2 does
        ("llama", {"logit_scale": 0.5}),  # as Cohere's models do
    ],
)
def test_loss_and_gradients_are_those_of_all_logits(
    build: Build, family: str, options: dict[str, object]
):
    model = build(family, **options)
    inputs = example(model)
    weights = torch.rand(2, 9)
    labels = inputs["labels"]
    logits = model(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    every = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
    )
    expected = (every * weights[:, 1:].flatten()).sum()
    parameters = model.trainable_parameters()
    truth = torch.autograd.grad(expected, list(parameters.values()))

    output = model(**inputs, label_weights=weights)
    assert output.logits is None
    torch.testing.assert_close(output.loss, expected)
    counted = every[labels[:, 1:].flatten() != -100]
    torch.testing.assert_close(output.token_losses, counted)
    gradients = torch.autograd.grad(2 * output.loss, list(parameters.values()))
    for name, own, other in zip(parameters, gradients, truth, strict=True):
        torch.testing.assert_close(own, 2 * other, msg=lambda text, n=name: f"{n}: {text}")


def test_a_head_that_trains_gets_its_gradient(build: Build):
    model = build("gpt_neox")
    head = model.language_model.get_output_embeddings().weight.requires_grad_()
    inputs = example(model)
    inputs["labels"][:, 1:].masked_fill_(inputs["labels"][:, 1:] > 400, -100)
    (truth,) = torch.autograd.grad(model(**inputs).loss, head)
    count = (inputs["labels"][:, 1:] != -100).sum()
    weights = torch.full((2, 9), 1.0) / count
    (own,) = torch.autograd.grad(model(**inputs, label_weights=weights).loss, head)
    torch.testing.assert_close(own, truth)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_worked_out_where_none_is_wanted(
    build: Build, mode: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    model = build()
    truth = model(**example(model), label_weights=torch.ones(2, 9))
    asked = []
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: asked.append(1))
    with mode():
        output = model(**example(model), label_weights=torch.ones(2, 9))
    assert not asked
    assert not output.loss.requires_grad
    assert not output.token_losses.requires_grad
    torch.testing.assert_close(output.loss, truth.loss.detach())


def test_weights_without_labels_are_refused(build: Build):
    model = build()
    inputs = example(model)
    inputs.pop("labels")
    with pytest.raises(ValueError, match="label_weights: expected labels"):
        model(**inputs, label_weights=torch.ones(2, 9))
