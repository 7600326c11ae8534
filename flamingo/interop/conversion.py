"""From a published checkpoint, or one of ours, to a model with all that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import IdeficsForVisionText2Text

from flamingo.backbones import idefics as backbone
from flamingo.backbones import language as lm
from flamingo.backbones.vision import load_vision_encoder
from flamingo.backbones.weight_files import open_weights
from flamingo.choices import Precision
from flamingo.config import LanguageConfig, ModelConfig, RunConfig, VisionConfig
from flamingo.interop.check import (
    TOLERANCES,
    Check,
    Logits,
    Sample,
    check_close,
    check_way_back,
    idefics_logits,
)
from flamingo.interop.idefics import cross_attention_config, load_idefics, plan, resampler_config
from flamingo.interop.idefics_processor import load_idefics_processor
from flamingo.interop.moves import How, Move, Part
from flamingo.interop.open_flamingo import convert
from flamingo.interop.open_flamingo_export import open_flamingo_interval, open_flamingo_state
from flamingo.interop.open_flamingo_file import CheckpointFile, read_checkpoint
from flamingo.interop.open_flamingo_names import LanguageModelNames, to_ours
from flamingo.interop.tokens import TokenIds, open_flamingo_token_ids
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.model.processor import place_special_tokens
from flamingo.runs import load_run

ARCHITECTURE = ("depth", "num_latents", "heads", "dim_head", "ff_mult", "activation")
"""Options of a run that the shapes in a checkpoint decide."""


@dataclass(frozen=True, eq=False)
class Converted:
    """A model, what it was made of, and how that is checked against its source."""

    model: FlamingoForConditionalGeneration
    processor: FlamingoProcessor
    run: RunConfig
    """Its settings as a run."""
    moves: Sequence[Move]
    notes: Sequence[str]
    check: Callable[[Logits], Check] | None
    """Compares the model, and its logits of the sample, with where it came from. Models of ours are
    what they are."""


def from_open_flamingo(run: RunConfig, checkpoint: str, tokens: TokenIds | None) -> Converted:
    """OpenFlamingo's checkpoint with ``run``'s backbones.

    ``tokens``: default as OpenFlamingo extends the language model's tokenizer. Raises
    ``ValueError`` as ``load_open_flamingo``, and for a run with another architecture.
    """
    weights = read_checkpoint(Path(checkpoint))
    tokenizer = lm.load_tokenizer(run.language)
    ids = tokens or open_flamingo_token_ids(tokenizer)
    tokenizer = place_special_tokens(
        tokenizer, image_token_id=ids.image, end_of_chunk_token_id=ids.end_of_chunk
    )
    language = lm.load_language_model(run.language, _dtype(run))
    file = CheckpointFile.of(weights, LanguageModelNames.of(language))
    every = _checked_interval(run, file)
    encoder = load_vision_encoder(run.vision)
    model, notes = convert(
        file,
        language,
        encoder,
        every=every,
        image_token_id=ids.image,
        end_of_chunk_token_id=ids.end_of_chunk,
    )
    return Converted(
        model,
        FlamingoProcessor(encoder.image_processor, tokenizer),
        run,
        file.moves(len(model.new_tokens.token_ids)),
        notes,
        lambda logits: check_way_back(model, file),
    )


def _checked_interval(run: RunConfig, file: CheckpointFile) -> int:
    every = run.model.cross_attention.every
    if every is None:
        raise ValueError(
            "model.cross_attention.every: expected 1 for the 3B, 2 for the 4B, 4 for the 9B model, "
            "got null"
        )
    found = {"resampler": file.resampler, "cross_attention": file.cross_attention(every)}
    for part, theirs in found.items():
        own = getattr(run.model, part)
        for option in ARCHITECTURE:
            if hasattr(own, option) and getattr(own, option) != getattr(theirs, option):
                raise ValueError(
                    f"model.{part}.{option}: expected {getattr(theirs, option)}, as in the "
                    f"checkpoint, got {getattr(own, option)}; experiment=openflamingo_3b has all"
                )
    return every


def from_idefics(run: RunConfig, checkpoint: str, sample: Sample) -> Converted:
    """An IDEFICS checkpoint (transformers' Idefics, version 1), which holds its backbones too.

    transformers' own model reads the sample first, and is gone before ours is loaded. Raises
    ``ValueError`` as ``load_idefics``.
    """
    config = backbone.read_config(checkpoint)
    moves = plan(open_weights(checkpoint).shapes, config, checkpoint)
    processor, dtype = load_idefics_processor(checkpoint), _dtype(run)
    theirs = idefics_logits(
        IdeficsForVisionText2Text.from_pretrained(checkpoint, dtype=dtype), processor, sample
    )
    model = load_idefics(checkpoint, dtype=dtype, trained_dtype=torch.float32)
    run = replace(
        run,
        vision=VisionConfig(name=checkpoint, keep_cls=True),
        language=LanguageConfig(name=checkpoint),
        model=ModelConfig(
            resampler=resampler_config(config), cross_attention=cross_attention_config(config)
        ),
    )

    def check(logits: Logits) -> Check:
        return check_close(logits, theirs, "transformers' Idefics", TOLERANCES[dtype])

    return Converted(model, processor, run, moves, (), check)


def from_ours(run: RunConfig, checkpoint: str) -> Converted:
    """A run of ours (its newest checkpoint), or a folder of ``save_pretrained``.

    Raises ``ValueError`` for a model that OpenFlamingo cannot express.
    """
    if (Path(checkpoint) / "config.yaml").is_file():
        source = load_run(checkpoint)
        model, processor = source.model()
        run = source.config
    else:
        model = FlamingoForConditionalGeneration.from_pretrained(checkpoint)
        processor = FlamingoProcessor.from_pretrained(checkpoint)
    open_flamingo_interval(model)
    layers = LanguageModelNames.of(model.language_model).layers
    moves = []
    for name, tensor in open_flamingo_state(model):
        ours, shape = to_ours(name, layers), tuple(tensor.shape)
        if ours is None:
            moves.append(Move(("new_tokens",), name, Part.trained, How.rows, shape))
        else:
            moves.append(Move((ours,), name, Part.trained, How.unchanged, shape))

    return Converted(model, processor, run, moves, (), None)


def _dtype(run: RunConfig) -> torch.dtype:
    """Of the frozen language model: fp32 unless the run says bf16, which takes half the memory."""
    return torch.bfloat16 if run.training.precision is Precision.bf16 else torch.float32
