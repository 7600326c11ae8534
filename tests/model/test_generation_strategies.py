"""Every strategy of transformers' ``generate``, against transformers on a plain model.

With closed gates a Flamingo is its LM with two further rows in the embedding. ``merged`` builds
that LM as a model of transformers alone: under every strategy and seed both give the same tokens.
With open gates what is cached must equal what is computed from scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from flamingo import FlamingoForConditionalGeneration
from flamingo.choices import MediaVisibility
from flamingo.model.assistance import Assistant
from flamingo.model.media import FlamingoCache
from flamingo.testing import tiny_language_model, tiny_tokenizer
from tests.model.conftest import VISION_DIM, features, prompt

Build = Callable[..., FlamingoForConditionalGeneration]
NEVER = {"eos_token_id": 10_000}  # compare whole continuations
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "top-k": {"do_sample": True, "top_k": 5, "temperature": 1.3},
    "top-p": {"do_sample": True, "top_p": 0.8, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.05, "top_k": 0},
    "typical": {"do_sample": True, "typical_p": 0.7, "top_k": 0},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.3},
    "beam sampling": {"num_beams": 3, "do_sample": True, "top_k": 20},
    "early stopping": {"num_beams": 3, "early_stopping": True},
    "repetition": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "at least": {"min_new_tokens": 5},
    "guidance": {"guidance_scale": 1.7},
    "chunked prefill": {"prefill_chunk_size": 3},
    "forbidden words": {"bad_words_ids": [[7], [9, 11]], "suppress_tokens": [20, 21]},
}


def merged(model: FlamingoForConditionalGeneration) -> Any:
    """The LM with the new tokens' rows behind its own, in one embedding, as transformers has it."""
    own = deepcopy(model.detach_language_model())
    own.resize_token_embeddings(own.config.vocab_size + 2, mean_resizing=False)
    with torch.no_grad():
        own.get_input_embeddings().weight[-2:] = model.new_tokens.input
        own.get_output_embeddings().weight[-2:] = model.new_tokens.output_rows
    own.generation_config = deepcopy(model.generation_config)
    return own.eval()


def random_latents(seed: int) -> torch.Tensor:
    """Media of two rows of two, different enough to lead to different tokens."""
    return 4 * torch.randn(2, 2, 4, VISION_DIM, generator=torch.Generator().manual_seed(seed))


def sampled(model: Any, ids: torch.Tensor, seed: int = 0, **options: Any) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.generate(ids, **options)


def prompts(model: FlamingoForConditionalGeneration) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.cat([prompt(model, 8, [1, 4], seed=1), prompt(model, 8, [2, 5], seed=2)])
    return ids, features(2, 2)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_closed_gates_a_strategy_gives_the_tokens_of_the_plain_model(
    build: Build, family: str, name: str
):
    model = build(family, gate=0.0)
    image = model.config.image_token_id
    ids, media = prompts(model)
    options = {"max_new_tokens": 6, **STRATEGIES[name]}
    ours = sampled(model, ids, vision_features=media, **options)
    options["suppress_tokens"] = [*options.get("suppress_tokens", []), image]
    theirs = sampled(merged(model), ids, attention_mask=torch.ones_like(ids), **options)
    assert torch.equal(ours, theirs)
    assert not (ours[:, 8:] == image).any()


@pytest.mark.parametrize("mode", list(MediaVisibility))
@pytest.mark.parametrize("name", [n for n in STRATEGIES if n != "chunked prefill"])
def test_with_open_gates_cached_equals_uncached(build: Build, name: str, mode: MediaVisibility):
    model = build(gate=2.0, media=mode)
    ids, _ = prompts(model)
    options = {"max_new_tokens": 5, **STRATEGIES[name], **NEVER}
    cached = sampled(model, ids, media_latents=random_latents(1), **options)
    uncached = sampled(model, ids, media_latents=random_latents(1), use_cache=False, **options)
    assert torch.equal(cached, uncached)
    other = sampled(model, ids, media_latents=random_latents(2), **options)
    assert not torch.equal(cached, other)  # the media are read


@pytest.mark.parametrize("mode", list(MediaVisibility))
def test_a_prompt_prefilled_in_chunks_reads_the_same_media(build: Build, mode: MediaVisibility):
    model = build(media=mode)
    ids, media = prompts(model)
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "num_beams": beams, **NEVER}
        whole = model.generate(ids, vision_features=media, **options)
        chunks = model.generate(ids, vision_features=media, prefill_chunk_size=3, **options)
        assert torch.equal(chunks, whole)


