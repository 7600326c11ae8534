"""The new tokens' rows: of the kind of the frozen ones, at ids that mean their columns."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.biogpt.modeling_biogpt import BioGptScaledWordEmbedding
from transformers.models.gemma2.modeling_gemma2 import Gemma2TextScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from flamingo import FlamingoForConditionalGeneration
from flamingo.model.embedding import NewTokenEmbedding
from flamingo.testing import FAMILIES, tiny_language_model
from tests.model.test_persistence import SMALL

V = 512


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_that_equals_a_frozen_one_is_embedded_as_it_is(family: str):
    frozen = tiny_language_model(family).get_input_embeddings()
    new = NewTokenEmbedding([V, V + 1], 32, tied=True)
    with torch.no_grad():
        new.input.copy_(frozen.weight[[7, 9]])
        embedded = new(torch.tensor([[5, V, V + 1]]), frozen)
        assert torch.equal(embedded, frozen(torch.tensor([[5, 7, 9]])))


@pytest.mark.parametrize(
    "kind",
    [Gemma2TextScaledWordEmbedding, Gemma3TextScaledWordEmbedding, BioGptScaledWordEmbedding],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_scaled_as_the_family_scales_and_rounds(kind: type[nn.Module], dtype: torch.dtype):
    # 47 ** 0.5 is no bf16 number; the buffer stays in fp32, as casting a model leaves buffers.
    frozen = kind(20, 48, 0, embed_scale=47**0.5)
    frozen.weight.data = frozen.weight.data.to(dtype)
    new = NewTokenEmbedding([20], 48, tied=True)
    with torch.no_grad():
        new.input.copy_(frozen.weight[[7]])
        assert torch.equal(new(torch.tensor([[3, 20]]), frozen), frozen(torch.tensor([[3, 7]])))


def build(**ids: object) -> FlamingoForConditionalGeneration:
    return FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model(),
        vision_dim=24,
        **SMALL,
        **ids,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((513, 520, None), r"new_token_ids: .* 512 rows \[512, 513\], got \[513, 520\]"),
        ((512, 514, [512, 514]), r"new_token_ids: .* \[512, 513\], got \[512, 514\]"),
        ((512, 513, [513, 512]), r"new_token_ids: expected increasing ids.*got \[513, 512\]"),
        ((512, 513, [512, 512, 513]), r"new_token_ids: expected increasing ids"),
        ((-1, 512, None), r"new_token_ids: expected increasing ids.*got \[-1, 512\]"),
        ((512, 513, [512]), r"end_of_chunk_token_id: expected one of new_token_ids \[512\].*513"),
        ((513, 5, [512]), r"image_token_id: expected one of .* 512 rows, got 513"),
    ],
)
def test_ids_that_would_mean_other_columns_are_refused(ids: tuple, message: str):
    image, end, new = ids
    with pytest.raises(ValueError, match=message):
        build(image_token_id=image, end_of_chunk_token_id=end, new_token_ids=new)


@pytest.mark.parametrize(
    ("image", "end", "new"),
    [(513, 512, None), (500, 512, None), (3, 5, None), (3, 5, []), (513, 5, [9, 512, 513, 514])],
)
def test_the_logits_have_a_column_for_every_id(image: int, end: int, new: list[int] | None):
    model = build(image_token_id=image, end_of_chunk_token_id=end, new_token_ids=new)
    ids = model.config.new_token_ids
    with torch.no_grad():
        hidden = torch.randn(1, 1, 32)
        logits = model._head(hidden)
        expected = hidden @ model.new_tokens.output_rows.T
    assert logits.shape[-1] == max([V - 1, *ids]) + 1
    torch.testing.assert_close(logits[..., ids], expected)
