"""Checkpoints of a run as models that are ready to use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flamingo.backbones.language import load_language_model
from flamingo.backbones.vision import load_vision_encoder
from flamingo.model.auto import FlamingoForConditionalGeneration
from flamingo.runs import Run, load_run
from flamingo.testing import save_tiny_language_model
from tests.tiny_world import save_untrained_run, save_vision_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    world = tmp_path_factory.mktemp("world")
    save_tiny_language_model(world / "language")
    save_vision_encoder(world / "vision")
    return load_run(save_untrained_run(world, "tiny", steps=(7, 9)))


def test_the_newest_checkpoint_or_a_given_one_opens_in_eval_mode(run: Run) -> None:
    file = run.checkpoint(7).path / "model.safetensors"
    saved = load_file(file)
    name = next(name for name in saved if name.endswith("latents"))
    for step in (None, 7):
        model, processor = run.model(step)
        assert not any(module.training for module in model.modules())
        own = [*model.language_model.parameters(), *model.trainable_parameters().values()]
        assert {p.dtype for p in own} == {torch.float32}
        assert torch.equal(model.state_dict()[name], saved[name])
        assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    assert run.checkpoints == [7, 9]


def test_it_is_on_the_device_and_in_the_precision_that_are_asked_for(run: Run) -> None:
    model, _ = run.model(device="meta", dtype="bfloat16")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cuda:99"}, r"device: expected one of this machine \(cpu.*, got 'cuda:99': "),
        ({"device": "cud"}, r"device: expected one of this machine \(cpu.*, got 'cud'$"),
        (
            {"language_model": "some/lm"},
            r"language_model: expected a loaded model, got 'some/lm'; .*language.load_language_mode"
            r"l.*run.config.language, name='some/lm'",
        ),
        (
            {"vision_encoder": Path("here")},
            r"vision_encoder: expected a loaded model, .*vision.load_vision_encoder.*name='here'",
        ),
    ],
)
def test_what_no_model_can_have_is_refused_before_one_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(FlamingoForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(ValueError, match=message):
        Run.model.__wrapped__(run, **asked)  # without the tests' own check of types


def test_a_step_as_text_is_told_from_a_number(run: Run) -> None:
    with pytest.raises(ValueError, match=r"expected a checkpoint of step '7', got \[7, 9\]"):
        Run.checkpoint.__wrapped__(run, "7")


def test_a_checkpoint_that_is_being_written_is_not_opened(run: Run, tmp_path: Path) -> None:
    copy = load_run(shutil.copytree(run.path, tmp_path / "copy"))
    shutil.copytree(copy.checkpoint(9).path, copy.directory.checkpoints / ".unfinished-step_20")
    torn = Path(shutil.copytree(copy.checkpoint(9).path, copy.directory.checkpoints / "step_30"))
    (torn / "model.safetensors").write_bytes(b"half")
    assert copy.checkpoints == [7, 9]
    assert copy.checkpoint().step == 9
    with pytest.raises(ValueError, match=r"expected a checkpoint of step 30, got \[7, 9\]"):
        copy.model(30)


def test_a_backbone_that_is_not_on_this_machine_is_named_and_can_be_given(
    run: Run, tmp_path: Path
) -> None:
    language, vision = Path(run.config.language.name), Path(run.config.vision.name)
    given = {
        "language_model": load_language_model(run.config.language),
        "vision_encoder": load_vision_encoder(run.config.vision),
    }
    for folder, what in ((language, "language_model"), (vision, "vision_encoder")):
        folder.rename(tmp_path / "away")
        others = {name: part for name, part in given.items() if name != what}
        try:
            with pytest.raises((ValueError, OSError), match=str(folder)):
                run.model(**others)
            model, _ = run.model(**given)
            assert getattr(model, what) is given[what]
        finally:
            (tmp_path / "away").rename(folder)
