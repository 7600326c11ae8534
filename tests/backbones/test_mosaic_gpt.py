"""MosaicGPT against its formulas written out again, and against transformers' MPT."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig, MptForCausalLM

from flamingo.backbones.language import decoder_path, load_language_model
from flamingo.backbones.mosaic_gpt import MosaicGPTConfig, MosaicGPTForCausalLM
from flamingo.config import LanguageConfig
from flamingo.testing import tiny_language_model

WIDTH, HEADS, LAYERS, VOCABULARY = 24, 3, 2, 64
RELEASED = {
    "model_type": "mosaic_gpt",
    "architectures": ["MosaicGPT"],
    "auto_map": {"AutoModelForCausalLM": "mosaic_gpt.MosaicGPT"},
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_clip_qkv": None,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_qk_ln": True,
    "d_model": WIDTH,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "init_device": "cpu",
    "logit_scale": None,
    "low_precision_layernorm": True,
    "max_seq_len": 128,
    "mlp_ratio": 4,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "no_bias": True,
    "param_init_fn": "kaiming_normal_",
    "prefix_lm": False,
    "resid_pdrop": 0,
    "softmax_scale": None,
    "vocab_size": VOCABULARY,
}
"""A config.json with the keys of the original's configuration class (MosaicML Examples)."""


def released_weights(seed: int = 0) -> dict[str, Tensor]:
    """Tensors under the names that the released files have; no head, no biases."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"transformer.wte.weight": (VOCABULARY, WIDTH), "transformer.ln_f.weight": (WIDTH,)}
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}"
        shapes |= {f"{block}.{name}.weight": (WIDTH,) for name in ("ln_1", "ln_2")}
        shapes |= {f"{block}.attn.{name}.weight": (WIDTH,) for name in ("q_ln", "k_ln")}
        shapes[f"{block}.attn.Wqkv.weight"] = (3 * WIDTH, WIDTH)
        shapes[f"{block}.attn.out_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}.mlp.mlp_up.weight"] = (4 * WIDTH, WIDTH)
        shapes[f"{block}.mlp.mlp_down.weight"] = (WIDTH, 4 * WIDTH)
    return {
        name: torch.randn(shape, generator=draw) * 0.3 + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosaic_gpt")
    (folder / "config.json").write_text(json.dumps(RELEASED))
    save_file(released_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_language_model(LanguageConfig(name=str(folder)))


def ids(rows: int = 2, tokens: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(
        0, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed)
    )


# ---------------------------------------------------------------------------- the reference


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def alibi_slopes(heads: int) -> list[float]:
    """Of the original's ``gen_slopes``: for 3 heads those of 4, every second one first."""
    of_four = [2.0 ** -(8 * (i + 1) / 4) for i in range(4)]
    assert heads == 3
    return [of_four[1], of_four[3], of_four[0]]


def reference_logits(weights: dict[str, Tensor], row: Tensor) -> Tensor:
    """One unpadded row, token by token and head by head, by the formulas alone."""
    stream = weights["transformer.wte.weight"][row]
    size = WIDTH // HEADS
    for i in range(LAYERS):
        own = {
            name.removeprefix(f"transformer.blocks.{i}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"transformer.blocks.{i}.")
        }
        mixed = layer_norm(stream, own["ln_1.weight"]) @ own["attn.Wqkv.weight"].T
        query = layer_norm(mixed[:, :WIDTH], own["attn.q_ln.weight"])
        key = layer_norm(mixed[:, WIDTH : 2 * WIDTH], own["attn.k_ln.weight"])
        value = mixed[:, 2 * WIDTH :]
        attended = torch.zeros_like(stream)
        for head, slope in enumerate(alibi_slopes(HEADS)):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(row)):
                distance = torch.arange(-t, 1)
                scores = key[: t + 1, part] @ query[t, part] / size**0.5 + slope * distance
                attended[t, part] = torch.softmax(scores, 0) @ value[: t + 1, part]
        stream = stream + attended @ own["attn.out_proj.weight"].T
        up = layer_norm(stream, own["ln_2.weight"]) @ own["mlp.mlp_up.weight"].T
        gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        stream = stream + gelu @ own["mlp.mlp_down.weight"].T
    final = layer_norm(stream, weights["transformer.ln_f.weight"])
    return final @ weights["transformer.wte.weight"].T


