"""Vision encoders against the hidden states of the transformers models they are made from."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from flamingo.backbones.efficientnet import EfficientNetLite0
from flamingo.backbones.pooled_grid import PooledGrid
from flamingo.backbones.vision import (
    VisionEncoder,
    load_efficientnet,
    load_vision_encoder,
    transform_settings,
)
from flamingo.config import VisionConfig

SIZE, PATCH, LAYERS, DIM = 32, 8, 3, 16
PATCHES = (SIZE // PATCH) ** 2
KINDS = ("clip", "siglip", "dinov2", "vit", "clip_vision_model", "siglip_vision_model")
WITH_CLS = ("clip", "dinov2", "vit")

_COMMON = {
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
_TOWER = _COMMON | {"intermediate_size": 24}
_TEXT = {
    "hidden_size": DIM,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}


def _model(kind: str) -> transformers.PreTrainedModel:
    match kind:
        case "clip":
            config = transformers.CLIPConfig(text_config=_TEXT, vision_config=_TOWER)
            return transformers.CLIPModel(config)
        case "siglip":
            config = transformers.SiglipConfig(text_config=_TEXT, vision_config=_TOWER)
            return transformers.SiglipModel(config)
        case "clip_vision_model":
            return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_TOWER))
        case "siglip_vision_model":
            return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_TOWER))
        case "dinov2":
            return transformers.Dinov2Model(transformers.Dinov2Config(**_COMMON))
        case "vit":
            return transformers.ViTModel(transformers.ViTConfig(**_TOWER))
    raise AssertionError(kind)


def _processor(kind: str):
    if kind.startswith("clip"):
        crop = {"height": SIZE, "width": SIZE}
        return transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=crop)
    if kind == "dinov2":
        crop = {"height": SIZE, "width": SIZE}
        return transformers.BitImageProcessorPil(size={"shortest_edge": SIZE + 8}, crop_size=crop)
    if kind.startswith("siglip"):
        return transformers.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    return transformers.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})


def _save(folder, kind: str, seed: int = 0):
    """A random model whose norms, biases and layer scales are random too, so none can be missed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(kind).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    _processor(kind).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {kind: _save(root / kind, kind) for kind in KINDS}


def _images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def _load(folder, dtype=torch.float32, **config) -> VisionEncoder:
    return load_vision_encoder(VisionConfig(name=str(folder), **config), dtype=dtype)


