"""Shapes without weights: parameter counts as released, and as those of real models."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from flamingo import FlamingoForConditionalGeneration
from flamingo.backbones.vision import load_vision_encoder
from flamingo.build import parameter_counts
from flamingo.composition import CONF, compose
from flamingo.config import LanguageConfig, RunConfig, VisionConfig
from flamingo.planning.shapes import (
    build_shapes,
    empty_encoder,
    empty_flamingo,
    encoder_shape,
    read_language_config,
)
from flamingo.testing import IMAGE_SIZE, tiny_language_model
from tests.tiny_world import save_vision_encoder

RELEASED = {
    "gpt2": 124_439_808,
    "mpt_1b_redpajama": 1_311_442_944,
    "mpt_1b_redpajama_dolly": 1_311_442_944,
    "mpt_7b": 6_649_286_656,
    "opt_125m": 125_239_296,
    "pythia_160m": 162_322_944,
    "qwen2_0_5b": 494_032_768,
    "redpajama_3b": 2_775_864_320,
    "redpajama_3b_instruct": 2_775_864_320,
    "smollm2_135m": 134_515_008,
    "smollm2_135m_embedded": 134_515_008,
}
"""Parameters of the released language models, a tied head counted once (their model cards; MPT-1B
is said to have 1.3 billion)."""
ENCODERS = {
    # CLIP's tower has 303,179,776; its last norm of 2 x 1024 is not applied.
    "clip_vit_l14": (303_177_728, 256, 1024, 80.7e9),
    # 4.65 million with the classifier of 1280 x 1000 + 1000; 407 million multiply-adds.
    "efficientnet_lite0": (3_350_000, 49, 1280, 0.384e9),
    "dinov2_base": (86_580_480, 256, 768, 23.2e9),
    "siglip_base": (85_797_120, 196, 768, 17.5e9),
    "vit_base": (85_798_656, 196, 768, 17.6e9),
}
"""Parameters, tokens, width, multiply-adds of an image."""


@pytest.mark.parametrize("option", sorted(p.stem for p in (CONF / "language").glob("*.yaml")))
def test_every_language_model_of_conf_has_its_released_size_without_a_hub(option: str):
    config = compose(["name=x", f"language={option}"])
    with torch.device("meta"):
        model = empty_flamingo(config, 32)
    assert parameter_counts(model)["language_model"] == (RELEASED[option], False)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("option", sorted(p.stem for p in (CONF / "vision").glob("*.yaml")))
def test_every_encoder_of_conf_has_its_released_size_without_a_hub(option: str):
    parameters, patches, dim, multiply_adds = ENCODERS[option]
    shape = encoder_shape(compose(["name=x", f"vision={option}"]).vision)
    assert (shape.parameters, shape.patches, shape.dim) == (parameters, patches, dim)
    assert shape.flops == pytest.approx(2 * multiply_adds, rel=0.02)


def test_openflamingo_3b_trains_what_its_release_holds():
    """944 million, as its 4.0 GB checkpoint without the embedding (LOG.md)."""
    shapes = build_shapes(compose(["experiment=openflamingo_3b"]))
    trained = sum(p.numel() for p in shapes.model.trainable_parameters().values())
    assert trained == pytest.approx(944e6, rel=0.001)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "mpt", "gpt2", "mosaic_gpt"])
def test_a_local_folder_gives_the_parameters_of_the_model_built_from_it(family: str, tmp_path):
    language = tiny_language_model(family)
    language.config.save_pretrained(tmp_path)  # no weights
    config = RunConfig(name="x", language=LanguageConfig(name=str(tmp_path)))
    config.model.resampler.num_latents = 5
    config.model.cross_attention.every = 2
    real = FlamingoForConditionalGeneration.from_backbones(
        None,
        language,
        vision_dim=24,
        resampler=config.model.resampler,
        cross_attention=config.model.cross_attention,
    )
    empty = empty_flamingo(config, 24)
    shapes = {n: p.shape for n, p in real.trainable_parameters().items()}
    assert {n: p.shape for n, p in empty.trainable_parameters().items()} == shapes
    assert parameter_counts(empty) == parameter_counts(real)


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}


def _save(kind: str, folder: Path) -> None:
    match kind:
        case "clip":
            save_vision_encoder(folder)
            return
        case "siglip":
            model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
        case "dinov2":
            sizes = {n: v for n, v in SIZES.items() if n != "intermediate_size"}
            model = Dinov2Model(Dinov2Config(**sizes | {"image_size": 2 * IMAGE_SIZE}))
        case "vit":
            model = ViTModel(ViTConfig(**SIZES), add_pooling_layer=False)
    model.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ViTImageProcessorPil(size=side).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "vit"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_an_empty_encoder_is_the_loaded_one_without_weights(kind: str, layer: int, tmp_path: Path):
    _save(kind, tmp_path)
    config = VisionConfig(name=str(tmp_path), layer=layer, final_norm=True)
    loaded, (empty, pixels) = load_vision_encoder(config), empty_encoder(config)
    assert pixels == IMAGE_SIZE
    expected = {name: p.shape for name, p in loaded.tokens.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == expected
    shape = encoder_shape(config)
    assert (shape.patches, shape.dim) == (loaded.patches, loaded.dim)


def test_a_backbone_whose_shape_nothing_tells_is_named_with_those_that_are_known(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"language.name: expected .*mpt-7b.*got '/no/such"):
        read_language_config(LanguageConfig(name="/no/such"))
    with pytest.raises(ValueError, match=r"vision.name: expected .*clip-vit.*got '/no/such"):
        encoder_shape(VisionConfig(name="/no/such"))
