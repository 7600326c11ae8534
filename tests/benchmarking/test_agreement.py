"""Nothing is timed unless models with the same weights say the same."""

import pytest
import torch

from flamingo.benchmarking.agreement import check_agreement
from flamingo.benchmarking.ours import Ours
from flamingo.benchmarking.work import FeatureShape, Tokens
from flamingo.benchmarking.world import build_ours
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import VOCABULARY, tiny_language_model, tiny_tokenizer

SHAPE = FeatureShape(patches=4, dim=16)
TOKENS = Tokens(VOCABULARY, VOCABULARY, VOCABULARY + 1)


def build() -> Ours:
    model = build_ours(tiny_language_model(), every=2, vision_dim=SHAPE.dim).eval()
    return Ours(model, prepare_tokenizer(tiny_tokenizer(), VOCABULARY), torch.float32)


def test_the_same_weights_agree():
    assert check_agreement(build(), build(), TOKENS, SHAPE) == 0


@pytest.mark.parametrize(
    "name",
    [
        "resampler.layers.5.feed_forward.3.weight",
        "cross_attention.1.attention.to_kv.weight",
        "cross_attention.3.attention_gate",
        "new_tokens.input",
    ],
)
def test_a_slight_difference_in_any_part_is_noticed(name):
    other = build()
    with torch.no_grad():
        other.model.trainable_parameters()[name].mul_(1.05)
    with pytest.raises(ValueError, match=r"logits: expected a difference .* nothing was timed"):
        check_agreement(build(), other, TOKENS, SHAPE)


def test_logits_that_are_no_numbers_do_not_agree():
    other = build()
    with torch.no_grad():
        other.model.trainable_parameters()["resampler.norm.weight"].fill_(torch.nan)
    with pytest.raises(ValueError, match="got nan"):
        check_agreement(build(), other, TOKENS, SHAPE)
