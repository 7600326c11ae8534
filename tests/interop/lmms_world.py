"""A folder with a tiny model, data sets with images, and tasks of lmms-eval about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch

from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.backbones.vision import load_vision_encoder
from flamingo.config import CrossAttentionConfig, ResamplerConfig, VisionConfig
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import (
    COLOURS,
    SHAPES,
    VOCABULARY,
    draw,
    save_tiny_language_model,
    tiny_tokenizer,
)
from tests.tiny_world import save_vision_encoder

TRAIN, TEST = 8, 5

COMMON = """
dataset_path: parquet
dataset_kwargs: {data_files: {train: train.parquet, test: test.parquet}}
test_split: test
doc_to_visual: !function utils.visual
doc_to_text: "what colour is it?"
"""
TASKS = {
    "shapes": COMMON
    + """
training_split: train
output_type: generate_until
doc_to_target: colour
generation_kwargs: {until: ["."], max_new_tokens: 5, temperature: 0, do_sample: false}
process_results: !function utils.generated
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
""",
    "shapes_without_train": COMMON
    + """
output_type: generate_until
doc_to_target: colour
generation_kwargs: {max_new_tokens: 5, num_beams: 2}
process_results: !function utils.generated
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
""",
    "shapes_choice": COMMON
    + """
training_split: train
output_type: multiple_choice
doc_to_choice: ["red", "green", "blue", "grey"]
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "shapes_rounds": COMMON.replace('"what colour is it?"', "!function utils.rounds")
    + """
output_type: generate_until_multi_round
doc_to_target: colour
generation_kwargs: {max_new_tokens: 3}
process_results: !function utils.said
metric_list: [{metric: rounds, aggregation: mean, higher_is_better: true}]
""",
    "sums": """
dataset_path: parquet
dataset_kwargs: {data_files: {train: train.parquet, test: test.parquet}}
test_split: test
training_split: train
output_type: generate_until
doc_to_text: "what is not {{label}}?"
doc_to_target: colour
generation_kwargs: {max_new_tokens: 3}
process_results: !function utils.generated
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
""",
}

UTILS = """
def visual(doc):
    return [doc["image"]]

def generated(doc, results):
    return {"right": float(results[0] == doc["colour"])}

def said(doc, results):
    return {"rounds": float(len(results[0]))}

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None,
           previous_round_info=None):
    if round_idx is None:
        return "what colour is it?"
    again = f"you said {previous_output[-1]}. what shape is it?"
    return [doc["image"]], again, round_idx == 2, previous_output, round_idx
"""


def save(folder: Path) -> Path:
    """``model/``, ``tasks/`` with their data. Row 3 of train shows the picture of row 0 of test."""
    save_model(folder / "model", folder / "backbones")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(UTILS)
    for name, text in TASKS.items():
        (tasks / f"{name}.yaml").write_text(f"task: {name}\n{text}")
    for name, own in splits().items():
        columns = {column: [row[column] for row in own] for column in own[0]}
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        data.to_parquet(str(tasks / f"{name}.parquet"))
    return folder


def rows(count: int, first: int) -> list[dict[str, Any]]:
    colours = list(COLOURS)
    return [
        {
            "image": draw(colours[n % 4], SHAPES[n % 3], n),
            "colour": colours[n % 4],
            "label": n % 4,
        }
        for n in range(first, first + count)
    ]


def splits() -> dict[str, list[dict[str, Any]]]:
    train, test = rows(TRAIN, 100), rows(TEST, 0)
    train[3] = test[0]
    return {"train": train, "test": test}


def document(name: str) -> dict[str, Any]:
    """A document by the id of its turn, such as ``train/3``."""
    split, index = name.split("/")
    return splits()[split][int(index)]


def save_model(folder: Path, backbones: Path) -> None:
    save_vision_encoder(backbones / "vision")
    save_tiny_language_model(backbones / "language")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FlamingoForConditionalGeneration.from_backbones(
            str(backbones / "vision"),
            str(backbones / "language"),
            resampler=ResamplerConfig(depth=1, num_latents=2, heads=2, dim_head=8),
            cross_attention=CrossAttentionConfig(every=1, heads=2, dim_head=8, gate_init=1.5),
        )
    model.save_pretrained(folder, include_backbones=True)
    encoder = load_vision_encoder(VisionConfig(name=str(backbones / "vision")))
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)
    FlamingoProcessor(encoder.image_processor, tokenizer).save_pretrained(folder)
