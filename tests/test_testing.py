"""The stand-ins behave as what they stand for."""

import pickle

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import AutoModelForCausalLM, AutoTokenizer

from flamingo.testing import (
    FAMILIES,
    SyntheticSource,
    save_tiny_language_model,
    synthetic_images,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.types import Media, Text


@pytest.mark.parametrize("family", FAMILIES)
def test_language_models_are_reproducible_and_leave_the_global_random_state_alone(family):
    before = torch.get_rng_state()
    first, again = tiny_language_model(family), tiny_language_model(family)
    assert torch.equal(before, torch.get_rng_state())
    other = tiny_language_model(family, seed=1)
    ids = torch.arange(8)[None] + 5
    with torch.no_grad():
        logits = first(ids).logits
        assert torch.equal(logits, again(ids).logits)
        assert not torch.allclose(logits, other(ids).logits)
    assert logits.shape == (1, 8, len(tiny_tokenizer()))
    assert logits.std() > 0.3, "logits of a random model must not be near-uniform"


@pytest.mark.parametrize("family", FAMILIES)
def test_language_models_are_causal_and_have_no_dropout_unless_asked(family):
    ids = torch.arange(8)[None] + 5
    changed = ids.clone()
    changed[0, 5] = 99
    model = tiny_language_model(family).train()
    with torch.no_grad():
        logits, after = model(ids).logits, model(changed).logits
        torch.testing.assert_close(logits[:, :5], after[:, :5])
        assert not torch.allclose(logits[:, 5:], after[:, 5:])
        if family == "mosaic_gpt":
            with pytest.raises(ValueError, match="resid_pdrop: expected 0, got 0.5"):
                tiny_language_model(family, dropout=0.5)
            return
        dropping = tiny_language_model(family, dropout=0.5).train()
        assert not torch.allclose(dropping(ids).logits, dropping(ids).logits)


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="family: expected one of llama, .*got 'lama'"):
        tiny_language_model("lama")


def test_tokenizer_round_trips_any_text_and_keeps_answers_whole():
    tokenizer = tiny_tokenizer()
    text = "What shape is 3 × red?\n  é 猫 yes"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    for word in (" red", " circle", " triangle", " yes", " bax"):
        assert len(tokenizer(word).input_ids) == 1
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_saved_folder_opens_with_the_auto_classes(tmp_path, family):
    folder = save_tiny_language_model(tmp_path / "lm", family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tiny_tokenizer()("This is a red circle").input_ids
    assert tokenizer("This is a red circle").input_ids == ids
    with torch.no_grad():
        expected = tiny_language_model(family)(torch.tensor([ids])).logits
        assert torch.equal(model(torch.tensor([ids])).logits, expected)


def test_vision_encoder_is_frozen_and_its_patches_see_their_own_pixels():
    encoder = tiny_vision_encoder(dim=24, patches=16).train()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    image = synthetic_images(1)[0].open()
    pixels = encoder.transform(image)[None]
    features = encoder(pixels)
    assert features.shape == (1, encoder.patches, encoder.dim)
    pixels[..., :8, :8] += 1
    changed = (encoder(pixels) != features).any(-1)[0]
    assert changed.tolist() == [True] + [False] * 15
    assert tiny_vision_encoder(dim=24).fingerprint == encoder.fingerprint
    assert tiny_vision_encoder(dim=24, seed=1).fingerprint != encoder.fingerprint


def test_shapes_of_public_tensors_are_checked_while_tests_run():
    with pytest.raises(TypeCheckError):
        tiny_vision_encoder()(torch.zeros(3, 32, 32))


def test_patches_that_do_not_tile_the_image_are_refused():
    with pytest.raises(ValueError, match="patches: .*got 10"):
        tiny_vision_encoder(patches=10)


def test_synthetic_images_are_deterministic_picklable_and_distinct():
    images = synthetic_images(24)
    assert len({image.key for image in images}) == 24
    pixels = [np.asarray(image.open()) for image in images]
    assert all(p.shape == (32, 32, 3) for p in pixels)
    copies = pickle.loads(pickle.dumps(images))
    assert all(np.array_equal(p, np.asarray(c.open())) for p, c in zip(pixels, copies, strict=True))
    assert len({p.tobytes() for p in pixels}) == 24
    assert images[0].key.startswith("synthetic/red-circle")
    colours = pixels[0].reshape(-1, 3)
    red, green, blue = colours[colours.sum(1).argmin()]
    assert red > 200 and green < 50 and blue < 50


def test_synthetic_source_is_pure_in_seed_and_index_and_tells_the_truth():
    source = SyntheticSource(pairs=3)
    assert source.sequence(5) == SyntheticSource(pairs=3).sequence(5)
    assert source.sequence(5) != source.sequence(6)
    assert source.sequence(5) != SyntheticSource(pairs=3, seed=1).sequence(5)
    known = {image.key for image in source.images()}
    segments = source.sequence(5).segments
    for media, question, answer in zip(segments[::3], segments[1::3], segments[2::3], strict=True):
        assert isinstance(media, Media) and isinstance(question, Text) and isinstance(answer, Text)
        key = media.frames[0].key
        assert key in known
        assert answer.learn and not question.learn
        assert answer.text == f" {key.split('/')[1].replace('-', ' ')}<|endofchunk|>"
