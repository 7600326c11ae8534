"""EfficientNet-Lite0 against another implementation of it, and its padding against TensorFlow's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flamingo.backbones import efficientnet
from flamingo.backbones.efficientnet import EfficientNetLite0, SameConv2d

FEATURES = Path(__file__).parents[1] / "data" / "efficientnet_lite0_features.json"


def _package_state() -> dict[str, torch.Tensor]:
    """A random state dict with the keys and shapes of the package, made from plain torch layers."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, norm: str, *shape: int) -> None:
        fan_in = int(np.prod(shape[1:]))
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        for value, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -0.3, 0.3),
            ("running_mean", -0.3, 0.3),
            ("running_var", 0.5, 2.0),
        ):
            uniform = torch.rand(shape[0], generator=generator)
            state[f"{norm}.{value}"] = low + (high - low) * uniform
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    inputs, index = 32, 0
    for repeats, kernel, expand, outputs in (
        (1, 3, 1, 16),
        (2, 3, 6, 24),
        (2, 5, 6, 40),
        (3, 3, 6, 80),
        (3, 5, 6, 112),
        (4, 5, 6, 192),
        (1, 3, 6, 320),
    ):
        for _ in range(repeats):
            block, hidden = f"_blocks.{index}", inputs * expand
            if expand > 1:
                add(f"{block}._expand_conv", f"{block}._bn0", hidden, inputs, 1, 1)
            add(f"{block}._depthwise_conv", f"{block}._bn1", hidden, 1, kernel, kernel)
            add(f"{block}._project_conv", f"{block}._bn2", outputs, hidden, 1, 1)
            inputs, index = outputs, index + 1
    add("_conv_head", "_bn1", 1280, 320, 1, 1)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


def _reference(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network written out with separate batch norms and explicit padding."""

    def unit(x, conv, norm, stride=1, groups=1, act=True):
        weight = state[f"{conv}.weight"]
        kernel = weight.shape[-1]
        if stride == 2:  # even sizes: TensorFlow pads kernel - 2 in all, the smaller half first
            before = (kernel - 2) // 2
            after = kernel - 2 - before
        else:
            before = after = kernel // 2
        x = F.conv2d(F.pad(x, (before, after) * 2), weight, stride=stride, groups=groups)
        values = [state[f"{norm}.{v}"] for v in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *values, eps=1e-3)
        return x.clamp(0, 6) if act else x

    x = unit(x, "_conv_stem", "_bn0", stride=2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for index, stride in enumerate(strides):
        block, hidden = f"_blocks.{index}", x
        if index > 0:
            hidden = unit(hidden, f"{block}._expand_conv", f"{block}._bn0")
        groups = hidden.shape[1]
        hidden = unit(hidden, f"{block}._depthwise_conv", f"{block}._bn1", stride, groups)
        hidden = unit(hidden, f"{block}._project_conv", f"{block}._bn2", act=False)
        x = x + hidden if x.shape == hidden.shape else hidden
    return unit(x, "_conv_head", "_bn1").flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(_package_state(), path)
    return path


@torch.no_grad()
def test_folded_network_equals_one_with_batch_norms_written_out(saved):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = _reference(_package_state(), images)
    actual = EfficientNetLite0.from_weights(saved)(images)
    assert actual.shape == (2, 2 * 3, 1280)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


@torch.no_grad()
def test_input_is_left_unchanged(saved):
    images = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    before = images.clone()
    EfficientNetLite0.from_weights(saved)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("kernel", "size"), [(3, 8), (3, 7), (5, 8), (5, 9)])
def test_stride_two_pads_the_odd_pixel_right_and_below(kernel, size):
    conv = SameConv2d(1, 1, kernel, stride=2)
    nn.init.ones_(conv.weight)
    nn.init.zeros_(conv.bias)
    outputs = -(-size // 2)
    missing = (outputs - 1) * 2 + kernel - size
    padded = F.pad(torch.ones(1, 1, size, size), (missing // 2, missing - missing // 2) * 2)
    expected = torch.stack(
        [
            torch.stack([padded[0, 0, 2 * r : 2 * r + kernel, 2 * c : 2 * c + kernel].sum()])
            for r in range(outputs)
            for c in range(outputs)
        ]
    ).view(1, 1, outputs, outputs)
    assert torch.equal(conv(torch.ones(1, 1, size, size)), expected)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_of_another_network_are_refused(tmp_path, change):
    state = _package_state()
    if change == "missing":
        del state["_blocks.3._bn1.running_var"]
    else:
        state["_blocks.3._se_reduce.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=rf"other\.pth: expected the keys.*{change} \['_blocks\.3"):
        EfficientNetLite0.from_weights(tmp_path / "other.pth")


@pytest.mark.slow
@torch.no_grad()
def test_real_weights_give_the_features_of_the_other_implementation():
    from flamingo.backbones.assets import efficientnet_weights

    stored = json.loads(FEATURES.read_text())
    y, x = np.mgrid[0:224, 0:224] / 224
    images = np.stack(
        [np.stack([np.sin(9 * x + i), np.cos(7 * x * y + i), np.sin(12 * (x - y) + 2 * i)])
         for i in range(2)]
    )  # fmt: skip
    features = EfficientNetLite0.from_weights(efficientnet_weights())(
        torch.from_numpy(images).float()
    )
    assert features.shape == (2, efficientnet.GRID**2, efficientnet.FEATURE_DIM)
    actual = [features[tuple(p)].item() for p in stored["positions (image, patch, channel)"]]
    np.testing.assert_allclose(actual, stored["values"], atol=2e-4)
    np.testing.assert_allclose(features.mean((1, 2)), stored["mean"], rtol=1e-4)
    np.testing.assert_allclose(features.std((1, 2)), stored["std"], rtol=1e-4)
