"""Language models that bitsandbytes quantised: they run, train what stands on them, and are told
apart. On the CPU, which bitsandbytes supports since 0.45."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes")

from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from flamingo import FlamingoForConditionalGeneration
from flamingo.backbones import language as lm
from flamingo.config import LanguageConfig
from flamingo.model.card import model_card
from flamingo.testing import save_tiny_language_model
from tests.model.conftest import VISION_DIM, features, prompt
from tests.model.test_persistence import SMALL

FAMILIES = ["llama", "gpt2", "opt"]


def options(bits: int) -> BitsAndBytesConfig:
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def quantized(folder: Path, family: str, bits: int) -> Any:
    save_tiny_language_model(folder, family, hidden=64)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=options(bits), dtype=torch.float32
    )


def flamingo(language_model: Any) -> FlamingoForConditionalGeneration:
    torch.manual_seed(1)
    return FlamingoForConditionalGeneration.from_backbones(
        None, language_model, vision_dim=VISION_DIM, **SMALL
    ).eval()


def inputs(model: FlamingoForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {"input_ids": prompt(model, 8, [1, 4], seed=1), "vision_features": features(1, 2)}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_closed_gates_the_logits_are_those_of_the_quantised_model(
    tmp_path: Path, family: str, bits: int
):
    language_model = quantized(tmp_path, family, bits)
    model = flamingo(language_model)
    ids = prompt(model, 8, [], seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.zero_()
        logits = model(ids).logits
        expected = language_model(ids).logits
    assert torch.equal(logits[..., :512], expected)
    assert any(p.dtype in (torch.uint8, torch.int8) for p in model.language_model.parameters())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_gets_gradients_through_it_and_it_stays_as_it_is(
    tmp_path: Path, family: str, bits: int
):
    model = flamingo(quantized(tmp_path, family, bits)).train()
    before = model.config.language_fingerprint
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(4):
        batch = inputs(model)
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        losses.append(float(loss.detach()))
        for name, parameter in model.trainable_parameters().items():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert float(model.resampler.latents.grad.abs().sum()) > 0
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert lm.fingerprint(model.language_model) == before


@pytest.mark.parametrize("bits", [4, 8])
def test_with_closed_gates_it_generates_what_the_quantised_model_does(tmp_path: Path, bits: int):
    """(Cached and uncached differ in bitsandbytes itself: it has kernels for single tokens.)"""
    language_model = quantized(tmp_path, "llama", bits)
    model = flamingo(language_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.zero_()
    ids = prompt(model, 8, [], seed=1)
    for beams in (1, 3):
        told = {"max_new_tokens": 5, "num_beams": beams, "eos_token_id": 10_000}
        ours = model.generate(ids, suppress_tokens=model.config.new_token_ids, **told)
        assert torch.equal(ours, language_model.generate(ids, do_sample=False, **told))
    seen = model.generate(**inputs(model), max_new_tokens=4, eos_token_id=10_000)
    assert seen.shape == (1, 12)


@pytest.mark.parametrize("bits", [4, 8])
def test_fingerprints_are_stable_and_tell_precisions_apart(tmp_path: Path, bits: int):
    first = lm.fingerprint(quantized(tmp_path, "llama", bits))
    assert first == lm.fingerprint(quantized(tmp_path, "llama", bits))
    other = quantized(tmp_path, "llama", 12 - bits)
    plain = lm.load_language_model(LanguageConfig(name=str(tmp_path)))
    assert len({first, lm.fingerprint(other), lm.fingerprint(plain)}) == 3
    scaled = quantized(tmp_path, "llama", bits)
    layer = scaled.model.layers[0].mlp.up_proj.weight
    (layer.quant_state.absmax if bits == 4 else layer.SCB).mul_(1.5)
    assert lm.fingerprint(scaled) != first  # the same codes, other scales


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_is_saved_and_restored(tmp_path: Path, bits: int, complete: bool):
    """By its name it is quantised again in the same way; saved along, as it is."""
    model = flamingo(quantized(tmp_path / "lm", "llama", bits))
    model.save_pretrained(tmp_path / "saved", include_backbones=complete)
    if complete:
        (tmp_path / "lm").rename(tmp_path / "gone")
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(restored(**inputs(model)).logits, model(**inputs(model)).logits)
    assert f"quantised (bitsandbytes, {bits} bits)" in str(model_card(restored, name="tiny"))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_card_counts_weights_however_they_are_packed(tmp_path: Path, bits: int):
    model = flamingo(quantized(tmp_path, "llama", bits))
    plain = lm.load_language_model(LanguageConfig(name=str(tmp_path)))
    count = sum(p.numel() for p in plain.parameters())
    assert f"| {count:,} | frozen |" in str(model_card(model, name="tiny"))


@pytest.mark.parametrize("bits", [4, 8])
def test_casts_leave_the_codes_alone(tmp_path: Path, bits: int):
    model = flamingo(quantized(tmp_path / "lm", "llama", bits))
    model.save_pretrained(tmp_path / "saved")
    half = FlamingoForConditionalGeneration.from_pretrained(
        tmp_path / "saved", dtype=torch.bfloat16
    )
    codes = {p.dtype for p in half.language_model.parameters()}
    assert codes == {torch.bfloat16, torch.uint8 if bits == 4 else torch.int8}
    with torch.no_grad():
        full, low = model(**inputs(model)).logits, half(**inputs(model)).logits.float()
    assert (full - low).norm() / full.norm() < 0.05


def test_a_low_rank_adapter_trains_on_a_quantised_model(tmp_path: Path):
    """QLoRA (Dettmers et al. 2023)."""
    peft = pytest.importorskip("peft")
    language_model = quantized(tmp_path / "lm", "llama", 4)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = flamingo(peft.get_peft_model(language_model, config)).train()
    batch = inputs(model)
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    for _ in range(2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for complete in (True, False):
        folder = tmp_path / f"saved {complete}"
        model.save_pretrained(folder, include_backbones=complete)
        restored = FlamingoForConditionalGeneration.from_pretrained(folder)
        with torch.no_grad():
            assert torch.equal(restored(**batch).logits, model(**batch).logits)
