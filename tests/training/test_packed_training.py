"""However a step is divided and packed, its loss is that of the rows one by one."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_loop import assert_same_run, metrics_of, train_and_stop
from tiny_run import tiny_config, tiny_parts, tiny_train
from tiny_stream_run import save_data, stream_config, stream_train, tiny_mixture
from torch import nn

from flamingo.config import SourceConfig
from flamingo.data.collate import collate
from flamingo.data.cursor import furthest
from flamingo.data.division import Division
from flamingo.data.features import PixelLoader
from flamingo.data.mixture import Mixture
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.processor import prepare_tokenizer
from flamingo.run_directory import RunDirectory
from flamingo.testing import (
    VOCABULARY,
    SyntheticSource,
    synthetic_images,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.training.batches import Step, Steps, to_device
from flamingo.training.loop import train
from flamingo.training.loss import batch_loss
from flamingo.training.tracking import read_metrics
from flamingo.types import InterleavedSequence, Media, Text

SCRIPT = Path(__file__).with_name("tiny_run.py")
DIVISIONS = [
    Division(packing=60),
    Division(packing=60, micro_batch_tokens=80),
    Division(packing=200, micro_batches=2),
    Division(micro_batch_tokens=50),
    Division(micro_batches=3),
]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_parts(tiny_config(tmp_path_factory.mktemp("parts")))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_data(tmp_path_factory.mktemp("data"))


def step_of(parts, division: Division, rank: int = 0, world: int = 1, index: int = 3) -> Step:
    _, tokenizer, mixture, load_media = parts
    own_collate = partial(collate, pad_id=tokenizer.pad_token_id, load_media=load_media)
    return Steps(mixture, own_collate, division, rank, world)[index]


def loss_of(model: nn.Module, step: Step) -> torch.Tensor:
    batches = (to_device(batch, torch.device("cpu")) for batch in step.micro_batches)
    return torch.stack([batch_loss(model, batch, torch.ones(2))[1] for batch in batches]).sum(0)


def gradients(model: FlamingoForConditionalGeneration, step: Step) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in step.micro_batches:
        batch_loss(model, to_device(batch, torch.device("cpu")), torch.ones(2))[0].backward()
    return {n: p.grad for n, p in model.trainable_parameters().items() if p.grad is not None}


# ---------------------------------------------------------------------------- the loss of a step


@pytest.mark.parametrize("division", DIVISIONS)
def test_the_loss_of_a_step_is_that_of_its_sequences_one_by_one(parts, division):
    model = parts[0]
    whole, divided = step_of(parts, Division(micro_batches=6)), step_of(parts, division)
    assert len(whole.micro_batches) == 6
    assert (whole.tokens, whole.images) == (divided.tokens, divided.images)
    assert torch.equal(whole.learned, divided.learned)
    torch.testing.assert_close(loss_of(model, divided), loss_of(model, whole), rtol=1e-5, atol=0)
    expected = gradients(model, whole)
    for name, gradient in gradients(model, divided).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_a_model_that_mixed_documents_would_have_another_loss(parts):
    """What the test above can see."""
    model = parts[0]
    forward = model.forward

    def without_documents(*, documents, **inputs):
        return forward(**inputs)

    whole, packed = step_of(parts, Division()), step_of(parts, Division(packing=60))
    expected, batch = loss_of(model, whole), to_device(packed.micro_batches[0], torch.device("cpu"))
    assert batch.documents is not None and len(packed.micro_batches) == 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "forward", without_documents)
        assert (loss_of(model, packed) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_have_the_loss_of_one(parts, division, world):
    model = parts[0]
    whole = step_of(parts, Division())
    ranks = [step_of(parts, division, rank, world) for rank in range(world)]
    assert torch.equal(torch.stack([step.learned for step in ranks]).sum(0), whole.learned)
    total = torch.stack([loss_of(model, step) for step in ranks]).sum(0)
    torch.testing.assert_close(total, loss_of(model, whole), rtol=1e-5, atol=0)


def test_documents_are_told_to_the_model_only_where_there_are_several(parts):
    calls = []

    class Recorder(nn.Module):
        def forward(self, **inputs):
            calls.append(inputs)
            losses = torch.zeros(int((inputs["labels"][:, 1:] != -100).sum()))
            return SimpleNamespace(loss=losses.sum(), token_losses=losses)

    for division in (Division(), Division(packing=60)):
        loss_of(Recorder(), step_of(parts, division))
    plain, packed = calls
    assert "documents" not in plain
    numbers = packed["documents"]
    assert numbers.shape == packed["input_ids"].shape and numbers.max() >= 1
    assert (numbers.diff(dim=1) >= 0).all() and (numbers.diff(dim=1) <= 1).all()
    assert (numbers[:, 0] == 0).all()


def test_packing_wastes_less(parts):
    plain, packed = step_of(parts, Division()), step_of(parts, Division(packing=60))
    assert packed.padded_tokens < plain.padded_tokens
    (batch,) = plain.micro_batches
    assert plain.tokens == int(batch.attention_mask.sum()) < plain.padded_tokens


# ---------------------------------------------------------------------------- runs


@pytest.mark.parametrize("options", [{"packing": 60}, {"micro_batch_tokens": 64}])
def test_a_run_with_packed_rows_or_a_budget_is_the_run_without(tmp_path, options):
    short = {"steps": 4, "log_every": 1}
    _, straight = tiny_train(tiny_config(tmp_path / "straight", **short))
    _, run = tiny_train(tiny_config(tmp_path / "divided", **short, **options))
    for one, other in zip(metrics_of(run), metrics_of(straight), strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-6)
    efficiency = [read_metrics(r.metrics)[0]["time/token_efficiency"] for r in (run, straight)]
    assert 0 < efficiency[1] < efficiency[0] <= 1


@pytest.mark.slow
def test_processes_with_different_numbers_of_micro_batches_train_as_one(tmp_path, parts):
    options = {"steps": 4, "log_every": 1, "micro_batch_tokens": 28}
    ranks = [step_of(parts, Division(micro_batch_tokens=28), rank, 3) for rank in range(3)]
    assert [len(step.micro_batches) for step in ranks] == [1, 2, 2]
    _, straight = tiny_train(tiny_config(tmp_path / "straight", **options))
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "3"),
            *("--standalone", "--no_python", sys.executable),
            *(str(SCRIPT), str(tmp_path), *(f"{key}={value}" for key, value in options.items())),
        ],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    config = tiny_config(tmp_path, **options)
    run = RunDirectory(config.directory, config)
    for one, other in zip(metrics_of(run), metrics_of(straight), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_a_packed_run_on_streams_continues_bit_for_bit(tmp_path, data):
    training = {"steps": 6, "packing": 64, "micro_batch_tokens": 64}
    _, straight = stream_train(stream_config(tmp_path / "straight", **training), data)
    config = stream_config(tmp_path / "stopped", **training)
    first = train_and_stop(config, 4, train_with=partial(stream_train, data=data))
    assert (first.finished, first.steps) == (False, 4)
    second, run = stream_train(config, data)
    assert second.finished
    assert_same_run(run, straight)


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (3, 0)])
def test_ranks_and_workers_pack_the_same_documents_of_streams(data, world, workers):
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)

    def made(rank: int, of: int, workers: int = 0) -> list[Step]:
        own = partial(collate, pad_id=0, load_media=ones)
        steps = Steps(tiny_mixture(data, tokenizer), own, Division(packing=40), rank, of)
        return list(steps.iterate(range(8), workers))

    ranks = [made(rank, world, workers) for rank in range(world)]
    for own, whole in zip(zip(*ranks, strict=True), made(0, 1), strict=True):
        assert sorted(d for part in own for d in documents(part)) == sorted(documents(whole))
        assert furthest(part.cursors for part in own) == whole.cursors


def ones(media) -> torch.Tensor:
    return torch.ones(len(media), 1, 1, 1)


def documents(step: Step) -> list[tuple[int, ...]]:
    """Source and ids of each document."""
    found = []
    for batch in step.micro_batches:
        numbers = torch.zeros_like(batch.labels) if batch.documents is None else batch.documents
        for row in range(len(numbers)):
            for number in range(int(numbers[row].max()) + 1):
                own = (numbers[row] == number) & batch.attention_mask[row].bool()
                assert len(set(batch.source[row, own].tolist())) == 1
                ids = batch.input_ids[row, own].tolist()
                found.append((int(batch.source[row, own][0]), *ids))
    return found


# ---------------------------------------------------------------------------- clips


class Clips:
    """Clips of 8 frames, ``<image>a clip``."""

    name = "clips"

    def images(self):
        return synthetic_images(12)

    def sequence(self, index: int) -> InterleavedSequence:
        images = self.images()
        clip = Media(tuple(images[(index + n) % 12] for n in range(8)))
        return InterleavedSequence((clip, Text(f" clip {index}<|endofchunk|>", learn=True)))


@pytest.mark.parametrize("options", [{}, {"packing": 80}, {"micro_batch_tokens": 60}])
def test_clips_and_still_images_train_in_one_mixture(tmp_path, options):
    config = tiny_config(tmp_path, steps=3, log_every=1, eval_every=0, **options)
    model, tokenizer, _, _ = tiny_parts(config)
    shares = [SourceConfig(sequences=3), SourceConfig(sequences=2)]
    sources: list[Any] = [SyntheticSource(pairs=2), Clips()]
    mixture = Mixture(sources, shares, tokenizer, max_tokens=80)
    load_media = PixelLoader(tiny_vision_encoder().transform)
    step = step_of(
        (model, tokenizer, mixture, load_media), Division(packing=config.training.packing)
    )
    pixels = [batch.pixel_values for batch in step.micro_batches]
    assert [None if p is None else p.shape[2] for p in pixels] == [1, 8]
    assert step.images == 3 * 2 + 2 * 8
    result = train(config, model, tokenizer, mixture, load_media, RunDirectory.open(config))
    assert result.finished
    entry = read_metrics(RunDirectory(config.directory, config).metrics)[0]
    assert entry["train/loss/clips"] > 0 and entry["train/loss/synthetic"] > 0