@pytest.mark.parametrize("name", ["greedy", "beams", "repetition", "early stopping", "guidance"])
def test_a_row_of_a_batch_gets_what_it_gets_alone(build: Build, name: str):
    model = build()
    ids, media = prompts(model)
    options = {"max_new_tokens": 5, **STRATEGIES[name], **NEVER}
    together = model.generate(ids, vision_features=media, **options)
    alone = [model.generate(ids[i : i + 1], vision_features=media[i : i + 1], **options)
             for i in range(2)]  # fmt: skip
    assert torch.equal(together, torch.cat(alone))


# ---------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("beams", [1, 3])
def test_scores_and_logits_come_with_every_column(build: Build, beams: int):
    model = build()
    ids, media = prompts(model)
    options = {"max_new_tokens": 4, "num_beams": beams, "length_penalty": 0.0, **NEVER}
    out = model.generate(
        ids, vision_features=media, return_dict_in_generate=True, output_scores=True,
        output_logits=True, **options,
    )  # fmt: skip
    assert [tuple(step.shape) for step in out.logits] == [(2 * beams, 514)] * 4
    steps = model.compute_transition_scores(
        out.sequences, out.scores, out.get("beam_indices"), normalize_logits=beams == 1
    )
    again = model(out.sequences, vision_features=media).logits[:, 7:-1].float()
    again[..., model.config.image_token_id] = -torch.inf  # never chosen, by none of them
    expected = again.log_softmax(-1).gather(2, out.sequences[:, 8:, None])[..., 0]
    if beams == 1:
        torch.testing.assert_close(steps, expected, atol=1e-4, rtol=1e-4)
    else:  # beam search normalises before it suppresses
        torch.testing.assert_close(steps.sum(1), out.sequences_scores, atol=1e-4, rtol=1e-4)


def test_a_streamer_gets_the_tokens_as_they_come(build: Build):
    model = build()
    ids, media = prompts(model)
    tokenizer = tiny_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    out = model.generate(
        ids[:1], vision_features=media[:1], streamer=streamer, max_new_tokens=5, **NEVER
    )
    assert "".join(streamer) == tokenizer.decode(out[0, 8:])
    with pytest.raises(ValueError, match="streamer"):
        model.generate(ids[:1], vision_features=media[:1], streamer=streamer, num_beams=2)


def test_generation_stops_where_a_criterion_or_a_string_says(build: Build):
    model = build()
    ids, media = prompts(model)
    tokenizer = tiny_tokenizer()
    words = list(map(tokenizer.decode, range(512)))
    never = [i for i, word in enumerate(words) if not word.strip().isalnum()]
    options = {
        "vision_features": media[:1], "max_new_tokens": 6, "suppress_tokens": never, **NEVER,
    }  # fmt: skip
    free = model.generate(ids[:1], **options)
    last = int(free[0, 10])
    end = 9 + free[0, 8:].tolist().index(last)
    stop = StoppingCriteriaList([lambda ids, scores: ids[:, -1] == last])
    stopped = model.generate(ids[:1], stopping_criteria=stop, **options)
    assert torch.equal(stopped, free[:, :end])
    text = tokenizer.decode(free[0, end - 2 : end])
    stopped = model.generate(ids[:1], stop_strings=[text], tokenizer=tokenizer, **options)
    assert torch.equal(stopped, free[:, :end])
    at_once = StoppingCriteriaList([MaxTimeCriteria(0.0)])
    assert model.generate(ids[:1], stopping_criteria=at_once, **options).shape[1] == 9


def test_logits_processors_and_allowed_tokens_are_obeyed(build: Build):
    model = build()
    ids, media = prompts(model)
    options = {"vision_features": media, "max_new_tokens": 5, **NEVER}
    allowed = model.generate(ids, prefix_allowed_tokens_fn=lambda row, ids: [5, 6], **options)
    assert set(allowed[:, 8:].flatten().tolist()) <= {5, 6}
    own = LogitsProcessorList([MinPLogitsWarper(0.999)])  # sampling among the likeliest: greedy
    drawn = sampled(model, ids, logits_processor=own, do_sample=True, top_k=0, **options)
    assert torch.equal(drawn, model.generate(ids, **options))


