"""The configurations of the released OpenFlamingo models, composed, and built tiny."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from flamingo.backbones.language import decoder_layers
from flamingo.build import build_model
from flamingo.choices import Activation, Condition, MediaVisibility, Protocol, Schedule
from flamingo.composition import compose
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.testing import VOCABULARY, save_tiny_language_model
from tests.tiny_world import save_vision_encoder

RELEASES = {
    "openflamingo_3b": ("anas-awadalla/mpt-1b-redpajama-200b", 1),
    "openflamingo_4b": ("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2),
    "openflamingo_9b": ("anas-awadalla/mpt-7b", 4),
}
INSTRUCT = {
    ("openflamingo_3b", "mpt_1b_redpajama_dolly"): "anas-awadalla/mpt-1b-redpajama-200b-dolly",
    ("openflamingo_4b", "redpajama_3b_instruct"): (
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1"
    ),
}
FAMILIES = {
    "openflamingo_3b": "mosaic_gpt",
    "openflamingo_4b": "gpt_neox",
    "openflamingo_9b": "mpt",
}
LAYERS = 4
MPT_7B_KEYS = {
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"},
    "init_config": {"name": "kaiming_normal_", "emb_init_std": None, "verbose": 0},
    "norm_type": "low_precision_layernorm",
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "verbose": 0,
}
"""Keys of MosaicML's own configuration class that transformers does not write."""


@pytest.mark.parametrize("experiment", RELEASES)
def test_a_release_has_its_backbones_and_architecture(experiment: str):
    config = compose([f"experiment={experiment}"])
    language, every = RELEASES[experiment]
    assert config.language.name == language
    assert config.vision.name == "openai/clip-vit-large-patch14"
    assert not (config.vision.keep_cls or config.vision.final_norm)
    assert config.vision.layer == -1
    assert config.model.resampler == ResamplerConfig(
        depth=6, num_latents=64, heads=8, dim_head=64, activation=Activation.gelu
    )
    assert config.model.cross_attention == CrossAttentionConfig(
        every=every,
        heads=8,
        dim_head=64,
        activation=Activation.gelu,
        media=MediaVisibility.immediate,
    )


@pytest.mark.parametrize("experiment", RELEASES)
def test_a_release_is_evaluated_as_it_was_published(experiment: str):
    evaluation = compose([f"experiment={experiment}"]).evaluation
    assert evaluation.protocol is Protocol.open_flamingo
    assert evaluation.shots == [0, 4, 8, 16, 32]
    assert Condition.text_only_zero_shot in evaluation.conditions
    assert evaluation.demonstrations.pool == 2048


@pytest.mark.parametrize(("experiment", "language"), INSTRUCT)
def test_the_instruct_releases_differ_in_their_language_model(experiment: str, language: str):
    base = compose([f"experiment={experiment}"])
    config = compose([f"experiment={experiment}", f"language={language}"])
    assert config.language.name == INSTRUCT[experiment, language]
    assert config.model == base.model


@pytest.mark.parametrize("experiment", RELEASES)
def test_a_release_is_trained_as_it_was_published(experiment: str):
    """arXiv 2308.01390, section 3.3, and the example command of OpenFlamingo's repository."""
    config, base = (
        compose([f"experiment={experiment}_training"]),
        compose([f"experiment={experiment}"]),
    )
    assert (config.model, config.language) == (base.model, base.language)
    data, training = config.data, config.training
    mmc4, laion = data.mmc4, data.captions
    assert mmc4 is not None and laion is not None and len(data.sources) == 2
    assert (mmc4.loss_weight, laion.loss_weight) == (1.0, 0.2)
    assert (mmc4.max_tokens, mmc4.max_images, laion.max_tokens) == (256, 6, 32)
    assert (mmc4.similarity, mmc4.single_image_rejection) == (0.24, 0.5)
    assert laion.sequences == 2 * mmc4.sequences
    assert training.steps * mmc4.sequences == pytest.approx(60e6, rel=1e-4)
    assert training.steps * laion.sequences == pytest.approx(120e6, rel=1e-4)
    assert (training.lr, training.schedule) == (1e-4, Schedule.constant)
    assert (training.warmup_steps, training.weight_decay, training.clip_norm) == (1875, 0.1, 1.0)


# ---------------------------------------------------------------------------- built


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_vision_encoder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module", params=FAMILIES)
def release(request, tmp_path_factory) -> tuple[str, Path]:
    """An experiment and a tiny language model of its family, its matrix padded as released."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_language_model(
        folder, FAMILIES[request.param], layers=LAYERS, vocab_size=VOCABULARY + 16
    )
    if FAMILIES[request.param] == "mpt":
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | MPT_7B_KEYS))
    return request.param, folder


def test_local_folders_are_all_a_release_needs(release, clip):
    """Forward and generation of the experiment as it stands, on tiny backbones."""
    experiment, folder = release
    config = compose([f"experiment={experiment}", f"vision.name={clip}", f"language.name={folder}"])
    model, processor = build_model(config, torch.device("cpu"))
    assert model.language_model.config.model_type == FAMILIES[experiment]
    assert model.config.vision_dim == 16
    every = RELEASES[experiment][1]
    assert len(decoder_layers(model.language_model)) == LAYERS
    assert list(model.cross_attention) == [str(i) for i in range(every - 1, LAYERS, every)]

    image = Image.new("RGB", (50, 40), "red")
    prompts = ["<image>Output: a red<|endofchunk|><image>Output:", "<image>Output:"]
    inputs = processor(prompts, [[image, image], [image]])
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, VOCABULARY + 18)
    assert logits.isfinite().all()
    kwargs = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    out = model.generate(**inputs, **kwargs)
    assert torch.equal(out, model.generate(**inputs, use_cache=False, **kwargs))
    assert out.shape[1] > inputs["input_ids"].shape[1]
