"""The processor: ids of the special tokens, images in place, saving and loading."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.model.processor import place_special_tokens, prepare_tokenizer
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
    message = r"<image> at 100 and <\|endofchunk\|> at 101 behind its own tokens, got 512 tokens"
    with pytest.raises(ValueError, match=message):
        prepare_tokenizer(tiny_tokenizer(), 100)


@pytest.mark.parametrize(("image", "end"), [(513, 512), (512, 513), (515, 520)])
def test_special_tokens_stand_where_a_model_has_them(image: int, end: int):
    tokenizer = tiny_tokenizer()
    for _ in range(2):  # a second time changes nothing
        tokenizer = place_special_tokens(tokenizer, image_token_id=image, end_of_chunk_token_id=end)
        assert tokenizer.convert_tokens_to_ids(["<image>", "<|endofchunk|>"]) == [image, end]
        assert len(tokenizer) == max(image, end) + 1
    own = tiny_tokenizer()("a red square").input_ids
    ids = tokenizer("<image>a red square<|endofchunk|>").input_ids
    assert ids == [image, *own, end]


def test_special_tokens_at_other_ids_are_an_error_that_names_both():
    tokenizer = prepare_tokenizer(tiny_tokenizer(), 512)
    message = r"expected <\|endofchunk\|> at 512 and <image> at 513, got .*: 513, .*: 512"
    with pytest.raises(ValueError, match=message):
        place_special_tokens(tokenizer, image_token_id=513, end_of_chunk_token_id=512)
    with pytest.raises(ValueError, match="expected two ids, got 512 for both"):
        place_special_tokens(tiny_tokenizer(), image_token_id=512, end_of_chunk_token_id=512)


def test_a_tokenizer_that_has_only_one_of_them_is_an_error():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    with pytest.raises(ValueError, match=r"expected <image> at 512 .* got {'<image>': 512}"):
        prepare_tokenizer(tokenizer, 512)


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


def test_images_are_read_as_files_are(processor):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    half = Image.new("RGB", (32, 32), "black")
    half.paste("white", (0, 0, 32, 16))
    buffer = io.BytesIO()
    half.save(buffer, "PNG", exif=exif)
    turned = Image.open(buffer)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 8), 256 * 127, dtype=np.uint16))
    pixels = processor("<image><image><image>", [turned, clear, deep])["pixel_values"][0, :, 0, 0]
    assert (pixels[0, :16] == -1).all() and (pixels[0, 16:] == 1).all()
    assert (pixels[1] == 1).all()  # transparency is white
    assert pixels[2].abs().max() < 0.01  # half way, not clipped
    with pytest.raises(ValueError, match="row 1, image 0: expected 8 or 16 bits"):
        processor(["a", "<image>"], [[], [Image.new("F", (8, 8))]])


def test_no_images_can_be_said_in_three_ways(processor):
    for prompts in ("what is it?", ["what is it?", "and this?"]):
        batches = [processor(prompts), processor(prompts, None), processor(prompts, [])]
        for batch in batches:
            assert set(batch) == {"input_ids", "attention_mask"}
            assert torch.equal(batch["input_ids"], batches[0]["input_ids"])
    with pytest.raises(ValueError, match=r"row 0: expected an image for each of its 1 <image>"):
        processor("<image>", [])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_whose_images_were_truncated_away_is_refused(processor, side: str):
    processor.tokenizer.truncation_side = side
    red = Image.new("RGB", (8, 8), "red")
    prompts = ["<image>what", "<image>what is it? red<|endofchunk|>and what is this? <image>"]
    cut = {"truncation": True, "max_length": 8}
    with pytest.raises(ValueError, match=r"row 1: .* each of its 2 images, got 1; .*truncated"):
        processor(prompts, [[red], [red, red]], **cut)
    whole = processor(prompts[:1], [[red]], **cut)
    assert torch.equal(whole["input_ids"], processor(prompts[:1], [[red]])["input_ids"])


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