def test_a_generation_config_of_the_caller_is_used_and_left_alone(build: Build):
    model = build()
    ids, media = prompts(model)
    config = GenerationConfig(max_new_tokens=3, num_beams=2, **NEVER, pad_token_id=0)
    before = config.to_dict()
    out = model.generate(ids, vision_features=media, generation_config=config)
    options = {"max_new_tokens": 3, "num_beams": 2, **NEVER}
    assert torch.equal(out, model.generate(ids, vision_features=media, **options))
    assert config.to_dict() == before


@pytest.mark.parametrize("mode", list(MediaVisibility))
@pytest.mark.parametrize("whole", [True, False])
def test_a_conversation_goes_on_from_its_cache(build: Build, mode: MediaVisibility, whole: bool):
    """The next turn with a new image, behind what was generated, equals all of it from scratch."""
    model = build(media=mode)
    ids, media = prompts(model)
    options = {"max_new_tokens": 4, **NEVER}
    first = model.generate(ids, vision_features=media, return_dict_in_generate=True, **options)
    turn = torch.cat([prompt(model, 5, [1], seed=3), prompt(model, 5, [2], seed=4)])
    more = features(2, 1, seed=7)
    said = torch.cat([first.sequences, turn], dim=1)
    cache = first.past_key_values
    new = said if whole else said[:, cache.get_seq_length() :]
    second = model.generate(
        new, attention_mask=torch.ones_like(said), vision_features=more, past_key_values=cache,
        **options,
    )  # fmt: skip
    scratch = model.generate(said, vision_features=torch.cat([media, more], dim=1), **options)
    assert torch.equal(second[:, -4:], scratch[:, -4:])


@pytest.mark.parametrize("mode", list(MediaVisibility))
def test_each_beam_that_was_returned_goes_on_with_an_image_of_its_own(
    build: Build, mode: MediaVisibility
):
    model = build(media=mode)
    ids, media = prompts(model)
    beams = {"num_beams": 3, "num_return_sequences": 3}
    first = model.generate(
        ids, vision_features=media, return_dict_in_generate=True, max_new_tokens=4, **beams, **NEVER
    )
    turn = torch.cat([prompt(model, 5, [1], seed=3 + row) for row in range(6)])
    said, more = torch.cat([first.sequences, turn], dim=1), features(6, 1, seed=7)
    # The cache holds the beams in another order than they are returned in.
    cache = FlamingoCache(config=model.language_model.config)
    model(first.sequences[::3, : ids.shape[1]], vision_features=media, past_key_values=cache)
    cache.batch_repeat_interleave(3)
    second = model.generate(
        said, vision_features=more, past_key_values=cache, max_new_tokens=4, **NEVER
    )
    every = torch.cat([media.repeat_interleave(3, dim=0), more], dim=1)
    scratch = model.generate(said, vision_features=every, max_new_tokens=4, **NEVER)
    assert torch.equal(second, scratch)


# ---------------------------------------------------------------------------- assistance


def assistants(build: Build) -> dict[str, Any]:
    return {
        "a smaller Flamingo": build(seed=1, layers=2),
        "a bare language model": tiny_language_model(seed=1),
        "itself": None,
    }


@pytest.mark.parametrize("mode", list(MediaVisibility))
@pytest.mark.parametrize("who", ["a smaller Flamingo", "a bare language model", "itself"])
def test_an_assistant_changes_no_token(build: Build, who: str, mode: MediaVisibility):
    model = build(media=mode)
    helper = assistants(build)[who] or model
    for seed in (1, 2):
        ids, media = prompt(model, 8, [1, 4], seed=seed), features(1, 2, seed=seed)
        options = {"vision_features": media, "max_new_tokens": 12, **NEVER}
        alone = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, assistant_model=helper, **options), alone)


def test_an_assistant_reads_the_same_media_and_all_its_tokens_are_taken(build: Build):
    """Its own draft is always right, so few passes are needed: it saw what the model saw."""
    model = build()
    ids, media = prompt(model, 8, [1, 4], seed=1), features(1, 2)
    passes = []
    model.language_model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    twin = build()
    twin.generation_config.assistant_confidence_threshold = 0.0  # drafts as many as it may
    model.generate(ids, vision_features=media, assistant_model=twin, max_new_tokens=12, **NEVER)
    assert len(passes) <= 3


