"""LoRA in the language model: it trains, the LM itself does not, and both are restored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM

from flamingo import FlamingoForConditionalGeneration
from flamingo.backbones import language as lm
from flamingo.config import TrainingConfig
from flamingo.model.card import model_card
from flamingo.testing import save_tiny_language_model, tiny_language_model
from flamingo.training.optim import decayed_names
from tests.model.conftest import VISION_DIM, features, prompt
from tests.model.test_persistence import SMALL

TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "opt": ["q_proj", "v_proj"],
    "mpt": ["Wqkv"],
}


def lora(family: str = "llama", **options: Any) -> Any:
    return peft.LoraConfig(r=2, target_modules=TARGETS[family], **options)


def adapted(family: str = "llama", *, how: str = "wrapped", **options: Any) -> Any:
    """A tiny LM with a fresh adapter, as peft or as transformers puts it on."""
    language_model = tiny_language_model(family)
    torch.manual_seed(0)
    if how == "wrapped":
        return peft.get_peft_model(language_model, lora(family, **options))
    language_model.add_adapter(lora(family, **options), "mine")
    return language_model


def flamingo(language_model: Any) -> FlamingoForConditionalGeneration:
    torch.manual_seed(1)
    return FlamingoForConditionalGeneration.from_backbones(
        None, language_model, vision_dim=VISION_DIM, **SMALL
    )


def inputs(model: FlamingoForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {"input_ids": prompt(model, 8, [1, 4], seed=1), "vision_features": features(1, 2)}


def train(model: FlamingoForConditionalGeneration, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    for _ in range(steps):
        batch = inputs(model)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("how", ["wrapped", "added"])
@pytest.mark.parametrize("family", TARGETS)
def test_a_fresh_adapter_changes_no_bit_of_the_logits(family: str, how: str):
    plain = flamingo(tiny_language_model(family)).eval()
    with_lora = flamingo(adapted(family, how=how)).eval()
    assert torch.equal(
        with_lora(**inputs(plain)).logits.detach(), plain(**inputs(plain)).logits.detach()
    )
    assert type(with_lora.language_model) is type(plain.language_model)
    assert with_lora.config.language_fingerprint == plain.config.language_fingerprint
    assert lm.decoder_path(with_lora.language_model) == lm.decoder_path(plain.language_model)


@pytest.mark.parametrize("how", ["wrapped", "added"])
@pytest.mark.parametrize("family", TARGETS)
def test_the_adapter_trains_and_the_language_model_stays_bit_identical(family: str, how: str):
    model = flamingo(adapted(family, how=how))
    plain = dict(tiny_language_model(family).named_parameters())
    before = {name: p.detach().clone() for name, p in model.trainable_parameters().items()}
    added = {name for name in before if name.startswith("language_model.")}
    adapter = "default" if how == "wrapped" else "mine"
    assert len(added) == 2 * 4 * len(TARGETS[family])  # A and B, in four layers
    assert all(f".lora_A.{adapter}." in n or f".lora_B.{adapter}." in n for n in added)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(before)
    train(model)
    for name, parameter in model.trainable_parameters().items():
        if name in added:
            assert not torch.equal(parameter, before[name]), name
    for name, parameter in model.language_model.named_parameters():
        if "lora" not in name:
            assert torch.equal(parameter, plain[name.replace(".base_layer", "")]), name
    assert lm.fingerprint(model.language_model) == model.config.language_fingerprint


def test_its_dropout_is_on_in_training_alone():
    model = flamingo(adapted(lora_dropout=0.5))
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_B" in name:
                parameter.normal_()
    model.train()
    assert not torch.equal(model(**inputs(model)).logits, model(**inputs(model)).logits)
    model.eval()
    assert torch.equal(model(**inputs(model)).logits, model(**inputs(model)).logits)


def test_generation_with_an_adapter_is_cached_exactly():
    model = flamingo(adapted())
    train(model)
    for options in ({}, {"num_beams": 3}):
        options |= {"max_new_tokens": 5, "eos_token_id": 10_000}
        cached = model.generate(**inputs(model), **options)
        assert torch.equal(cached, model.generate(**inputs(model), use_cache=False, **options))


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("how", ["wrapped", "added"])
def test_a_trained_adapter_is_saved_and_restored_bit_for_bit(
    tmp_path: Path, how: str, complete: bool
):
    base = AutoModelForCausalLM.from_pretrained(save_tiny_language_model(tmp_path / "lm"))
    if how == "wrapped":
        base = peft.get_peft_model(base, lora(use_rslora=True))
    else:
        base.add_adapter(lora(use_rslora=True), "mine")
    model = flamingo(base)
    train(model)
    model.save_pretrained(tmp_path / "saved", include_backbones=complete)
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) >= set(
        model.trainable_parameters()
    )
    if complete:  # the LM itself, as if it had never had an adapter
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "language_model")
        assert lm.fingerprint(saved) == model.config.language_fingerprint
        assert not any("lora" in name for name, _ in saved.named_parameters())
        (tmp_path / "lm").rename(tmp_path / "gone")
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(restored(**inputs(model)).logits, model(**inputs(model)).logits)
    assert set(restored.trainable_parameters()) == set(model.trainable_parameters())
    restored.save_pretrained(tmp_path / "again", include_backbones=complete)
    again = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**inputs(model)).logits, model(**inputs(model)).logits)


def test_a_given_language_model_gets_the_adapter_or_brings_its_own(tmp_path: Path):
    model = flamingo(adapted())
    train(model)
    model.save_pretrained(tmp_path)
    for given in (tiny_language_model(), adapted()):
        restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path, language_model=given)
        assert torch.equal(restored(**inputs(model)).logits, model(**inputs(model)).logits)
    with pytest.raises(ValueError, match="missing .*lora_A.default"):
        FlamingoForConditionalGeneration.from_pretrained(
            tmp_path, language_model=adapted(how="added")
        )


def test_an_adapter_on_a_bf16_language_model_is_restored_in_float32(tmp_path: Path):
    half = tiny_language_model().to(torch.bfloat16)
    model = flamingo(peft.get_peft_model(half, lora()))
    added = [p for n, p in model.trainable_parameters().items() if "lora" in n]
    assert {p.dtype for p in added} == {torch.float32}
    with torch.no_grad():
        for parameter in added:
            parameter.normal_()
    model.save_pretrained(tmp_path)
    restored = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path, language_model=tiny_language_model().to(torch.bfloat16)
    )
    for name, parameter in restored.trainable_parameters().items():
        assert torch.equal(parameter, model.trainable_parameters()[name]), name


def test_weight_decay_spares_adapters():
    model = flamingo(adapted())
    assert TrainingConfig().weight_decay > 0
    assert not any(name.startswith("language_model") for name in decayed_names(model))


def test_the_card_tells_of_the_adapter():
    model = flamingo(adapted())
    text = str(model_card(model, name="tiny"))
    added = sum(p.numel() for n, p in model.trainable_parameters().items() if "lora" in n)
    words = "LORA of rank 2 in the language model's q_proj, v_proj"
    assert f"| adapter | {words} | {added:,} | trained |" in text
    count = sum(p.numel() for p in model.trainable_parameters().values())
    assert f"| together |  | {count:,} | trained |" in text
    frozen = sum(p.numel() for p in model.parameters()) - count
    assert f"| together |  | {frozen:,} | frozen |" in text


def test_the_config_is_plain_json(tmp_path: Path):
    model = flamingo(adapted())
    model.config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["language_adapter"]
    assert stored["name"] == "default" and stored["config"]["target_modules"] == TARGETS["llama"]


def test_what_cannot_train_here_is_refused():
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="expected adapters inside its layers"):
        flamingo(peft.get_peft_model(tiny_language_model(), prefix))
    with pytest.raises(ValueError, match=re.escape("expected none (the LM stays frozen)")):
        flamingo(adapted(modules_to_save=["lm_head"]))
    two = adapted()
    two.add_adapter("second", lora())
    with pytest.raises(ValueError, match=r"expected one adapter, got \['default', 'second'\]"):
        flamingo(two)
    head = peft.get_peft_model(tiny_language_model(), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="expected a causal LM with a linear head"):
        flamingo(head)


def test_without_peft_the_error_says_what_to_install(tmp_path: Path, monkeypatch):
    flamingo(adapted()).save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[peft\]'"):
        FlamingoForConditionalGeneration.from_pretrained(
            tmp_path, language_model=tiny_language_model()
        )
