"""Back to OpenFlamingo: the same file comes out, and what it cannot express is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.interop.open_flamingo_export import (
    CROSS_ATTENTION,
    RESAMPLER,
    open_flamingo_interval,
    open_flamingo_state,
    save_open_flamingo,
)
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from tests.interop.test_open_flamingo import FAMILIES, language_model, load, meta, saved, weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_bit_for_bit(family: str) -> None:
    state, truth = dict(open_flamingo_state(load(family))), weights(family)
    frozen_or_second_names = {
        n for n in truth if n.endswith(("lm_head.weight", "positions.weight"))
    }
    assert set(state) == set(truth) - frozen_or_second_names
    assert all(torch.equal(state[name], truth[name]) for name in state)


def test_a_vocabulary_that_open_flamingo_cut_comes_back_as_long_as_it_was(tmp_path: Path) -> None:
    """All released models: 50,280 rows of 50,368 or 50,432, as their tokenizer has tokens."""
    state = weights("gpt_neox")
    embedding = "lang_encoder.gpt_neox.embed_in.weight"
    head = language_model("gpt_neox").get_output_embeddings().weight.detach()[:90].clone()
    head[88:] *= 2
    state |= {embedding: state[embedding][:90], "lang_encoder.embed_out.weight": head}
    model = load("gpt_neox", saved(state, tmp_path), image_token_id=89, end_of_chunk_token_id=88)
    back = dict(open_flamingo_state(model))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_interval_of_blocks_is_found(family: str) -> None:
    assert open_flamingo_interval(load(family)) == meta(family).cross_attn_every_n_layers


@pytest.mark.parametrize("name", ["out/checkpoint.pt", "out/checkpoint.safetensors"])
def test_trained_new_rows_and_head_rows_survive_the_way_there_and_back(
    name: str, tmp_path: Path
) -> None:
    model = load("gpt_neox", cross_attn_every_n_layers=2, image_token_id=91)
    with torch.no_grad():
        model.new_tokens.input.normal_()
        assert model.new_tokens.output is not None
        model.new_tokens.output.normal_()
    save_open_flamingo(model, tmp_path / name)
    assert "lang_encoder.embed_out.weight" in dict(open_flamingo_state(model))  # as released
    back = load("gpt_neox", tmp_path / name, image_token_id=91)
    ids, features = torch.tensor([[91, 5, 94, 91, 8]]), torch.randn(1, 2, 1, 5, 24)
    with torch.no_grad():
        there, here = (m(ids, vision_features=features).logits for m in (model, back))
    assert torch.equal(there, here)


def test_rows_behind_the_vocabulary_are_appended(tmp_path: Path) -> None:
    model = FlamingoForConditionalGeneration.from_backbones(
        None,
        language_model("llama"),
        resampler=RESAMPLER,
        cross_attention=replace(CROSS_ATTENTION, every=4),
        vision_dim=24,
    ).eval()
    save_open_flamingo(model, tmp_path / "checkpoint.pt")
    back = load("llama", tmp_path / "checkpoint.pt", image_token_id=96, end_of_chunk_token_id=97)
    ids, features = torch.tensor([[96, 5, 97, 96, 8]]), torch.randn(1, 2, 1, 5, 24)
    with torch.no_grad():
        there, here = (m(ids, vision_features=features).logits for m in (model, back))
    assert torch.equal(there, here) and there.shape[-1] == 98


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_text("mine")
    with pytest.raises(ValueError, match="expected no such file yet"):
        save_open_flamingo(load("opt"), path)
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.safetensors"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        (tmp_path / f"{name}.tmp").write_text("half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("flamingo.interop.open_flamingo_export.save_file", full)
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match=f"could not save {tmp_path}/{name}: No space left on device"):
        save_open_flamingo(load("opt"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_adapter_in_the_language_model_is_not_dropped_but_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    language = language_model("gpt_neox")
    language.add_adapter(peft.LoraConfig(r=2, target_modules=["query_key_value"]))
    model = load("gpt_neox", language_model=language)
    with pytest.raises(ValueError, match="an adapter in the language model"):
        save_open_flamingo(model, tmp_path / "checkpoint.pt")


def test_everything_that_open_flamingo_cannot_express_is_listed(tmp_path: Path) -> None:
    model = FlamingoForConditionalGeneration.from_backbones(
        None,
        language_model("gpt_neox"),
        resampler=ResamplerConfig(depth=2, heads=8, dim_head=64),
        cross_attention=CrossAttentionConfig(every=None, layers=[0, 2]),
        vision_dim=24,
    )
    with torch.no_grad():
        model.resampler.frame_embeddings[1] = 1
        model.resampler.feature_mean[0] = 1
    with pytest.raises(ValueError) as caught:
        save_open_flamingo(model, tmp_path / "checkpoint.pt")
    told = str(caught.value)
    for reason in (
        "resampler.depth = 2 (there 6)",
        "resampler.activation",
        "cross_attention.heads = 16 (there 8)",
        "frame_embeddings are not zero",
        "features are standardised",
        "blocks before layers [0, 2] of 4",
    ):
        assert reason in told
    assert not list(tmp_path.iterdir())
