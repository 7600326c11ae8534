import pytest
import torch
from torch import nn

from flamingo.backbones.language import decoder_layers, stream_scale
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.testing import FAMILIES, tiny_language_model

NORM_WEIGHTS = {
    "gpt2": "ln_1.weight",
    "gptj": "ln_1.weight",
    "opt": "self_attn_layer_norm.weight",
    "mpt": "norm_1.weight",
    "mosaic_gpt": "ln_1.weight",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_scale_is_the_norm_weight_of_the_layer_over_its_median(family: str):
    layer = decoder_layers(tiny_language_model(family))[2]
    weight = layer.get_parameter(NORM_WEIGHTS.get(family, "input_layernorm.weight")).detach()
    if family == "gemma":  # stores its scale minus one
        weight = 1 + weight
    torch.testing.assert_close(stream_scale(layer), weight / weight.abs().median())


def test_a_layer_that_reads_its_stream_unnormalised_has_no_scale():
    with pytest.raises(ValueError, match="language_model_norms: expected a decoder layer with one"):
        stream_scale(nn.Sequential(nn.Linear(2, 2)))


def test_blocks_start_with_the_norms_of_the_layers_behind_them_only_when_asked():
    language = tiny_language_model("llama")
    with torch.no_grad():
        decoder_layers(language)[1].input_layernorm.weight[3] = 0.001  # a channel turned down

    def norms(asked: bool) -> list[torch.Tensor]:
        model = FlamingoForConditionalGeneration.from_backbones(
            None,
            language,
            vision_dim=24,
            resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
            cross_attention=CrossAttentionConfig(
                every=None, layers=[1], heads=2, dim_head=8, language_model_norms=asked
            ),
        )
        model.detach_language_model()
        block = model.cross_attention["1"]
        return [block.attention.norm.weight.detach(), block.feed_forward[0].weight.detach()]

    for weight in norms(asked=False):
        assert (weight == 1).all()
    for weight in norms(asked=True):
        torch.testing.assert_close(weight, stream_scale(decoder_layers(language)[1]))
        assert weight[3] < 0.01 < weight.median()