def _tower(folder, kind: str) -> transformers.PreTrainedModel:
    """The model as transformers itself loads it."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    return model.vision_model if kind in ("clip", "siglip") else model


def _norm(tower, kind: str) -> torch.nn.Module:
    return tower.layernorm if kind in ("dinov2", "vit") else tower.post_layernorm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-LAYERS - 1, 0, 1, -2, LAYERS, -1])
@torch.no_grad()
def test_layer_is_the_index_into_the_models_own_hidden_states(folders, kind, layer):
    tower = _tower(folders[kind], kind)
    states = tower(_images(), output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    expected = states[layer][:, -PATCHES:]
    encoder = _load(folders[kind], layer=layer)
    assert (encoder.dim, encoder.patches) == (DIM, PATCHES)
    torch.testing.assert_close(encoder(_images()), expected, rtol=1e-5, atol=1e-5)
    normed = _load(folders[kind], layer=layer, final_norm=True)(_images())
    torch.testing.assert_close(normed, _norm(tower, kind)(expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(normed, expected, atol=0.1)


@pytest.mark.parametrize("kind", WITH_CLS)
@torch.no_grad()
def test_keep_cls_puts_the_cls_token_first(folders, kind):
    tower = _tower(folders[kind], kind)
    expected = tower(_images(), output_hidden_states=True).hidden_states[-1]
    encoder = _load(folders[kind], keep_cls=True)
    assert encoder.patches == PATCHES + 1
    torch.testing.assert_close(encoder(_images()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dinov2_at_another_resolution_counts_its_patches(folders, tmp_path):
    transformers.Dinov2Model.from_pretrained(folders["dinov2"]).save_pretrained(tmp_path)
    crop = {"height": 2 * SIZE, "width": SIZE}
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 2 * SIZE}, crop_size=crop)
    processor.save_pretrained(tmp_path)
    encoder = _load(tmp_path)
    features = encoder(encoder.transform(Image.new("RGB", (90, 90)))[None])
    assert features.shape == (1, 2 * PATCHES, DIM) == (1, encoder.patches, encoder.dim)


@torch.no_grad()
def test_open_flamingos_clip_features_are_the_default(folders):
    """OpenFlamingo: ``last_hidden_state[:, 1:]``, before ``post_layernorm``."""
    expected = _tower(folders["clip"], "clip")(_images()).last_hidden_state[:, 1:]
    torch.testing.assert_close(_load(folders["clip"])(_images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_transform_is_the_models_own_image_processor(folders, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = _processor(kind)(images=image, return_tensors="pt")["pixel_values"][0]
    actual = _load(folders[kind]).transform(image)
    assert actual.shape == (3, SIZE, SIZE)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit"])
def test_encoder_stays_frozen_and_in_evaluation_mode(folders, kind):
    encoder = _load(folders[kind])
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(_images().requires_grad_()).requires_grad


def test_unused_layers_and_pooling_are_not_kept(folders):
    one = [name for name, _ in _load(folders["vit"], layer=1).named_parameters()]
    assert any("layers.0." in name for name in one)
    assert not any("layers.1." in name or "pooler" in name for name in one)
    names = [name for name, _ in _load(folders["siglip"]).named_parameters()]
    assert names
    assert not any("head" in name or "post_layernorm" in name for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fingerprint_does_not_depend_on_the_number_format(folders, dtype):
    expected = _load(folders["vit"]).fingerprint
    encoder = _load(folders["vit"], dtype=dtype)
    assert encoder.fingerprint == expected
    assert encoder.to(torch.float32).fingerprint == expected
    assert encoder(_images()).dtype == torch.float32


def test_fingerprint_tells_what_changes_the_features(folders, tmp_path):
    folder = folders["clip"]
    seen = {
        "as it is": _load(folder).fingerprint,
        "layer": _load(folder, layer=-2).fingerprint,
        "cls": _load(folder, keep_cls=True).fingerprint,
        "norm": _load(folder, final_norm=True).fingerprint,
        "weights": _load(_save(tmp_path / "other", "clip", seed=1)).fingerprint,
    }
    _save(tmp_path / "mean", "clip")
    assert _load(tmp_path / "mean").fingerprint == seen["as it is"]
    processor = _processor("clip")
    processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path / "mean")
    seen["transform"] = _load(tmp_path / "mean").fingerprint
    assert len(set(seen.values())) == len(seen)


def test_one_changed_weight_changes_the_fingerprint(folders):
    tower = transformers.ViTModel.from_pretrained(folders["vit"], add_pooling_layer=False)
    config = VisionConfig(name="changed")

    def wrapped() -> VisionEncoder:
        processor = _processor("vit")
        return VisionEncoder(config, tower, dim=DIM, patches=PATCHES, image_processor=processor)

    before = wrapped().fingerprint
    tower.layers[1].layernorm_before.bias[0] += 1e-6
    assert wrapped().fingerprint != before


@torch.no_grad()
def test_autocast_around_the_encoder_changes_nothing(folders):
    encoder = _load(folders["vit"])
    expected = encoder(_images())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(_images()), expected)


@pytest.mark.parametrize("layer", [LAYERS + 1, -LAYERS - 2])
def test_a_layer_that_does_not_exist_is_refused(folders, layer):
    with pytest.raises(ValueError, match=rf"vision\.layer: .*between -4 and 3.* got {layer}"):
        _load(folders["vit"], layer=layer)


def test_a_cls_token_that_does_not_exist_is_refused(folders):
    with pytest.raises(ValueError, match=r"vision\.keep_cls: expected False"):
        _load(folders["siglip"], keep_cls=True)


def test_another_kind_of_model_is_refused(tmp_path):
    transformers.GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vision\.name: .*'gpt2'"):
        _load(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"vision\.name: expected a folder .* at .*nowhere"):
        _load(tmp_path / "nowhere")


# ---------------------------------------------------------------------------- EfficientNet


@pytest.fixture
def efficientnet(monkeypatch, tmp_path) -> VisionEncoder:
    monkeypatch.setattr(EfficientNetLite0, "from_weights", classmethod(lambda cls, path: cls()))
    config = VisionConfig(name="efficientnet-lite0")
    return load_efficientnet(config, tmp_path / "weights.pth")


def test_efficientnet_gives_49_tokens_of_1280(efficientnet):
    pixels = efficientnet.transform(Image.new("RGB", (300, 100), "red"))
    features = efficientnet(pixels[None])
    assert features.shape == (1, 49, 1280) == (1, efficientnet.patches, efficientnet.dim)
    assert features.dtype == torch.float32


def test_efficientnet_sees_the_whole_image_normalised_as_on_imagenet(efficientnet):
    image = Image.new("RGB", (400, 100), "black")
    image.paste("white", (0, 0, 40, 100))  # a left border that a centre crop would lose
    pixels = efficientnet.transform(image)
    assert pixels.shape == (3, 224, 224)
    white = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    black = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(pixels[:, 100, 5], torch.tensor(white))
    torch.testing.assert_close(pixels[:, 100, 200], torch.tensor(black))
    assert transform_settings(efficientnet.image_processor)["resample"] == Image.BICUBIC


def test_efficientnet_refuses_choices_it_does_not_have(tmp_path):
    with pytest.raises(ValueError, match=r"vision\.layer, keep_cls, final_norm: .*got 3, False"):
        load_efficientnet(VisionConfig(name="efficientnet-lite0", layer=3), tmp_path / "none")


@pytest.mark.slow
@torch.no_grad()
def test_the_real_efficientnet_tells_emoji_apart_in_either_number_format():
    from flamingo.backbones.assets import twemoji_folder
    from flamingo.images import open_image

    config = VisionConfig(name="efficientnet-lite0")
    names = ["1f600", "1f40e", "1f697", "1f34e", "1f3e0", "1f333", "2764", "1f41f"]
    pooled = []
    for dtype in (torch.float32, torch.bfloat16):
        encoder = load_vision_encoder(config, dtype=dtype)
        images = [open_image(twemoji_folder() / f"{name}.png") for name in names]
        features = encoder(torch.stack([encoder.transform(image) for image in images]))
        pooled.append(torch.nn.functional.normalize(features.mean(1), dim=-1))
    similarity = pooled[0] @ pooled[1].T
    assert similarity.argmax(1).tolist() == list(range(len(names)))
    assert (similarity.diagonal() > 0.99).all()
    assert similarity.fill_diagonal_(0).max() < 0.9


# ---------------------------------------------------------------------------- fewer tokens


@pytest.mark.parametrize("keep_cls", [False, True])
def test_patches_are_averaged_to_a_coarser_grid(folders, keep_cls):
    whole = _load(folders["clip"], keep_cls=keep_cls)
    pooled = _load(folders["clip"], keep_cls=keep_cls, grid=1)
    tokens, front = whole(_images()), int(keep_cls)
    expected = torch.cat([tokens[:, :front], tokens[:, front:].mean(1, keepdim=True)], dim=1)
    assert torch.allclose(pooled(_images()), expected, atol=1e-6)
    assert pooled.patches == 1 + front
    assert pooled.fingerprint != whole.fingerprint


def test_means_of_a_grid_are_those_of_its_quarters():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    quarters = PooledGrid(4, 4, 2)(tokens)
    assert quarters.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    # Of 3 cells to 2 the middle ones count for both.
    assert PooledGrid(3, 3, 2)(torch.arange(9.0).reshape(1, 9, 1)).flatten().tolist() == [
        2,
        3,
        5,
        6,
    ]


def test_a_grid_finer_than_the_encoder_s_is_refused(folders):
    with pytest.raises(ValueError, match=r"vision\.grid: expected 1 to 4, .*got 5"):
        _load(folders["clip"], grid=5)
