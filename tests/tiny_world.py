"""Folders like the real ones, a thousand times smaller: backbones, easy-VQA, Twemoji, classes.

For tests that start from names in a configuration, as users do, and need no download. The data
sets stand in a cache folder (``FLAMINGO_CACHE``) as if they had been fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from flamingo.backbones.assets import MARKER, Asset
from flamingo.build import build_model
from flamingo.composition import compose
from flamingo.interop.open_flamingo_export import save_open_flamingo
from flamingo.run_directory import RunDirectory
from flamingo.testing import (
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    VOCABULARY,
    draw,
    save_tiny_language_model,
)
from flamingo.training.checkpoint import save_checkpoint

EMOJI = range(0x1F400, 0x1F53E)
"""318 code points that every version of Unicode in use has names for."""


def save_vision_encoder(folder: Path) -> Path:
    """A random CLIP vision tower: images of 32 px, 16 patch tokens of 16 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=IMAGE_SIZE,
                patch_size=IMAGE_SIZE // 4,
            )
        )
    model.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(
        folder
    )
    return folder


def save_classes(folder: Path, views: int) -> Path:
    """A directory for each of twelve coloured shapes, with ``views`` images in it."""
    for colour in COLOURS:
        for shape in SHAPES:
            (folder / f"{colour} {shape}").mkdir(parents=True)
            for view in range(views):
                draw(colour, shape, view).save(folder / f"{colour} {shape}" / f"{view}.png")
    return folder


def save_cache(folder: Path, *, images: int = 12, questions: int = 600) -> Path:
    """A cache that holds easy-VQA and Twemoji: small, and complete as far as our code can tell.

    easy-VQA has ``questions`` about ``images`` red, green and blue shapes in each split, of other
    sizes and places in the one than in the other; an emoji is a rectangle of its own colour.
    """
    _save_easy_vqa(_unpacked(folder, Asset.easy_vqa) / "data", images, questions)
    _save_twemoji(_unpacked(folder, Asset.twemoji) / "72x72")
    return folder


def _unpacked(cache: Path, asset: Asset) -> Path:
    folder = cache / "assets" / asset.value.folder_name
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps({"sha256": asset.value.sha256}))
    return folder


def _save_easy_vqa(folder: Path, images: int, questions: int) -> None:
    for first, split in enumerate(("train", "test")):
        (folder / split / "images").mkdir(parents=True)
        rows: list[list[str | int]] = []
        for image in range(images):
            colour, shape = ("red", "green", "blue")[image % 3], ("circle", "triangle")[image % 2]
            drawn = draw(colour, shape, first * images + image)
            drawn.save(folder / split / "images" / f"{image}.png")
            rows += [
                ["what color is the shape?", colour, image],
                ["what shape is in the image?", shape, image],
                ["is there a red shape?", "yes" if colour == "red" else "no", image],
            ]
        rows = (rows * (questions // len(rows) + 1))[:questions]
        (folder / split / "questions.json").write_text(json.dumps(rows))


def _save_twemoji(folder: Path) -> None:
    folder.mkdir()
    for code in EMOJI:
        image = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
        colour = (250, code & 0xFF, 100 * (code >> 8 & 1), 255)
        ImageDraw.Draw(image).rectangle((10, 10, 50, 60), fill=colour)
        image.save(folder / f"{code:x}.png")


def save_world(folder: Path) -> Path:
    """All that a run of tiny backbones starts from: ``language``, ``vision`` and ``cache``."""
    save_tiny_language_model(folder / "language")
    save_vision_encoder(folder / "vision")
    save_cache(folder / "cache")
    return folder


def save_untrained_run(
    world: Path, name: str, *overrides: str, steps: Sequence[int] = (7,)
) -> Path:
    """A run in ``world/runs`` that was trained for no step at all, with checkpoints of ``steps``.

    ``world`` is a folder of :func:`save_world`.
    """
    config = compose(
        [
            f"name={name}",
            f"runs={world / 'runs'}",
            f"vision.name={world / 'vision'}",
            "vision.revision=null",
            f"language.name={world / 'language'}",
            "language.revision=null",
            "model.resampler.depth=1",
            "training.precision=fp32",
            *overrides,
        ]
    )
    model, processor = build_model(config, torch.device("cpu"))
    directory = RunDirectory.open(config)
    for step in steps:
        save_checkpoint(
            directory.checkpoints,
            step=step,
            models=[model, processor],
            state={},
            config_hash=directory.config_hash,
            keep=len(steps),
        )
    return directory.path


def save_release(folder: Path) -> Path:
    """A folder with clip/, lm/ and checkpoint.safetensors: a tiny OpenFlamingo-4B, all random."""
    save_vision_encoder(folder / "clip")
    save_tiny_language_model(folder / "lm", "gpt_neox", layers=4, vocab_size=VOCABULARY + 16)
    config = compose([*_released(folder), "training.precision=fp32"])
    model, _ = build_model(config, torch.device("cpu"))
    # To where OpenFlamingo has them: behind the tokenizer's own, inside the padded matrix.
    model.new_tokens.token_ids.copy_(torch.tensor([VOCABULARY, VOCABULARY + 1]))
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.resampler.frame_embeddings.zero_()
    save_open_flamingo(model, folder / "checkpoint.safetensors")
    return folder


def conversion(release: Path, runs: Path) -> list[str]:
    """What experiments/convert.py is told to make a run of a folder of :func:`save_release`."""
    file = release / "checkpoint.safetensors"
    return ["source=open_flamingo", f"checkpoint={file}", f"runs={runs}", *_released(release)]


def _released(folder: Path) -> list[str]:
    backbones = [f"vision.name={folder / 'clip'}", f"language.name={folder / 'lm'}"]
    return ["experiment=openflamingo_4b", *backbones]
