"""A vector depends on its image or text alone."""

from __future__ import annotations

import pytest
import torch

from flamingo.choices import Pooling
from flamingo.data.features import EncodingLoader, PixelLoader
from flamingo.evaluation.retrieval_features import (
    HiddenStates,
    image_features,
    text_features,
)
from flamingo.testing import (
    FAMILIES,
    synthetic_images,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.types import Media

IMAGES = synthetic_images(9)
TEXTS = [
    "what color is the circle?",
    "is there a red square?",
    "yes",
    "does the image not contain a very long and unusual description of a triangle?",
]


def fake(media):
    """(image, frame, patch, dim): frame f of image i has patches i, i + 1, i + 2 plus 10 f."""
    rows = [
        [[[float(f.key.rsplit("/")[-1]) + p + 10 * n] * 2 for p in range(3)]
         for n, f in enumerate(m.frames)]
        for m in media
    ]  # fmt: skip
    return torch.tensor(rows).half()


def test_the_literal_poolings() -> None:
    clips = [Media((IMAGES[1], IMAGES[4])), Media((IMAGES[2], IMAGES[2]))]
    # Frames 1, 2, 3 and 14, 15, 16; frames 2, 3, 4 and 12, 13, 14.
    mean = image_features(clips, fake, Pooling.mean)
    assert mean.tolist() == [[8.5, 8.5], [8.0, 8.0]]
    cls = image_features(clips, fake, Pooling.cls)
    assert cls.tolist() == [[7.5, 7.5], [7.0, 7.0]]
    assert mean.dtype is torch.float32


def test_equal_media_are_loaded_once_and_batches_change_nothing() -> None:
    encode, loaded = EncodingLoader(tiny_vision_encoder()), []

    def load(media):
        loaded.extend(media)
        return encode(media)

    media = [Media((IMAGES[i],)) for i in (3, 0, 3, 1, 8, 0)]
    vectors = image_features(media, load, batch_size=3)
    assert len(loaded) == 4
    for place, medium in enumerate(media):
        torch.testing.assert_close(image_features([medium], encode)[0], vectors[place])
    with pytest.raises(ValueError, match="expected vision features, got pixels"):
        image_features(media, PixelLoader(tiny_vision_encoder().transform))


def test_equal_texts_are_encoded_once() -> None:
    encoded = []

    def encode(texts):
        encoded.extend(texts)
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    vectors = text_features(["ab", "a", "ab", "abc"], encode)
    assert encoded == ["ab", "a", "abc"]
    assert vectors.tolist() == [[2, 1], [1, 1], [2, 1], [3, 1]]
    with pytest.raises(ValueError, match="a vector for each of 2 texts, got 1"):
        text_features(["a", "b"], lambda texts: torch.ones(1, 2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mpt", "bloom"])
def test_hidden_states_are_those_of_the_text_alone(family: str) -> None:
    assert family in FAMILIES
    model, tokenizer = tiny_language_model(family), tiny_tokenizer()
    encode = HiddenStates(model, tokenizer, reference=tuple(TEXTS), layer=2, batch_size=3)
    means = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
        means.append(hidden[0].mean(dim=0))
    std, mean = torch.std_mean(torch.stack(means), dim=0)
    expected = (torch.stack(means) - mean) / std
    torch.testing.assert_close(encode(TEXTS), expected, atol=1e-3, rtol=1e-3)


def test_a_text_has_the_same_bits_alone_as_among_others() -> None:
    encode = HiddenStates(tiny_language_model(), tiny_tokenizer(), tuple(TEXTS), batch_size=3)
    together = encode(TEXTS)
    assert torch.equal(encode(TEXTS[::-1]).flip(0), together)
    for text, vector in zip(TEXTS, together, strict=True):
        assert torch.equal(encode([text])[0], vector)
    with pytest.raises(ValueError, match="reference: expected at least two texts, got 1"):
        HiddenStates(tiny_language_model(), tiny_tokenizer(), ("a", "a"))(["b"])
