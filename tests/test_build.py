"""From a configuration to a trained run and back, with tiny backbones from local folders."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from experiments import train as train_command
from flamingo.build import build_parts, feature_statistics, parameter_counts
from flamingo.choices import Collection, Precision
from flamingo.config import (
    BindingSourceConfig,
    CrossAttentionConfig,
    DataConfig,
    LanguageConfig,
    ModelConfig,
    ResamplerConfig,
    RunConfig,
    TrainingConfig,
    VisionConfig,
)
from flamingo.data.features import FeatureStore, PixelLoader
from flamingo.images import BLANK
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.testing import COLOURS, SHAPES, draw, save_tiny_language_model
from flamingo.training.loop import train
from flamingo.training.optim import decayed_names
from flamingo.types import Media

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a language model, a vision encoder, and images in one folder a class."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_language_model(folder / "lm")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(
        ViTConfig(**sizes, intermediate_size=16, image_size=32, patch_size=16)
    ).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    for colour in COLOURS:
        for shape in SHAPES:
            (folder / "images" / f"{colour} {shape}").mkdir(parents=True)
            for seed in range(3):
                path = folder / "images" / f"{colour} {shape}" / f"{seed}.png"
                draw(colour, shape, seed).save(path)
    return folder


@pytest.fixture
def config(world, tmp_path) -> RunConfig:
    return RunConfig(
        name="built",
        runs=str(tmp_path / "runs"),
        vision=VisionConfig(name=str(world / "vit")),
        language=LanguageConfig(name=str(world / "lm")),
        model=ModelConfig(
            resampler=ResamplerConfig(
                depth=1, num_latents=2, heads=2, dim_head=4, standardize_features=True
            ),
            cross_attention=CrossAttentionConfig(every=2, heads=2, dim_head=4, gate_init=0.5),
        ),
        data=DataConfig(
            binding=BindingSourceConfig(
                collection=Collection.folder,
                path=str(world / "images"),
                held_out=4,
                max_ways=3,
                images=4,
                sequences=3,
            ),
            feature_cache=str(tmp_path / "features"),
        ),
        training=TrainingConfig(
            steps=4, warmup_steps=1, log_every=1, checkpoint_every=2, precision=Precision.fp32
        ),
    )


def test_sequences_longer_than_the_learned_positions_are_refused(config, tmp_path):
    """Before training comes to the first of them, on a GPU with an assertion without a name."""
    config.language.name = str(save_tiny_language_model(tmp_path / "gpt2", "gpt2", n_positions=64))
    with pytest.raises(ValueError, match="data.max_tokens: expected at most the 64 positions"):
        build_parts(config, CPU)
    config.data.max_tokens = 64
    build_parts(config, CPU)


def test_what_trains_and_what_decays_by_exact_names(config):
    model = build_parts(config, CPU).model
    block = {
        "attention_gate",
        "feed_forward_gate",
        *("attention.norm.weight", "attention.norm.bias", "attention.to_q.weight"),
        *("attention.to_kv.weight", "attention.to_out.weight"),
        *("feed_forward.0.weight", "feed_forward.0.bias"),
        *("feed_forward.1.weight", "feed_forward.3.weight"),
    }
    resampler = {
        *("latents", "frame_embeddings", "norm.weight", "norm.bias"),
        *(
            f"layers.0.attention.norm_{of}.{p}"
            for of in ("media", "latents")
            for p in ("weight", "bias")
        ),
        *(f"layers.0.attention.to_{to}.weight" for to in ("q", "kv", "out")),
        *("layers.0.feed_forward.0.weight", "layers.0.feed_forward.0.bias"),
        *("layers.0.feed_forward.1.weight", "layers.0.feed_forward.3.weight"),
    }
    expected = {f"cross_attention.{i}.{name}" for i in (1, 3) for name in block}
    expected |= {f"resampler.{name}" for name in resampler}
    trained = set(model.trainable_parameters())
    assert trained - {"new_tokens.input", "new_tokens.output"} == expected
    assert "new_tokens.input" in trained
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
    assert decayed_names(model) == {
        f"cross_attention.{i}.{name}.weight"
        for i in (1, 3)
        for name in (
            *("attention.to_q", "attention.to_kv", "attention.to_out"),
            *("feed_forward.1", "feed_forward.3"),
        )
    }


def test_parameter_counts_add_up(config):
    model = build_parts(config, CPU).model
    counts = parameter_counts(model)
    assert {part for part, (_, trains) in counts.items() if trains} == {
        *("resampler", "cross_attention", "new_tokens")
    }
    assert sum(count for count, _ in counts.values()) == sum(p.numel() for p in model.parameters())


def test_the_seed_decides_the_initial_weights_and_the_global_generator_does_not(config):
    def weights(seed):
        torch.rand(3)
        model = build_parts(replace(config, seed=seed), CPU).model
        return torch.cat([p.flatten() for p in model.trainable_parameters().values()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_seed_decides_what_is_trained_on(config):
    def steps(seed):
        mixture = build_parts(replace(config, seed=seed), CPU).mixture
        return [mixture.step(index) for index in range(3)]

    assert steps(0) == steps(0)
    assert steps(0) != steps(1)


def test_standardised_features_of_the_training_images_have_mean_zero_and_deviation_one(config):
    parts = build_parts(config, CPU)
    resampler = parts.model.resampler
    features = parts.load_media([Media((i,)) for i in parts.mixture.images()]).float()
    scaled = ((features - resampler.feature_mean) / resampler.feature_std).flatten(0, 2)
    assert torch.allclose(scaled.mean(0), torch.zeros(16), atol=1e-4)
    assert torch.allclose(scaled.std(0), torch.ones(16), atol=1e-2)


def test_without_a_cache_statistics_come_from_a_sample_and_media_are_pixels(config):
    config.data.cache_features = False
    parts = build_parts(config, CPU)
    assert isinstance(parts.load_media, PixelLoader)
    config.data.cache_features = True
    cached = build_parts(config, CPU)
    assert isinstance(cached.load_media, FeatureStore)
    for name in ("feature_mean", "feature_std"):  # there are fewer images than a sample holds
        one, other = (getattr(p.model.resampler, name) for p in (parts, cached))
        assert torch.allclose(one, other, atol=1e-6)


def test_the_blank_image_of_validation_is_at_hand_and_no_part_of_the_statistics(config):
    parts = build_parts(config, CPU)
    store = parts.load_media
    assert isinstance(store, FeatureStore)
    shown = {image.key for image in parts.mixture.images()}
    assert BLANK.key not in shown and store.rows.keys() == shown | {BLANK.key}
    mean, _ = store.statistics(shown)
    assert torch.equal(parts.model.resampler.feature_mean, mean)
    assert not torch.equal(mean, store.statistics()[0])


def test_a_channel_that_never_changes_keeps_its_scale(config, monkeypatch):
    parts = build_parts(config, CPU, resume=True)
    assert not parts.model.resampler.feature_mean.any()  # left to the checkpoint
    measured = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    monkeypatch.setattr(FeatureStore, "statistics", lambda _, keys: measured)
    mean, std = feature_statistics(parts.model.vision_encoder, parts.load_media, [], 0)
    assert mean.tolist() == [1, 2] and std.tolist() == [1, 3]


def test_a_run_is_reopened_as_a_ready_model_with_its_statistics(config):
    parts = build_parts(config, CPU)
    run = RunDirectory.open(config)
    train(
        config,
        parts.model,
        parts.processor.tokenizer,
        parts.mixture,
        parts.load_media,
        run,
        beside=[parts.processor],
    )
    model, processor = load_run(run.path).model()
    assert torch.equal(model.resampler.feature_mean, parts.model.resampler.feature_mean)
    assert model.resampler.feature_mean.any()
    inputs = processor("<image>This is a", images=[draw("red", "circle", 9)])
    with torch.no_grad():
        expected = parts.model.eval()(**inputs).logits
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)


def test_in_bf16_the_frozen_model_is_held_in_it_and_what_trains_stays_fp32(config):
    losses = {}
    for precision in (Precision.fp32, Precision.bf16):
        config.training.precision = precision
        own = replace(config, name=precision.name)
        parts = build_parts(own, CPU)
        run = RunDirectory.open(own)
        tokenizer = parts.processor.tokenizer
        train(own, parts.model, tokenizer, parts.mixture, parts.load_media, run)
        losses[precision] = load_run(run.path).metrics["train/loss"]
    dtypes = {p.dtype for p in parts.model.language_model.parameters()}
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in parts.model.trainable_parameters().values()} == {torch.float32}
    difference = (losses[Precision.fp32] - losses[Precision.bf16]).abs()
    assert 0 < difference.max() < 0.3


# ---------------------------------------------------------------------------- the command


def command(config: RunConfig, *more: str) -> subprocess.CompletedProcess:
    source = config.data.binding
    overrides = [
        f"name={config.name}",
        f"runs={config.runs}",
        f"vision.name={config.vision.name}",
        f"language.name={config.language.name}",
        "model.resampler={depth: 1, num_latents: 2, heads: 2, dim_head: 4}",
        "model.cross_attention={every: 2, heads: 2, dim_head: 4}",
        "data.binding.collection=folder",
        f"data.binding.path={source.path}",
        "data.binding.held_out=4",
        "data.binding.max_ways=3",
        "data.binding.images=4",
        f"data.feature_cache={config.data.feature_cache}",
        "training.steps=4",
        "training.warmup_steps=1",
        "training.precision=fp32",
        *more,
    ]
    return subprocess.run(
        [sys.executable, "experiments/train.py", *overrides],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_trains_once_and_then_says_that_it_is_done(config):
    first = command(config)
    assert first.returncode == 0, first.stderr
    run = load_run(config.directory)
    assert run.checkpoints == [4] and len(run.metrics) == 1
    assert re.search(r"resampler +[\d,]+ parameters, trained", first.stdout)
    assert re.search(r"language_model +[\d,]+ parameters, frozen", first.stdout)
    assert "finished, 4 steps are done" in first.stdout
    (launch,) = run.provenance["launches"]
    assert launch["backbones"]["vision"] and launch["backbones"]["language"]
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    again = command(config)
    assert again.returncode == 0 and "finished, 4 steps are done" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before
    other = command(config, "training.lr=1.0")
    assert other.returncode == 1
    assert "training.lr: 0.0001 there, 1.0 now" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["training.stepz=5"], "training.stepz"),
        (["training.warmup_steps=9"], "training.warmup_steps: expected 0 <= warmup_steps < steps"),
        (["data.binding.path=/no/such/folder"], "/no/such/folder"),
        (["data.binding=null"], "data: expected at least one source"),
    ],
)
def test_a_mistake_ends_with_its_message_alone(config, wrong, message):
    result = command(config, *wrong)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (config.directory / "checkpoints").exists()


def test_a_model_too_large_for_the_device_ends_with_a_message_that_says_what_helps(
    config, monkeypatch
):
    def build_parts(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 200.00 MiB.")

    monkeypatch.setattr(train_command, "build_parts", build_parts)
    with pytest.raises(SystemExit) as ended:
        train_command.main(config)
    assert re.search(
        r"^error: out of memory \(CUDA .*sharding=full.*no checkpoint yet", str(ended.value.code)
    )


@pytest.mark.slow
def test_a_corrupt_training_image_is_named(config, tmp_path):
    for shape in ("one", "two", "three"):
        (tmp_path / "images" / shape).mkdir(parents=True)
        for seed in range(2):
            draw("red", "circle", seed).save(tmp_path / "images" / shape / f"{seed}.png")
    broken = tmp_path / "images" / "two" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config.data.binding.path = str(tmp_path / "images")
    result = command(config, "data.binding.held_out=0")
    assert result.returncode == 1
    assert str(broken) in result.stderr and "Traceback" not in result.stderr
    assert isinstance(Image.open(broken), Image.Image)  # only its pixels are missing
