"""transformers' Auto classes and its image-text-to-text pipeline on a saved folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

from flamingo import FlamingoConfig, FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import draw, save_tiny_language_model, tiny_tokenizer
from tests.model.test_persistence import SMALL, tiny_clip

RED, BLUE = draw("red", "circle", 0), draw("blue", "square", 1)
SHORT = {"max_new_tokens": 4, "eos_token_id": 10_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with its backbones and its processor, saved."""
    place = tmp_path_factory.mktemp("saved")
    torch.manual_seed(1)
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_clip(place / "clip"), str(save_tiny_language_model(place / "lm")), **SMALL
    ).eval()
    with torch.no_grad():
        for block in model.cross_attention.values():
            block.attention.to_out.weight *= 30  # different images, different answers
    model.save_pretrained(place / "model", include_backbones=True)
    assert model.vision_encoder is not None
    tokenizer = prepare_tokenizer(tiny_tokenizer(), 512)
    FlamingoProcessor(model.vision_encoder.image_processor, tokenizer).save_pretrained(
        place / "model"
    )
    return place / "model"


@pytest.fixture(scope="module")
def pipe(folder: Path):
    return pipeline("image-text-to-text", model=str(folder))


def answer(folder: Path, prompt: str, images: list[Image.Image]) -> str:
    """What the model says, by its own classes."""
    model = FlamingoForConditionalGeneration.from_pretrained(folder)
    processor = FlamingoProcessor.from_pretrained(folder)
    inputs = processor(prompt, images)
    out = model.generate(**inputs, **SHORT)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, AutoModelForImageTextToText])
def test_auto_classes_load_a_saved_folder(folder: Path, auto):
    config = AutoConfig.from_pretrained(folder)
    model = auto.from_pretrained(folder, dtype="auto")
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(config, FlamingoConfig)
    assert isinstance(model, FlamingoForConditionalGeneration)
    assert isinstance(processor, FlamingoProcessor)
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>")
    out = model.generate(**processor("<image>what is it?", [RED]), **SHORT)
    assert out.shape[1] > SHORT["max_new_tokens"]


def test_an_option_that_loading_does_not_know_is_refused(folder: Path):
    with pytest.raises(ValueError, match=r"got also \['device_map'\]"):
        AutoModelForImageTextToText.from_pretrained(folder, device_map="auto")


def test_the_pipeline_says_what_the_model_says(folder: Path, pipe):
    assert isinstance(pipe.model, FlamingoForConditionalGeneration)
    prompt = "<image>what is it?"
    said = {}
    for image in (RED, BLUE):
        (result,) = pipe(images=image, text=prompt, generate_kwargs=SHORT, return_full_text=False)
        said[id(image)] = result["generated_text"]
        assert result["generated_text"] == answer(folder, prompt, [image])
    assert len(set(said.values())) == 2
    (full,) = pipe(images=RED, text=prompt, generate_kwargs=SHORT)
    assert full["generated_text"] == prompt + said[id(RED)]


def test_the_pipeline_takes_demonstrations_and_several_prompts(folder: Path, pipe):
    shot = "<image>what is it? red<|endofchunk|><image>what is it?"
    (one,) = pipe(images=[[RED, BLUE]], text=[shot], generate_kwargs=SHORT, return_full_text=False)
    assert one["generated_text"] == answer(folder, shot, [RED, BLUE])
    plain = "<image>what is it?"
    both = pipe(
        images=[[RED, BLUE], [RED]], text=[shot, plain], generate_kwargs=SHORT,
        return_full_text=False,
    )  # fmt: skip
    assert [r["generated_text"] for r in both] == [
        answer(folder, shot, [RED, BLUE]),
        answer(folder, plain, [RED]),
    ]


def chat(answered: str | None) -> list[dict]:
    """A question about the red circle and its answer, and one about the blue square."""
    turns = []
    for image, said in ((RED, "red"), (BLUE, answered)):
        parts = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
        turns.append({"role": "user", "content": parts})
        if said is not None:
            text = [{"type": "text", "text": said}]
            turns.append({"role": "assistant", "content": text})
    return turns


def test_a_chat_is_a_prompt_with_demonstrations(folder: Path, pipe):
    processor = FlamingoProcessor.from_pretrained(folder)
    shot = "<image>what is it? red<|endofchunk|><image>what is it?"
    assert processor.apply_chat_template(chat(None), add_generation_prompt=True) == shot
    short = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    assert processor.apply_chat_template(short) == "hello there<|endofchunk|>"
    begun = processor.apply_chat_template(chat("a blue"), continue_final_message=True)
    assert begun == f"{shot} a blue"
    (said,) = pipe(text=chat(None), generate_kwargs=SHORT, return_full_text=False)
    assert said["generated_text"] == answer(folder, shot, [RED, BLUE])
    (said,) = pipe(text=chat("a blue"), generate_kwargs=SHORT, return_full_text=False)
    assert said["generated_text"] == answer(folder, f"{shot} a blue", [RED, BLUE])


def test_a_processor_loads_as_it_was_saved(folder: Path, tmp_path: Path):
    """Ids, pixels bit for bit, and the chat template, through either class, twice."""
    first = FlamingoProcessor.from_pretrained(folder)
    first.save_pretrained(tmp_path)
    prompt = "<image>what is it? red<|endofchunk|>"
    expected = first(prompt, [draw("green", "triangle", 3).resize((50, 41))])
    for loader in (FlamingoProcessor, AutoProcessor):
        again = loader.from_pretrained(tmp_path)
        actual = again(prompt, [draw("green", "triangle", 3).resize((50, 41))])
        assert {n: v.tolist() for n, v in actual.items()} == {
            n: v.tolist() for n, v in expected.items()
        }
        assert again.chat_template == first.chat_template
        assert again.tokenizer.pad_token_id == first.tokenizer.pad_token_id
        assert len(again.tokenizer) == len(first.tokenizer)


def test_a_template_of_the_bare_language_model_gives_way_and_one_for_images_stays(folder: Path):
    own = FlamingoProcessor.from_pretrained(folder)
    for given, kept in (("{{ messages[0].content }}", False), ("<image>{{ messages }}", True)):
        processor = FlamingoProcessor(own.image_processor, own.tokenizer, chat_template=given)
        assert (processor.chat_template == given) == kept


def test_other_media_are_refused(folder: Path):
    processor = FlamingoProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="videos, audio: expected none"):
        processor("what is it?", videos=[RED])
