"""Losses with and without images against sequences whose media were replaced by hand."""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_run import tiny_config, tiny_parts

from flamingo.config import SourceConfig
from flamingo.data.collate import collate
from flamingo.data.division import Division
from flamingo.data.features import EncodingLoader, FeatureStore, PixelLoader
from flamingo.data.mixture import UNSEEN, Mixture
from flamingo.images import BLANK
from flamingo.model import flamingo
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.testing import SyntheticSource, synthetic_images, tiny_vision_encoder
from flamingo.training import failures
from flamingo.training.batches import Steps
from flamingo.training.even_work import EvenWork
from flamingo.training.failures import OtherProcessError
from flamingo.training.loss import keep_mask, learned_tokens
from flamingo.training.validation import ValidationLoss
from flamingo.types import END_OF_CHUNK_TOKEN, InterleavedSequence, Media, Text

BATCHES = 2


@dataclass(frozen=True)
class TextSource:
    """Text alone."""

    name: str = "text"

    def images(self):
        return ()

    def sequence(self, index: int) -> InterleavedSequence:
        return InterleavedSequence((Text(f"{index} is a blue{END_OF_CHUNK_TOKEN}", learn=True),))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Model and a mixture of images (rows of one and of three) and of text."""
    model, tokenizer, *_ = tiny_parts(tiny_config(tmp_path_factory.mktemp("run")))
    sources = [SyntheticSource(pairs=1), SyntheticSource(pairs=3, name="long"), TextSource()]
    shares = [
        *(SourceConfig(sequences=3), SourceConfig(sequences=2, loss_weight=0.5)),
        SourceConfig(sequences=2),
    ]
    return model.eval(), Mixture(sources, shares, tokenizer, max_tokens=128)


def validation(mixture, load_media, *, micro_batches: int = 1, even=list) -> ValidationLoss:
    steps = Steps(mixture, lambda r, s: collate(r, s, 0, load_media), Division(micro_batches), 0, 1)
    accelerator = Accelerator(mixed_precision="no")
    return ValidationLoss(mixture, steps, accelerator, BATCHES, load_media, even)


@pytest.fixture(scope="module")
def metrics(parts):
    model, mixture = parts
    return validation(mixture, EncodingLoader(tiny_vision_encoder()))(0, model)


@torch.no_grad()
def literal_losses(parts, change) -> dict[str, float]:
    """Mean token loss by source, each sequence in a batch of its own, ``change`` made to it."""
    model, mixture = parts
    load_media = EncodingLoader(tiny_vision_encoder())
    sums = dict.fromkeys(mixture.names, 0.0)
    counts = torch.zeros(len(mixture.names))
    for index in range(UNSEEN, UNSEEN + BATCHES):
        for source, row in mixture.step(index):
            batch = collate([change(row)], None, 0, load_media)
            logits = model(
                input_ids=batch.input_ids, vision_features=_floats(batch.vision_features)
            ).logits
            keep = keep_mask(batch.labels)
            targets = batch.labels[:, 1:][keep[:, :-1]]
            scores = logits[keep].log_softmax(-1).gather(1, targets[:, None])
            sums[mixture.names[source]] -= scores.sum().item()
        counts += learned_tokens(mixture.step(index), len(mixture.names))
    return {name: sums[name] / n for name, n in zip(mixture.names, counts.tolist(), strict=True)}


def _floats(media):
    return None if media is None else media.float()


def test_perplexities_and_gain_are_those_of_the_sequences_with_real_and_with_blank_media(
    parts, metrics
):
    real = literal_losses(parts, lambda row: row)
    blank = literal_losses(
        parts, lambda row: replace(row, media=tuple(Media((BLANK,)) for _ in row.media))
    )
    for name in ("synthetic", "long"):
        assert metrics[f"validation/loss/{name}"] == pytest.approx(real[name], rel=1e-5)
        perplexity = metrics[f"validation/perplexity/{name}"]
        assert perplexity == pytest.approx(math.exp(real[name]), rel=1e-4)
        without = metrics[f"validation/perplexity_without_image/{name}"]
        assert without == pytest.approx(math.exp(blank[name]), rel=1e-4)
        gain = metrics[f"validation/image_gain/{name}"]
        assert gain == pytest.approx(blank[name] - real[name], abs=1e-4) and abs(gain) > 1e-3


def test_the_validation_loss_is_the_weighted_sum_of_the_sources_with_their_media(parts, metrics):
    real = literal_losses(parts, lambda row: row)
    expected = real["synthetic"] + 0.5 * real["long"] + real["text"]
    assert metrics["validation/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_source_of_text_has_a_perplexity_and_nothing_without_images(metrics):
    assert {n for n in metrics if n.endswith("/text")} == {
        "validation/loss/text",
        "validation/perplexity/text",
    }


def test_a_blind_model_gains_exactly_nothing(parts):
    model, mixture = parts
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "attention_gate" in n}
    try:
        with torch.no_grad():
            for name, gate in model.named_parameters():
                gate *= name not in before
        metrics = validation(mixture, EncodingLoader(tiny_vision_encoder()))(0, model)
    finally:
        model.load_state_dict(before, strict=False)
    assert metrics["validation/image_gain/long"] == 0 == metrics["validation/image_gain/synthetic"]


def test_what_a_source_scores_does_not_depend_on_the_batches_it_stands_in(parts, metrics):
    model, mixture = parts
    split = validation(mixture, EncodingLoader(tiny_vision_encoder()), micro_batches=4)(0, model)
    assert split == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("pixels", [False, True])
def test_stand_ins_change_nothing(parts, metrics, pixels):
    """Text alone in some micro-batches, and one micro-batch fewer than another process has."""
    model, mixture = parts
    encoder = tiny_vision_encoder()
    work = EvenWork.of(model, Accelerator(mixed_precision="no"))
    seeing = FlamingoForConditionalGeneration(
        model.config, language_model=model.language_model, vision_encoder=encoder
    )
    seeing.load_state_dict(model.state_dict(), strict=False)
    loader = PixelLoader(encoder.transform) if pixels else EncodingLoader(encoder)
    even = partial(work.fill, count=8)
    callback = validation(mixture, loader, micro_batches=7, even=even)
    tolerance = {"rel": 1e-2, "abs": 1e-3} if pixels else {"rel": 1e-4, "abs": 1e-5}
    assert callback(0, seeing.eval()) == pytest.approx(metrics, **tolerance)


def test_cached_features_and_pixels_give_the_same(parts, metrics, tmp_path):
    model, mixture = parts
    encoder = tiny_vision_encoder()
    store = FeatureStore.build([*synthetic_images(24), BLANK], encoder, tmp_path)
    assert validation(mixture, store)(0, model) == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    seeing = FlamingoForConditionalGeneration(
        model.config, language_model=model.language_model, vision_encoder=encoder
    )
    seeing.load_state_dict(model.state_dict(), strict=False)
    pixels = validation(mixture, PixelLoader(encoder.transform))(0, seeing.eval())
    assert pixels == pytest.approx(metrics, rel=1e-2, abs=1e-3)  # features not rounded to fp16


def test_data_that_fail_on_another_process_stop_this_one_too(parts, monkeypatch):
    model, mixture = parts
    callback = validation(mixture, EncodingLoader(tiny_vision_encoder()))
    monkeypatch.setattr(failures, "sum_over_processes", lambda own, _: own + 1)
    with pytest.raises(OtherProcessError, match="another process could not go on"):
        callback(0, model)


def test_a_cache_without_the_blank_image_is_refused_before_training(parts, tmp_path):
    _, mixture = parts
    store = FeatureStore.build(synthetic_images(24), tiny_vision_encoder(), tmp_path)
    with pytest.raises(KeyError, match="expected one of its 24 images, got 'blank/"):
        validation(mixture, store)


def test_validation_keeps_no_keys_and_values(parts, monkeypatch):
    def refuse(**_):
        raise AssertionError("a cache that nobody reads")

    model, mixture = parts
    monkeypatch.setattr(flamingo, "FlamingoCache", refuse)
    assert validation(mixture, EncodingLoader(tiny_vision_encoder()))(0, model)


def test_validation_draws_no_random_numbers(parts):
    model, mixture = parts
    load_media = EncodingLoader(tiny_vision_encoder())
    before, others = torch.get_rng_state(), str(np.random.get_state())
    validation(mixture, load_media)(0, model)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == others  # (Python's own moves with beartype's checks)
