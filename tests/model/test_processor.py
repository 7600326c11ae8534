"""The processor: ids of the special tokens, images in place, saving and loading."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import tiny_language_model, tiny_tokenizer, tiny_vision_encoder
from tests.model.test_persistence import SMALL


@pytest.fixture
def processor() -> FlamingoProcessor:
    return FlamingoProcessor(
        tiny_vision_encoder().image_processor, prepare_tokenizer(tiny_tokenizer(), 512)
    )


def test_special_tokens_get_the_ids_the_model_has_rows_for():
    for vocabulary in (512, 520):  # 520: a matrix padded beyond its tokenizer
        tokenizer = prepare_tokenizer(tiny_tokenizer(), vocabulary)
        ids = tokenizer.convert_tokens_to_ids(["<image>", "<|endofchunk|>"])
        model = FlamingoForConditionalGeneration.from_backbones(
            None, tiny_language_model(vocab_size=vocabulary), vision_dim=8, **SMALL
        )
        assert ids == [model.config.image_token_id, model.config.end_of_chunk_token_id]
        assert prepare_tokenizer(tokenizer, vocabulary) is tokenizer
        assert len(tokenizer) == vocabulary + 2


def test_a_tokenizer_larger_than_the_language_model_is_an_error():
    with pytest.raises(ValueError, match="at most the language model's 100 tokens"):
        prepare_tokenizer(tiny_tokenizer(), 100)


def test_prompts_and_images_become_what_the_model_reads(processor):
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGBA", (8, 8), "blue")
    batch = processor(["<image>red<|endofchunk|><image>what", "<image>blue"], [[red, blue], [blue]])
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == image).sum(dim=1).tolist() == [2, 1]
    assert batch["attention_mask"][1, 0] == 0  # padded on the left
    assert batch["pixel_values"].shape == (2, 2, 1, 3, 32, 32)
    assert batch["pixel_values"][0, 0, 0, :, 5, 5].tolist() == [1, -1, -1]
    assert batch["pixel_values"][1, 0, 0, :, 5, 5].tolist() == [-1, -1, 1]
    assert (batch["pixel_values"][1, 1] == 0).all()


def test_one_prompt_takes_a_flat_list_and_runs_through_the_model(processor):
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_vision_encoder(), tiny_language_model(), **SMALL
    ).eval()
    batch = processor("<image>what is it?", [Image.new("RGB", (9, 9), "green")])
    out = model.generate(**batch, max_new_tokens=3)
    assert out.shape[1] > batch["input_ids"].shape[1]
    assert isinstance(processor.tokenizer.decode(out[0]), str)


def test_a_mismatch_of_prompts_and_images_names_the_row(processor):
    red = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"row 1: expected an image for each of its 2"):
        processor(["<image>a", "<image><image>b"], [[red], [red]])
    with pytest.raises(ValueError, match="a list for each of 2 prompts"):
        processor(["<image>a", "<image>b"], [red, red])


def test_saved_and_loaded_it_does_the_same(processor, tmp_path: Path):
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_vision_encoder(), tiny_language_model(), **SMALL
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    red = Image.new("RGB", (40, 20), "red")
    expected = processor("<image>red<|endofchunk|>", [red])
    for loader in (FlamingoProcessor, AutoProcessor):
        again = loader.from_pretrained(tmp_path)
        actual = again("<image>red<|endofchunk|>", [red])
        assert isinstance(again, FlamingoProcessor)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
