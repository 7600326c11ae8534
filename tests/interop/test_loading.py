"""A reader from a saved folder and from a run's directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from flamingo import FlamingoForConditionalGeneration
from flamingo.asking import open_respondent
from flamingo.build import build_model
from flamingo.choices import Precision
from flamingo.composition import compose
from flamingo.data.features import EncodingLoader, PixelLoader
from flamingo.interop.loading import load_reader
from flamingo.model.processor import prepare_tokenizer
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.testing import VOCABULARY, save_tiny_language_model, tiny_tokenizer
from flamingo.training.checkpoint import save_checkpoint
from tests.tiny_world import save_vision_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that was trained for no step at all, in bf16 and with cached features."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_language_model(folder / "language")
    save_vision_encoder(folder / "vision")
    config = compose(
        [
            "name=tiny",
            f"runs={folder / 'runs'}",
            f"vision.name={folder / 'vision'}",
            "vision.revision=null",
            f"language.name={folder / 'language'}",
            "language.revision=null",
            "model.resampler.depth=1",
            "training.precision=bf16",
        ]
    )
    model, processor = build_model(config, CPU)
    directory = RunDirectory.open(config)
    save_checkpoint(
        directory.checkpoints, step=0, models=[model, processor], state={}, config_hash="", keep=1
    )
    return directory.path


def test_a_run_reads_in_its_own_precision_and_encodes_as_in_training(run) -> None:
    reader = load_reader(str(run), None, CPU)
    assert reader.dtype is torch.bfloat16 is reader.model.language_model.dtype
    assert next(reader.model.resampler.parameters()).dtype is torch.float32
    assert isinstance(reader.latents._load, EncodingLoader)
    exact = load_reader(str(run), Precision.fp32, CPU)
    assert exact.dtype is torch.float32 is exact.model.language_model.dtype


def test_a_run_that_caches_no_features_is_asked_with_pixels(run, tmp_path) -> None:
    shutil.copytree(run, own := tmp_path / "seed=0")
    config = own / "config.yaml"
    config.write_text(config.read_text().replace("cache_features: true", "cache_features: false"))
    for reader in (load_reader(str(own), None, CPU), open_respondent(load_run(own)).reader):
        assert isinstance(reader.latents._load, PixelLoader)
    assert isinstance(open_respondent(load_run(run)).reader.latents._load, EncodingLoader)


def test_a_saved_folder_is_read_in_the_precision_that_is_asked_for(run) -> None:
    folder = run / "checkpoints" / "step_0"
    for precision, dtype in ((Precision.fp32, torch.float32), (Precision.bf16, torch.bfloat16)):
        reader = load_reader(str(folder), precision, CPU)
        assert reader.dtype is dtype is reader.model.language_model.dtype
        assert isinstance(reader.latents._load, PixelLoader)
        assert reader.tokenizer.convert_tokens_to_ids("<image>") == VOCABULARY


def test_a_model_without_a_vision_encoder_is_refused(run, tmp_path) -> None:
    model = FlamingoForConditionalGeneration.from_backbones(
        None, str(run.parents[2] / "language"), vision_dim=8
    )
    model.save_pretrained(tmp_path)
    prepare_tokenizer(tiny_tokenizer(), VOCABULARY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pretrained: expected a model with a vision encoder"):
        load_reader(str(tmp_path), Precision.fp32, CPU)
