"""Generation: cached equals uncached, batches equal single prompts, each medium is encoded once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import CodeGenConfig, DynamicCache, GenerationConfig

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import MediaVisibility
from flamingo.model.generation import default_generation_config
from flamingo.model.media import ProjectedMedia
from flamingo.testing import FAMILIES
from tests.model.conftest import features, prompt

Build = Callable[..., FlamingoForConditionalGeneration]
NEVER = {"eos_token_id": 10_000}  # compare whole continuations


@pytest.mark.parametrize("mode", list(MediaVisibility))
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached_greedy_and_with_beams(build: Build, family: str, mode):
    model = build(family, media=mode)
    ids = torch.cat([prompt(model, 8, [1, 4], seed=1), prompt(model, 8, [2, 5], seed=2)])
    media = features(2, 2)
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "num_beams": beams, **NEVER}
        cached = model.generate(ids, vision_features=media, **options)
        uncached = model.generate(ids, vision_features=media, use_cache=False, **options)
        assert torch.equal(cached, uncached)


@pytest.mark.parametrize("mode", list(MediaVisibility))
def test_logits_of_a_cached_prefix_in_two_parts_equal_one_pass(build: Build, mode):
    """New images on a cached prefix go on counting; tokens before them still see the old one."""
    model = build(media=mode)
    ids = torch.cat([prompt(model, 12, [1, 7, 9], seed=1), prompt(model, 12, [3, 8, 10], seed=2)])
    media = features(2, 3)
    with torch.no_grad():
        whole = model(ids, vision_features=media).logits
        first = model(ids[:, :6], vision_features=media[:, :1], use_cache=True)
        second = model(
            ids[:, 6:], vision_features=media[:, 1:], past_key_values=first.past_key_values
        )
    parts = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_batches_with_left_padding_generate_what_each_prompt_does_alone(build: Build):
    for family in ("llama", "gpt2", "opt", "mpt"):
        model = build(family)
        rows = [prompt(model, 9, [1, 5], seed=1), prompt(model, 6, [2], seed=2)]
        media = features(2, 2)
        ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
        ids[0], mask[0] = rows[0][0], 1
        ids[1, 3:], mask[1, 3:] = rows[1][0], 1
        for beams in (1, 3):
            options = {"max_new_tokens": 5, "num_beams": beams, **NEVER}
            together = model.generate(ids, attention_mask=mask, vision_features=media, **options)
            for i, row in enumerate(rows):
                alone = model.generate(row, vision_features=media[i : i + 1], **options)
                assert torch.equal(together[i, 9:], alone[0, row.shape[1] :])


def test_media_are_encoded_once_whatever_the_number_of_beams_and_tokens(build: Build):
    model = build()
    encoded, projected = [], []
    model.resampler.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    for block in model.cross_attention.values():
        block.attention.to_kv.register_forward_pre_hook(
            lambda _, args: projected.append(len(args[0]))
        )
    ids = prompt(model, 8, [1, 4], seed=1)
    model.generate(ids, vision_features=features(1, 3), num_beams=4, max_new_tokens=5, **NEVER)
    assert encoded == [2]  # the third image has no token: padding
    assert projected == [2, 2]  # once in each of the two blocks


def test_in_immediate_mode_the_cache_keeps_the_last_medium_alone(build: Build):
    for mode, kept in (
        (MediaVisibility.immediate, [(0, 3), (1, 2)]),
        (MediaVisibility.all_previous, [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]),
    ):
        model = build(media=mode)
        ids = torch.cat([prompt(model, 8, [1, 3, 5], seed=1), prompt(model, 8, [1, 3], seed=2)])
        with torch.no_grad():
            cache = model(ids, vision_features=features(2, 3), use_cache=True).past_key_values
        media = cache.media
        assert sorted(zip(media.row.tolist(), media.time.tolist(), strict=True)) == kept
        assert media.seen.tolist() == [3, 2]


def test_the_image_token_is_never_generated_and_the_end_of_chunk_ends(build: Build):
    model = build(gate=0.0)
    ids = prompt(model, 4, [], seed=1)
    with torch.no_grad():  # make <image> by far the likeliest next token, then <|endofchunk|>
        hidden = model.language_model.model(ids).last_hidden_state[0, -1]
        model.new_tokens.output_rows.copy_(torch.stack([50 * hidden, 10 * hidden]))
        assert model(ids).logits[0, -1].topk(2).indices.tolist() == model.config.new_token_ids
    out = model.generate(ids, max_new_tokens=5)
    assert out[0, 4:].tolist() == [model.config.end_of_chunk_token_id]


def test_sampling_follows_the_seed(build: Build):
    model = build()
    ids = prompt(model, 6, [1], seed=1)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(
            model.generate(ids, vision_features=features(1, 1), do_sample=True, max_new_tokens=8)
        )
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape != draws[2].shape or not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("mode", list(MediaVisibility))
def test_a_refused_call_leaves_the_callers_cache_as_it_was(build: Build, mode):
    model = build(media=mode)
    first, turn = prompt(model, 6, [1], seed=1), prompt(model, 4, [1], seed=2)
    ids, one, more = torch.cat([first, turn], dim=1), features(1, 1), features(1, 1, seed=5)
    whole = model.generate(ids, vision_features=torch.cat([one, more], dim=1), max_new_tokens=3)
    with torch.no_grad():
        cache = model(first, vision_features=one, use_cache=True).past_key_values
    before = cache.media
    options = {"vision_features": more, "past_key_values": cache, "max_new_tokens": 3}
    for refused in (
        {"do_sample": True, "temperature": -1.0},
        {"no_such_option": 1},
        {"num_return_sequences": 2},
    ):
        with pytest.raises(ValueError):
            model.generate(ids, **options, **refused)
        assert cache.media is before
    assert torch.equal(model.generate(ids, **options), whole)


def test_what_a_generation_config_does_not_say_is_the_models_own(build: Build):
    model = build()
    ids, media = prompt(model, 6, [1], seed=1), features(1, 1)
    free = model.generate(ids, vision_features=media, max_new_tokens=1)[0, -1].item()
    given = GenerationConfig(max_new_tokens=4, eos_token_id=10_000)
    model.generation_config.suppress_tokens = [free]
    expected = model.generate(ids, vision_features=media, max_new_tokens=4, **NEVER)
    for use_cache in (True, False):
        model.generation_config.use_cache = use_cache
        out = model.generate(ids, generation_config=given, vision_features=media)
        assert torch.equal(out, expected) and free not in out[0, 6:]
    said = GenerationConfig(max_new_tokens=1, suppress_tokens=[5])
    assert model.generate(ids, generation_config=said, vision_features=media)[0, -1] == free
    alone = model.generate(ids, vision_features=media, max_new_tokens=1, suppress_tokens=[])
    assert alone[0, -1] == free
    model.generation_config.cache_implementation = "static"
    with pytest.raises(ValueError, match="cache_implementation: expected none .* got 'static'"):
        model.generate(ids, generation_config=given, vision_features=media)


def test_a_foreign_cache_is_an_error(build: Build):
    model = build()
    ids = prompt(model, 4, [], seed=0)
    with pytest.raises(ValueError, match="expected a FlamingoCache"):
        model(ids, past_key_values=DynamicCache())
    for seen in (4, 9):  # of the ids alone, and of what the cache holds too
        mask = torch.ones(1, seen, dtype=torch.long)
        with pytest.raises(ValueError, match="expected a FlamingoCache"):
            model.generate(ids, attention_mask=mask, past_key_values=DynamicCache())


@pytest.mark.parametrize("mode", list(MediaVisibility))
def test_prompts_that_share_the_media_of_a_cached_prefix_go_on_with_their_own(build: Build, mode):
    model = build(media=mode)
    prefix, media = prompt(model, 6, [1], seed=1), features(1, 1)
    own = torch.cat([prompt(model, 4, [0], seed=2), prompt(model, 4, [2], seed=3)])
    ids, more = torch.cat([prefix.repeat(2, 1), own], dim=1), features(2, 1, seed=5)
    options = {"num_beams": 3, "max_new_tokens": 4, **NEVER}
    with torch.no_grad():
        cache = model(prefix, vision_features=media, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2 * 3)  # two prompts, three beams each
    after = model.generate(ids, vision_features=more, past_key_values=cache, **options)
    every = torch.cat([media.repeat(2, 1, 1, 1, 1), more], dim=1)
    assert torch.equal(after, model.generate(ids, vision_features=every, **options))


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_media_of_rows_that_the_cache_does_not_have_are_an_error(build: Build, rows: int):
    model = build()
    first = torch.cat([prompt(model, 6, [1], seed=1), prompt(model, 6, [1], seed=2)])
    with torch.no_grad():
        cache = model(first, vision_features=features(2, 1), use_cache=True).past_key_values
    before = cache.media
    ids = prompt(model, 8, [1, 6], seed=1).repeat(rows, 1)
    with pytest.raises(ValueError, match=rf"as many rows as .* prompts \(2\) .* got {rows}"):
        model.generate(ids, vision_features=features(rows, 1), past_key_values=cache)
    assert cache.media is before


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("mode", list(MediaVisibility))
def test_media_projected_beforehand_give_the_same_answer(build: Build, mode, beams: int):
    model = build(media=mode)
    ids = torch.cat([prompt(model, 8, [1, 3, 5], seed=1), prompt(model, 8, [2, 4], seed=2)])
    given = features(2, 3, seed=1)
    latents = model.encode_media(vision_features=given).detach()
    alone = [[model.project_media(latents[row, i][None]) for i in range(3 - row)] for row in (0, 1)]
    projected = ProjectedMedia.of_rows(alone)
    options = {"num_beams": beams, "max_new_tokens": 5, "do_sample": False, **NEVER}
    expected = model.generate(ids, vision_features=given, **options)
    assert torch.equal(model.generate(ids, projected_media=projected, **options), expected)
    with torch.no_grad():
        logits = model(ids, projected_media=projected).logits
        torch.testing.assert_close(logits, model(ids, vision_features=given).logits)


def test_projected_media_are_exactly_those_that_are_named(build: Build):
    model = build()
    ids = prompt(model, 8, [1, 3], seed=1)
    medium = model.project_media(model.encode_media(vision_features=features(1, 1))[0])
    with pytest.raises(ValueError, match=r"projected_media: expected \[2\] media.*got \[1\]"):
        model(ids, projected_media=ProjectedMedia.of_rows([[medium]]))
    both = ProjectedMedia.of_rows([[medium, medium]])
    with pytest.raises(ValueError, match="projected_media: expected no other form"):
        model(ids, projected_media=both, vision_features=features(1, 2))
    with pytest.raises(ValueError, match="projected_media: expected a cache"):
        model.generate(ids, projected_media=both, use_cache=False, max_new_tokens=2)


def test_a_family_without_a_padding_token_pads_with_its_end():
    config = CodeGenConfig(eos_token_id=7, bos_token_id=5)
    assert not hasattr(config, "pad_token_id")
    defaults = default_generation_config(config, end_of_chunk_token_id=9)
    assert (defaults.pad_token_id, defaults.eos_token_id) == (7, [9, 7])
