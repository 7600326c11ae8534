"""The operations of a batch against torch's counter; peaks of devices by the names they give."""

import logging

import pytest
import torch
from test_flops import PATCHES, VISION_DIM, build, counted

from flamingo.composition import compose
from flamingo.config import SourceConfig, TrainingConfig
from flamingo.data.collate import collate
from flamingo.data.mixture import Mixture
from flamingo.model.processor import place_special_tokens
from flamingo.planning.devices import cpu_peak, gpu_peak
from flamingo.planning.flops import needed_flops
from flamingo.planning.shapes import EncoderShape, Shapes
from flamingo.planning.utilisation import ModelFlops, run_utilisation
from flamingo.planning.workload import BatchShape, measured_workload
from flamingo.testing import SyntheticSource, save_tiny_language_model, tiny_tokenizer
from flamingo.training.batches import Steps, division_of
from flamingo.types import Batch
from tests.tiny_world import save_vision_encoder

ROWS = [(40, 2, 12), (25, 1, 5), (14, 0, 3)]
"""Tokens, images and learned tokens of each row."""
ENCODER = EncoderShape(parameters=0, patches=PATCHES, dim=VISION_DIM, flops=1000)


def batch_of(rows, image_token: int, media: dict[str, torch.Tensor]) -> Batch:
    ids = torch.full((len(rows), 48), 5)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, (tokens, images, learned) in enumerate(rows):
        ids[index, :images] = image_token
        ids[index, tokens + 1] = image_token  # behind the row: padding, and no image
        mask[index, :tokens] = 1
        labels[index, 1 : 1 + learned] = 7
    return Batch(ids, mask, labels, torch.zeros_like(ids), **media)


def test_a_batch_needs_what_its_rows_need_alone_without_any_padding():
    model = build("llama")
    features = {"vision_features": torch.zeros(3, 2, 1, PATCHES, VISION_DIM)}
    batch = batch_of(ROWS, model.config.image_token_id, features)
    expected = 0
    for tokens, images, learned in ROWS:
        expected += sum(counted(model, BatchShape(1, tokens, images, images, 1, learned)))
    # What checkpointing computes again is not needed.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert ModelFlops(Shapes(model, ENCODER))(batch) == pytest.approx(expected, rel=0.003)


def test_images_are_encoded_where_the_batch_has_pixels():
    model = build("llama")
    flops, token = ModelFlops(Shapes(model, ENCODER)), model.config.image_token_id
    cached = {"vision_features": torch.zeros(3, 2, 2, PATCHES, VISION_DIM)}
    pixels = {"pixel_values": torch.zeros(3, 2, 2, 3, 8, 8)}
    more = flops(batch_of(ROWS, token, pixels)) - flops(batch_of(ROWS, token, cached))
    assert more == 3 * 2 * 1000  # of the three real images both frames


@pytest.mark.parametrize(
    "settings",
    [
        TrainingConfig(),
        TrainingConfig(micro_batches=2),
        TrainingConfig(packing=96),
        TrainingConfig(micro_batch_tokens=128, packing=64),
    ],
    ids=["padded", "micro-batches", "packed", "budget"],
)
def test_the_plan_s_mfu_is_the_one_that_training_logs(settings: TrainingConfig):
    model = build("llama")
    token = model.config.image_token_id
    tokenizer = place_special_tokens(
        tiny_tokenizer(), image_token_id=token, end_of_chunk_token_id=token + 1
    )
    sources = [SyntheticSource(pairs=1), SyntheticSource(pairs=3)]
    mixture = Mixture(sources, [SourceConfig(sequences=3)] * 2, tokenizer, 512)

    def features(media) -> torch.Tensor:
        return torch.zeros(len(media), 1, PATCHES, VISION_DIM)

    def gather(rows, source) -> Batch:
        return collate(rows, source, pad_id=0, load_media=features)

    shapes = Shapes(model, ENCODER)
    steps = [Steps(mixture, gather, division_of(settings), rank, 2)[0] for rank in range(2)]
    batches = [batch for step in steps for batch in step.micro_batches]
    planned = measured_workload(mixture, settings, world=2, steps=1)
    assert len(batches) == len(planned.batches)
    needed = sum(map(ModelFlops(shapes), batches))
    assert needed_flops(shapes, planned.batches, encodes=False) == needed
    assert planned.tokens == sum(step.tokens for step in steps)
    assert planned.padded_tokens == sum(step.padded_tokens for step in steps)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100-PCIE-40GB", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835, 60),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA A10G", 70, 35),
        ("NVIDIA GeForce RTX 4090", 165, 82.6),
        ("Tesla V100-SXM2-32GB", None, 15.7),
        ("NVIDIA L40", None, None),
        ("NVIDIA H200 NVL", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GH200 480GB", None, None),
    ],
)
def test_a_gpu_is_known_by_its_driver_s_name_or_not_at_all(name, bf16, fp32):
    for tflops, dtype in ((bf16, torch.bfloat16), (fp32, torch.float32)):
        peak = gpu_peak(name, dtype)
        assert peak is None if tflops is None else peak == pytest.approx(tflops * 1e12)


def test_a_cpu_is_measured_without_drawing_random_numbers():
    before = torch.get_rng_state()
    assert 1e8 < cpu_peak(torch.float32, seconds=0.01, size=256) < 1e14
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def overrides(tmp_path) -> list[str]:
    save_tiny_language_model(tmp_path / "language")
    return [
        "name=x",
        f"language.name={tmp_path / 'language'}",
        f"vision.name={save_vision_encoder(tmp_path / 'vision')}",
    ]


def test_a_run_s_peak_is_the_given_one_or_that_of_its_device(overrides):
    given = run_utilisation(compose([*overrides, "tracking.peak_tflops=0.5"]), torch.device("cpu"))
    assert given is not None and given.peak == 5e11
    measured = run_utilisation(compose(overrides), torch.device("cpu"))
    assert measured is not None and measured.peak is not None and measured.peak > 1e8
    batch = batch_of(ROWS, 512, {})
    assert given.flops(batch) == measured.flops(batch) > 0


def test_what_is_not_known_is_said_and_not_made_up(overrides, caplog):
    with caplog.at_level(logging.WARNING):
        unknown = run_utilisation(compose(overrides), torch.device("meta"))
    assert unknown is not None and unknown.peak is None
    assert "tracking.peak_tflops" in caplog.text
    config = compose(overrides)
    config.language.name = "/no/such/model"
    with caplog.at_level(logging.WARNING):
        assert run_utilisation(config, torch.device("cpu")) is None
    assert "no operations a second" in caplog.text


def test_a_peak_of_nothing_is_refused(overrides):
    with pytest.raises(ValueError, match="tracking.peak_tflops: expected > 0 or null, got 0"):
        compose([*overrides, "tracking.peak_tflops=0"])
