"""Prompts for IDEFICS against transformers' own processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import IdeficsImageProcessorPil, IdeficsProcessor

from flamingo import FlamingoProcessor
from flamingo.interop import load_idefics
from flamingo.interop.idefics_processor import idefics_prompt, load_idefics_processor
from flamingo.testing import VOCABULARY, tiny_tokenizer
from tests.interop import tiny_idefics as tiny

FAKE, TURN = "<fake_token_around_image>", "<end_of_utterance>"


def checkpoint(folder: Path, *tokens: str) -> IdeficsProcessor:
    """A tiny model, a tokenizer that knows ``tokens`` behind the model's own, and a transform."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tiny.save(folder, vocab_size=VOCABULARY)
    tokenizer.save_pretrained(folder)
    transform = IdeficsImageProcessorPil(image_size=tiny.SIZE, image_mean=[0.3, 0.4, 0.5])
    transform.save_pretrained(folder)
    return IdeficsProcessor(transform, tokenizer, image_size=tiny.SIZE)


def photographs(number: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    arrays = random.integers(0, 256, size=(number, 20, 31, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in arrays]


def test_inputs_are_those_of_transformers(tmp_path: Path):
    theirs = checkpoint(tmp_path, FAKE, "<image>")
    ours = load_idefics_processor(str(tmp_path))
    a, b, c = photographs(3)
    lists = [["What", a, b, "is this?"], [c, "a circle"]]
    expected = theirs(text=lists, padding=True, padding_side="left", return_tensors="pt")
    begin = theirs.tokenizer.bos_token
    texts = [f"{begin}What<image><image>is this?", f"{begin}<image>a circle"]
    inputs = ours([idefics_prompt(text) for text in texts], [[a, b], [c]])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    torch.testing.assert_close(inputs["pixel_values"][:, :, 0], expected["pixel_values"])


def test_a_loaded_model_knows_the_tokens_of_its_tokenizer(tmp_path: Path):
    checkpoint(tmp_path, "<image>", FAKE, TURN)  # not in the order of the released ones
    model = load_idefics(str(tmp_path))
    assert model.config.image_token_id == VOCABULARY
    assert model.config.end_of_chunk_token_id == VOCABULARY + 2
    assert model.generation_config.eos_token_id == [VOCABULARY + 2, tiny.EOS]
    processor = load_idefics_processor(str(tmp_path))
    prompt = processor(idefics_prompt(f"<image>What is this?{TURN}"), photographs(1))
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]
    processor.save_pretrained(tmp_path / "processor")
    again = FlamingoProcessor.from_pretrained(tmp_path / "processor")
    same = again(idefics_prompt(f"<image>What is this?{TURN}"), photographs(1))
    assert all(torch.equal(same[name], prompt[name]) for name in prompt)


def test_a_tokenizer_without_the_image_token_is_refused(tmp_path: Path):
    checkpoint(tmp_path, FAKE)
    with pytest.raises(ValueError, match=r"image_token_id: .* lacks it"):
        load_idefics(str(tmp_path))
    with pytest.raises(ValueError, match=r"it lacks \['<image>'\]"):
        load_idefics_processor(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "a"),
        ("a<image>b", f"a{FAKE}<image>{FAKE}b"),
        ("<image><image>", f"{FAKE}<image>{FAKE}<image>{FAKE}"),
        ("<image> <image>", f"{FAKE}<image>{FAKE} {FAKE}<image>{FAKE}"),
        (f"{FAKE}<image>{FAKE}<image>{FAKE}b", f"{FAKE}<image>{FAKE}<image>{FAKE}b"),
    ],
)
def test_images_get_the_token_around_them_once(text: str, expected: str):
    assert idefics_prompt(text) == expected


def test_chats_are_refused_and_so_will_be_those_of_the_saved_processor(tmp_path: Path):
    checkpoint(tmp_path / "theirs", FAKE, "<image>")
    processor = load_idefics_processor(str(tmp_path / "theirs"))
    with pytest.raises(TemplateError, match="expected a prompt as idefics_prompt writes it"):
        processor.apply_chat_template([{"role": "user", "content": "hello"}])
    processor.save_pretrained(tmp_path / "ours")
    # Not loaded here: the tests' type checks hide from transformers what __init__ takes.
    template = (tmp_path / "ours" / "chat_template.jinja").read_text()
    assert template == processor.chat_template and "<image>" in template