@torch.no_grad()
def test_logits_are_those_of_the_formulas(model):
    tokens = ids()
    for row, logits in zip(tokens, model(tokens).logits, strict=True):
        expected = reference_logits(released_weights(), row)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_without_query_and_key_norms_it_is_transformers_mpt():
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64, "max_seq_len": 64}
    theirs = MptForCausalLM(MptConfig(**sizes, initializer_range=0.3)).eval()
    ours = MosaicGPTForCausalLM(MosaicGPTConfig(**sizes, no_bias=True)).eval()
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in (("norm_f", "ln_f"), ("norm_", "ln_"), ("ffn.", "mlp.mlp_")):
            name = name.replace(old, new)
        renamed[name.replace("_proj.weight", ".weight") if "mlp" in name else name] = tensor
    ours.load_state_dict(renamed)
    tokens = ids(tokens=20)
    mask = torch.ones_like(tokens)
    mask[1, :6] = 0
    expected = theirs(tokens, attention_mask=mask).logits[mask == 1]
    actual = ours(tokens, attention_mask=mask).logits[mask == 1]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- how it is used


def test_the_released_names_are_read_without_any_code_of_the_repository(model, folder):
    assert type(model) is MosaicGPTForCausalLM
    assert isinstance(AutoConfig.from_pretrained(folder), MosaicGPTConfig)
    assert model.lm_head.weight is model.transformer.wte.weight
    for name, tensor in released_weights().items():
        assert torch.equal(model.get_parameter(name), tensor), name
    assert decoder_path(model).layers == "transformer.blocks"


def test_saved_and_loaded_again_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(released_weights())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids()).logits, model(ids()).logits)


@torch.no_grad()
def test_a_left_padded_row_gives_the_logits_of_the_row_alone(model):
    alone = ids(rows=1, tokens=5)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), alone], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 5])
    actual = model(padded, attention_mask=mask).logits[:, 4:]
    torch.testing.assert_close(actual, model(alone).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cached_token_by_token_is_the_whole_at_once(model):
    tokens = ids(tokens=7)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    expected = model(tokens, attention_mask=mask).logits
    first = model(tokens[:, :4], attention_mask=mask[:, :4], use_cache=True)
    logits, cache = [first.logits], first.past_key_values
    for t in range(4, 7):
        step = model(tokens[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache)
        logits.append(step.logits)
    torch.testing.assert_close(
        torch.cat(logits, dim=1)[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5
    )


def test_greedy_generation_is_the_same_with_and_without_a_cache(model):
    kwargs = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(ids(), use_cache=True, **kwargs)
    assert torch.equal(cached, model.generate(ids(), use_cache=False, **kwargs))


def test_beyond_the_length_it_was_trained_at_alibi_goes_on():
    model = tiny_language_model("mosaic_gpt", max_seq_len=8)
    assert model(ids(tokens=30)).logits.isfinite().all()


@torch.no_grad()
def test_options_of_the_config_count():
    def logits(**options) -> Tensor:
        return tiny_language_model("mosaic_gpt", **options)(ids()).logits

    plain = logits()
    for option in (
        {"attn_clip_qkv": 0.05},
        {"softmax_scale": 1.0},
        {"alibi_bias_max": 2},
        {"attn_qk_ln": False},
    ):
        assert not torch.allclose(logits(**option), plain, atol=1e-3), option
    torch.testing.assert_close(logits(logit_scale=0.5), 0.5 * plain)
    torch.testing.assert_close(logits(logit_scale="inv_sqrt_d_model"), plain / 32**0.5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alibi": False}, "alibi: expected True, got False"),
        ({"prefix_lm": True}, "prefix_lm: expected False, got True"),
        ({"attn_pdrop": 0.1}, "attn_pdrop: expected 0, got 0.1"),
        ({"norm_type": "rmsnorm"}, "norm_type: expected a layernorm, got 'rmsnorm'"),
        ({"d_model": 30, "n_heads": 4}, "d_model: expected a multiple of n_heads=4, got 30"),
        ({"logit_scale": "half"}, "logit_scale: expected a number or inv_sqrt_d_model"),
    ],
)
def test_options_that_no_released_model_uses_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        MosaicGPTConfig(**option)
