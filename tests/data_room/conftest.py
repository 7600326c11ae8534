"""A tiny easy-VQA, Twemoji and tokenizer with the files and names of the real ones.

Every picture is of another colour: split and number of an image, code point of an emoji.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerFast

from flamingo.testing import tiny_tokenizer
from flamingo.types import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

QUESTIONS = [
    ["what is the blue shape?", "rectangle", 0],
    ["is there a red shape?", "no", 0],
    ["what color is the shape?", "teal", 1],
    ["is there not a circle?", "no", 1],
    ["is a red shape present?", "yes", 2],
    ["is no triangle present?", "yes", 2],
    ["does the image not contain a triangle?", "no", 3],
    ["what color is the triangle?", "black", 3],
    ["is there a black shape in the image?", "yes", 4],
    ["what shape is present?", "triangle", 4],
]
EMOJI = ("1f600", "1f601", "1f602", "1f63a", "1f680", "2600", "26bd", "1f34e")
NO_CONCEPTS = ("1f1e6", "1f3fb", "a9", "1f1e6-1f1e8", "e50a", "1fae8")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([IMAGE_TOKEN, END_OF_CHUNK_TOKEN], special_tokens=True)
    return tokenizer


@pytest.fixture
def easy_vqa(tmp_path: Path) -> Path:
    folder = tmp_path / "easy_vqa"
    for split in ("train", "test"):
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "questions.json").write_text(json.dumps(QUESTIONS))
        for index in range(5):
            image = Image.new("RGB", (8, 8), (index, len(split), 0))
            image.save(folder / split / "images" / f"{index}.png")
    return folder


@pytest.fixture
def twemoji(tmp_path: Path) -> Path:
    folder = tmp_path / "twemoji"
    folder.mkdir()
    for name in EMOJI + NO_CONCEPTS:
        image = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
        code = int(name.split("-")[0], 16)
        colour = (code & 0xFF, code >> 8 & 0xFF, code >> 16, 255)
        ImageDraw.Draw(image).rectangle((10, 10, 50, 60), fill=colour)
        image.save(folder / f"{name}.png")
    return folder
