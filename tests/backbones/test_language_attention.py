"""The language model's attention where few tokens ask, against torch's and transformers' own."""

import pytest
import torch
import torch.nn.functional as F

from flamingo.backbones import attention
from flamingo.backbones.attention import FEW, NAME, choose_attention, products
from flamingo.testing import VOCABULARY, tiny_language_model

CHOSEN = ["llama", "qwen2", "mistral", "gpt_neox", "opt", "gpt2"]
LEFT = ["falcon", "mpt", "bloom"]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_products_are_scaled_dot_product_attention(groups, kind):
    torch.manual_seed(0)
    query = torch.randn(2, 6, 3, 8)
    key, value = torch.randn(2, 2, groups, 5, 8)
    sees = (torch.rand(2, 1, 3, 5) > 0.4) | torch.eye(3, 5, dtype=torch.bool)
    mask = {"none": None, "bool": sees, "added": torch.where(sees, 0.0, -1e4)}[kind]
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(products(query, key, value, mask, 0.3), expected)


def test_a_query_that_sees_nothing_gets_a_finite_mean():
    value = torch.randn(1, 1, 4, 8)
    nothing = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
    got = products(torch.randn(1, 1, 1, 8), torch.randn(1, 1, 4, 8), value, nothing, 1.0)
    torch.testing.assert_close(got, value.mean(dim=2, keepdim=True))


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("family", CHOSEN)
def test_few_tokens_behind_a_cache_get_the_logits_of_the_whole(family, new, monkeypatch):
    model = choose_attention(tiny_language_model(family))
    assert model.config._attn_implementation == NAME
    ids = torch.randint(5, VOCABULARY, (3, FEW + 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    calls = []
    monkeypatch.setattr(attention, "products", lambda *a: calls.append(1) or products(*a))
    with torch.no_grad():
        begun = model(
            ids[:, :-new], attention_mask=mask[:, :-new], position_ids=positions[:, :-new]
        )
        assert not calls  # many tokens ask: transformers' own
        cache = begun.past_key_values
        rest = {"position_ids": positions[:, -new:], "past_key_values": cache}
        got = model(ids[:, -new:], attention_mask=mask, **rest).logits
        assert len(calls) == model.config.num_hidden_layers
        model.set_attn_implementation("eager")
        expected = model(ids, attention_mask=mask, position_ids=positions).logits[:, -new:]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", LEFT)
def test_families_with_attention_of_their_own_are_left_alone(family):
    model = tiny_language_model(family)
    before = model.config._attn_implementation
    assert choose_attention(model).config._attn_implementation == before != NAME


def test_a_kernel_that_was_asked_for_stays():
    model = tiny_language_model(attn_implementation="eager")
    assert choose_attention(model).config._attn_implementation == "eager"


def test_training_dropout_is_left_to_transformers(monkeypatch):
    model = choose_attention(tiny_language_model(dropout=0.5)).train()
    monkeypatch.setattr(attention, "products", None)  # calling it would fail
    model(torch.randint(5, VOCABULARY, (1, 4)), attention_mask=torch.tensor([[0, 1, 1, 1]]))
