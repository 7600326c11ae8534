"""experiments/convert.py, from published formats to a run and back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.convert import ConvertConfig, convert, main
from flamingo.composition import compose
from flamingo.interop.check import check_close, check_equal, check_way_back
from flamingo.interop.open_flamingo_file import CheckpointFile, read_checkpoint
from flamingo.interop.open_flamingo_names import LanguageModelNames
from flamingo.runs import load_run
from flamingo.testing import VOCABULARY
from flamingo.training.checkpoint import CheckpointError
from tests.interop.test_idefics_processor import FAKE, checkpoint
from tests.tiny_world import conversion, save_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_release(tmp_path_factory.mktemp("release"))


def config(*overrides: str) -> ConvertConfig:
    return compose(list(overrides), ConvertConfig, "config")


def test_a_release_becomes_a_run_and_comes_back_as_it_was(release: Path, tmp_path: Path) -> None:
    told = convert(config(*conversion(release, tmp_path)))
    run = load_run(tmp_path / "openflamingo_4b" / "seed=0")
    assert run.checkpoints == [0] and run.config.language.name == f"{release}/lm"
    model, processor = run.model()
    original = load_file(release / "checkpoint.safetensors")
    blocks = "lang_encoder.gpt_neox.layers.3.gated_cross_attn_layer"
    gate = model.trainable_parameters()["cross_attention.3.attention_gate"]
    assert torch.equal(gate, original[f"{blocks}.attn_gate"])
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == VOCABULARY + 1
    assert model.config.image_token_id == VOCABULARY + 1

    report = json.loads(run.directory.conversion.read_text())
    assert {name for move in report["moves"] for name in move["source"]} == set(original)
    assert [check["what"] for check in report["checks"]] == [
        "what trains, back in OpenFlamingo's names, against the file",
        "logits of the sample, opened again",
    ]
    assert "cross_attention" in told and "goes on with" in told

    back = tmp_path / "back.safetensors"
    convert(
        config(
            "source=flamingo",
            f"checkpoint='{run.path}'",
            "target=open_flamingo",
            f"to={back}",
        )
    )
    again = load_file(back)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)
    assert (tmp_path / "back.safetensors.conversion.json").is_file()


@pytest.mark.parametrize("broken", ["check_equal", "write_atomically"])
def test_a_file_for_open_flamingo_has_its_name_once_it_is_checked(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    convert(config(*conversion(release, tmp_path)))
    run, back = tmp_path / "openflamingo_4b" / "seed=0", tmp_path / "back.safetensors"
    own = config("source=flamingo", f"checkpoint='{run}'", "target=open_flamingo", f"to={back}")
    with monkeypatch.context() as patch:
        patch.setattr(f"experiments.convert.{broken}", stops)
        with pytest.raises(KeyboardInterrupt):
            convert(own)
    assert not back.exists()
    convert(own)
    left = {file.name for file in tmp_path.glob("back*")}
    assert left == {"back.safetensors", "back.safetensors.conversion.json"}
    assert load_file(back).keys() == load_file(release / "checkpoint.safetensors").keys()


def test_nothing_that_is_there_is_overwritten(release: Path, tmp_path: Path) -> None:
    convert(config(*conversion(release, tmp_path)))
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="name: expected a run that is not there yet"):
        convert(config(*conversion(release, tmp_path)))
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    (tmp_path / "mine.pt").write_text("mine")
    with pytest.raises(ValueError, match=r"to: expected no such file yet, found .*mine\.pt"):
        convert(
            config(
                "source=flamingo",
                "checkpoint=x",
                "target=open_flamingo",
                f"to={tmp_path}/mine.pt",
            )
        )


@pytest.mark.parametrize("broken", ["save_checkpoint", "check_equal", "write_atomically"])
def test_a_conversion_that_did_not_end_is_no_run_and_the_same_command_does_it_again(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise CheckpointError("no space left; free some space, and the same command continues")

    own = config(*conversion(release, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(f"experiments.convert.{broken}", stops)
        with pytest.raises(SystemExit, match="^error: no space left; free some space"):
            main(own)
    with pytest.raises(ValueError, match="expected a run's configuration, found no such file"):
        load_run(own.directory)
    convert(own)
    run = load_run(own.directory)
    assert run.checkpoints == [0] and run.directory.conversion.is_file()
    run.directory.config_file.unlink()
    shutil.copytree(run.checkpoint().path, run.directory.checkpoints / "step_9")
    manifest = run.directory.checkpoints / "step_9" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 0', '"step": 9'))
    with pytest.raises(ValueError, match="name: expected a run that is not there yet"):
        convert(own)  # what was trained is no conversion's


def test_a_run_of_another_architecture_is_refused(release: Path, tmp_path: Path) -> None:
    for override, message in (
        ("model.resampler.depth=2", "model.resampler.depth: expected 6, .* got 2"),
        ("model.cross_attention.dim_head=32", "cross_attention.dim_head: expected 64.* got 32"),
        (
            "model.cross_attention.every=4",
            "with every=4 .* got one with blocks before layers .1, 3., .*: missing .* left over",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            convert(config(*conversion(release, tmp_path), override))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_idefics_becomes_a_run_that_holds_nothing_but_what_trains(
    tmp_path: Path, precision: str
) -> None:
    folder = tmp_path / "idefics"
    checkpoint(folder, FAKE, "<image>")
    told = convert(
        config(
            "source=idefics",
            f"checkpoint={folder}",
            "name=idefics",
            f"runs={tmp_path}/runs",
            f"sample.text='{FAKE}<image>{FAKE}An image of'",
            f"training.precision={precision}",
        )
    )
    assert "against transformers' Idefics: within" in told
    run = load_run(tmp_path / "runs/idefics/seed=0")
    model, _ = run.model()
    assert run.config.vision.name == run.config.language.name == str(folder)
    assert not (run.checkpoint().path / "language_model").exists()
    assert model.config.image_token_id == VOCABULARY + 1
    assert {p.dtype for p in model.trainable_parameters().values()} == {torch.float32}


def test_a_sample_without_an_image_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample.text: expected a prompt with <image>, got 'x'"):
        convert(config("source=idefics", f"checkpoint={tmp_path}", "sample.text=x"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=flamingo"], "target: .* another format than source"),
        (["source=open_flamingo", "target=idefics"], "target: expected flamingo or open_flamingo"),
        (["source=flamingo", "target=open_flamingo"], "to: expected a file, got None"),
        (["source=idefics", "to=x.pt"], "to: expected none with target=flamingo"),
        (["source=open_flamingo", "image_token_id=3"], "expected both or neither, got 3 and None"),
        ([], "source: expected a value"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(*overrides, "checkpoint=x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("open_flamingo", r"checkpoint: expected a \.pt or \.safetensors file, found none at"),
        ("idefics", "checkpoint: expected a folder or a hub name, found nothing at"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named_before_anything_is_loaded(
    source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(config(f"source={source}", f"checkpoint={tmp_path}/nothing"))


# ---------------------------------------------------------------------------- checks


def test_checks_find_what_is_wrong(release: Path) -> None:
    logits = torch.randn(3, 5)
    wrong = logits.clone()
    wrong[2, 4] += 1e-3
    assert check_equal(logits, logits.clone(), "x").found.startswith("equal")
    with pytest.raises(ValueError, match="do not use it"):
        check_equal(logits, wrong, "x")
    assert check_close(logits, logits + 1e-6, "y", 1e-4).found.startswith("within")
    with pytest.raises(ValueError, match="logits of y: expected within"):
        check_close(logits, wrong, "y", 1e-4)
    with pytest.raises(ValueError, match="got nan off"):
        check_close(logits, logits * float("nan"), "y", 1e-4)
    with pytest.raises(ValueError, match="expected shape"):
        check_close(logits, logits[:2], "y", 1e-4)


def test_the_way_back_finds_a_changed_tensor(release: Path, tmp_path: Path) -> None:
    convert(config(*conversion(release, tmp_path)))
    model, _ = load_run(tmp_path / "openflamingo_4b" / "seed=0").model()
    names = LanguageModelNames.of(model.language_model)
    file = CheckpointFile.of(read_checkpoint(release / "checkpoint.safetensors"), names)
    assert "equal" in check_way_back(model, file).found
    for parameter in (model.resampler.norm.bias, model.new_tokens.input):
        assert isinstance(parameter, nn.Parameter)
        with torch.no_grad():
            parameter[-1] += 1e-3
        with pytest.raises(ValueError, match="back as it was, got other values"):
            check_way_back(model, file)
        with torch.no_grad():
            parameter[-1] -= 1e-3
