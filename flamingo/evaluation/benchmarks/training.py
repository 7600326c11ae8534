"""The questions that a benchmark's training split offers to train on."""

from __future__ import annotations

from pathlib import Path

from flamingo.choices import VQAFormat
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.gqa import read_gqa
from flamingo.evaluation.benchmarks.textvqa import read_textvqa
from flamingo.evaluation.benchmarks.vizwiz import read_vizwiz
from flamingo.evaluation.benchmarks.vqa import read_vqa
from flamingo.source_config import VQASourceConfig


def training_questions(config: VQASourceConfig) -> list[Example]:
    """The questions of ``config``, in the order of their file. Raises as the format's reader."""
    questions, images = Path(config.questions), Path(config.images)
    match config.format:
        case VQAFormat.vqa:
            assert config.annotations and config.image_split, "checked by the config"
            return read_vqa(
                questions,
                Path(config.annotations),
                images,
                image_split=config.image_split,
                name="vqa",
            )
        case VQAFormat.textvqa:
            return read_textvqa(questions, images)
        case VQAFormat.vizwiz:
            return read_vizwiz(questions, images)
        case VQAFormat.gqa:
            return read_gqa(questions, images)
