"""Packed rows: documents side by side that see nothing of one another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from flamingo import FlamingoForConditionalGeneration
from flamingo.backbones import language as lm
from flamingo.choices import MediaVisibility
from flamingo.model.masking import (
    document_positions,
    media_before,
    media_mask,
    media_time,
    text_time,
)
from flamingo.testing import FAMILIES
from tests.model.conftest import features, prompt

Build = Callable[..., FlamingoForConditionalGeneration]
IS_IMAGE = torch.tensor([[0, 1, 0, 0, 0, 1, 0, 1]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2]])


def test_positions_begin_anew_in_each_document():
    assert document_positions(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]


def test_media_of_earlier_documents_are_counted_at_a_documents_first_token():
    assert media_before(IS_IMAGE, DOCUMENTS).tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("visibility", "third"),
    [(MediaVisibility.immediate, [0, 1, 0]), (MediaVisibility.all_previous, [1, 1, 0])],
)
def test_the_mask_of_a_packed_row(visibility: MediaVisibility, third: list[int]):
    """Two images and a text, then a document that begins with text."""
    is_image = torch.tensor([[1, 0, 1, 0, 1, 0]]).bool()
    before = media_before(is_image, torch.tensor([[0, 0, 0, 1, 1, 1]]))
    mask = media_mask(text_time(is_image), media_time(torch.tensor([3]), 3), visibility, before)
    assert mask[0].int().tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        third,
        [0, 0, 0],
        [0, 0, 1],
        [0, 0, 1],
    ]


PACKED = [family for family in FAMILIES if family != "bloom"]


@pytest.mark.parametrize("visibility", list(MediaVisibility))
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("family", PACKED)
def test_a_packed_row_gives_each_documents_own_logits(
    build: Build, family: str, kernel: str, visibility: MediaVisibility
):
    """Three documents in one row and one in another, each against itself alone: the second begins
    with text before its image, the third has no image at all."""
    model = build(family, media=visibility)
    try:
        model.language_model.set_attn_implementation(kernel)
    except ValueError:
        pytest.skip(f"{family} has no {kernel} attention")
    texts = [prompt(model, 7, [0, 4], 1), prompt(model, 5, [2], 2), prompt(model, 4, [], 3)]
    other = prompt(model, 9, [1, 6], 4)
    media = [features(1, 2, 1), features(1, 1, 2), None, features(1, 2, 4)]
    row = torch.cat(texts, dim=1)
    padding = torch.full((1, row.shape[1] - other.shape[1]), 3)
    ids = torch.cat([row, torch.cat([other, padding], dim=1)])
    documents = torch.tensor([[0] * 7 + [1] * 5 + [2] * 4, [0] * 16])
    frames = torch.zeros(2, 3, *features(1, 1).shape[2:])
    frames[0] = torch.cat([features(1, 2, 1)[0], features(1, 1, 2)[0]])
    frames[1, :2] = features(1, 2, 4)[0]
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        packed = model(
            ids, attention_mask=mask, vision_features=frames, documents=documents, use_cache=False
        ).logits
        start = 0
        for text, own in zip([*texts, other], media, strict=True):
            alone = model(text, vision_features=own).logits[0]
            place = packed[1, :9] if text is other else packed[0, start : start + text.shape[1]]
            torch.testing.assert_close(place, alone, rtol=1e-4, atol=1e-4)
            start += text.shape[1]


@pytest.mark.parametrize(("family", "options"), [("bloom", {}), ("falcon", {"alibi": True})])
def test_packing_before_alibi_is_refused_where_it_cannot_be_right(
    build: Build, family: str, options: dict[str, bool]
):
    model = build(family, **options)
    ids = prompt(model, 6, [], 1)
    with pytest.raises(ValueError, match=f"packed documents apart, got {family} with ALiBi"):
        model(ids, documents=torch.zeros_like(ids), use_cache=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "biogpt"}, "biogpt, whose positions"),
        ({"model_type": "cpmant"}, "cpmant, whose positions"),
        ({"model_type": "xglm"}, "xglm, whose positions"),
        ({"layer_types": ["full_attention", "conv"]}, "no attention.*conv"),
        ({"_attn_implementation_internal": "flash_attention_2"}, "flash_attention_2"),
    ],
)
def test_packing_is_refused_where_one_document_would_reach_the_next(
    build: Build, change: dict[str, object], words: str
):
    model = build()
    documents = torch.zeros(1, 6, dtype=torch.long)
    for name, value in change.items():
        object.__setattr__(model.language_model.config, name, value)
    with pytest.raises(ValueError, match=f"packed documents apart, got .*{words}"):
        lm.packed_mask(model.language_model, documents)


def test_packing_is_refused_for_a_language_model_with_a_state():
    config = MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=1)
    with pytest.raises(ValueError, match="got mamba with layers that are no attention"):
        lm.packed_mask(MambaForCausalLM(config), torch.zeros(1, 6, dtype=torch.long))


def test_packed_rows_go_without_a_cache(build: Build):
    model = build()
    ids = prompt(model, 6, [], 1)
    with pytest.raises(ValueError, match="documents: expected packed rows without a cache"):
        model(ids, documents=torch.zeros_like(ids), use_cache=True)