@pytest.mark.parametrize("who", ["a smaller Flamingo", "a bare language model"])
def test_assisted_sampling_follows_the_model_s_own_distribution(build: Build, who: str):
    """Speculative sampling (Leviathan et al. 2023) is exact: first tokens have the model's odds."""
    model = build()
    helper = assistants(build)[who]
    ids, media = prompt(model, 8, [1, 4], seed=1), features(1, 2)
    logits = model(ids, vision_features=media).logits[0, -1].detach()
    logits[model.config.image_token_id] = -torch.inf
    top = (logits / 0.5).softmax(-1)
    options = {"do_sample": True, "top_k": 0, "temperature": 0.5, "max_new_tokens": 2, **NEVER}
    torch.manual_seed(0)
    draws = [
        int(model.generate(ids, vision_features=media, assistant_model=helper, **options)[0, 8])
        for _ in range(60)
    ]
    likeliest = int(top.argmax())
    share = draws.count(likeliest) / len(draws)
    error = float((top[likeliest] * (1 - top[likeliest]) / len(draws)).sqrt())
    assert abs(share - float(top[likeliest])) < 4 * error + 1e-6


def test_a_bare_assistant_drafts_in_our_ids_and_gives_new_tokens_no_chance(build: Build):
    model = build()
    ids = prompt(model, 8, [1, 4], seed=1)
    helper = Assistant.of(tiny_language_model(seed=1), model, {})
    draft = helper.generate(
        ids, max_new_tokens=3, return_dict_in_generate=True, output_scores=True, **NEVER
    )
    assert torch.equal(draft.sequences[:, :8], ids)
    assert int(draft.sequences[:, 8:].max()) < 512
    for scores in draft.scores:
        assert scores.shape == (1, 514) and scores[0, 512:].tolist() == [-torch.inf] * 2


def test_prompt_lookup_changes_no_token_and_never_drafts_an_image(build: Build):
    model = build()
    ids = prompt(model, 4, [1], seed=1).repeat(1, 4)  # n-grams to find again, images among them
    media = features(1, 4)
    options = {"vision_features": media, "max_new_tokens": 12, **NEVER}
    alone = model.generate(ids, **options)
    found = model.generate(ids, prompt_lookup_num_tokens=4, max_matching_ngram_size=2, **options)
    assert torch.equal(found, alone)


def test_a_cache_is_cropped_to_the_last_image_and_no_further(build: Build):
    model = build()
    ids, media = prompts(model)
    with torch.no_grad():
        cache = model(ids, vision_features=media, use_cache=True).past_key_values
        cache.crop(-2)
        assert cache.get_seq_length() == 6
        rest = model(ids[:, 6:], past_key_values=cache).logits
        expected = model(ids, vision_features=media).logits[:, 6:]
        torch.testing.assert_close(rest, expected, atol=1e-5, rtol=1e-4)
        with pytest.raises(
            ValueError, match=r"at most the 2 tokens behind the last <image>, got 3"
        ):
            cache.crop(-3)


def test_assistants_that_do_not_fit_are_refused(build: Build):
    model = build()
    ids, media = prompt(model, 8, [1], seed=1), features(1, 1)
    with pytest.raises(ValueError, match="vocabulary of 512 tokens, got 300"):
        model.generate(
            ids, vision_features=media, assistant_model=tiny_language_model(vocab_size=300)
        )
    with pytest.raises(ValueError, match="assistant_model: expected a Flamingo with new tokens"):
        model.generate(ids, vision_features=media, assistant_model=build(vocab_size=520))
    with pytest.raises(ValueError, match="media_latents: expected pixel_values or vision_features"):
        model.generate(
            ids, media_latents=model.encode_media(vision_features=media), assistant_model=build()
        )


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["static", "quantized", "offloaded", "paged"])
def test_caches_without_media_are_refused(build: Build, kind: str):
    model = build()
    ids, media = prompts(model)
    with pytest.raises(ValueError, match=f"cache_implementation: expected none .* got '{kind}'"):
        model.generate(ids, vision_features=media, cache_implementation=kind)
    config = GenerationConfig(cache_implementation=kind)
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(ids, vision_features=media, generation_config=config)


@pytest.mark.parametrize(
    "options",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"num_beams": 2, "force_words_ids": [[5]]},
        {"dola_layers": "low"},
    ],
    ids=["contrastive", "group beams", "constrained", "dola"],
)
def test_strategies_that_transformers_moved_to_its_hub_are_refused(build: Build, options):
    model = build()
    ids, media = prompts(model)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(ids, vision_features=media, **options)
