"""The transform of CLIP against its own steps, written with PIL and NumPy alone."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, ViTImageProcessorPil

from flamingo import FlamingoProcessor
from flamingo.backbones.clip_crop import OriginalCLIPImageProcessor, as_clip_crops
from flamingo.backbones.vision import transform_settings
from flamingo.testing import tiny_tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = [(640, 480), (480, 640), (640, 427), (427, 640), (500, 375), (333, 500), (224, 224)]
SIZES += [(225, 224), (226, 224), (227, 224), (224, 231), (100, 60)]


def noise(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width * height)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def open_clips(image: Image.Image) -> np.ndarray:
    """Resize(224, bicubic), CenterCrop(224), ToTensor, Normalize, as torchvision defines them."""
    width, height = image.size
    short = min(width, height)
    size = (int(224 * width / short), int(224 * height / short))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left = round((size[0] - 224) / 2)
    top = round((size[1] - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224))) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


def pixels(processor, image: Image.Image) -> np.ndarray:
    return processor(images=image, return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_open_clip_to_rounding(size: tuple[int, int]):
    image = noise(*size)
    actual = pixels(as_clip_crops(CLIPImageProcessorPil()), image)
    np.testing.assert_allclose(actual, open_clips(image), atol=1e-6)


def test_transformers_own_crop_is_one_pixel_beside_it_for_some_sizes():
    """When this fails, transformers crops as CLIP does and clip_crop.py can go."""
    processor = CLIPImageProcessorPil()
    differ = []
    for size in SIZES:
        image = noise(*size)
        if np.abs(pixels(processor, image) - open_clips(image)).max() > 1e-3:
            differ.append(size)
    assert differ == [(640, 427), (427, 640), (227, 224), (224, 231)]


def test_an_image_smaller_than_the_crop_is_padded_as_before():
    small = {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 26}}
    image = noise(24, 20)
    theirs = CLIPImageProcessorPil(**small)
    np.testing.assert_array_equal(pixels(as_clip_crops(theirs), image), pixels(theirs, image))


def test_on_disk_it_is_transformers_own_and_read_it_crops_as_clip_again(tmp_path):
    processor = FlamingoProcessor(CLIPImageProcessorPil(do_rescale=True), tiny_tokenizer())
    assert type(processor.image_processor) is OriginalCLIPImageProcessor
    processor.save_pretrained(tmp_path)
    again = FlamingoProcessor.from_pretrained(tmp_path)
    assert type(again.image_processor) is OriginalCLIPImageProcessor
    processor.image_processor.save_pretrained(tmp_path / "alone")
    alone = AutoImageProcessor.from_pretrained(tmp_path / "alone", backend="pil")
    assert type(alone) is CLIPImageProcessorPil


def test_the_crop_is_part_of_what_a_fingerprint_is_taken_of():
    theirs = CLIPImageProcessorPil()
    ours = transform_settings(as_clip_crops(theirs))
    assert ours == transform_settings(theirs) | {"center_crop": "rounded"}


def test_other_processors_stay_what_they_are():
    for processor in (ViTImageProcessorPil(), OriginalCLIPImageProcessor()):
        assert as_clip_crops(processor) is processor
