"""Our model as a checkpoint that OpenFlamingo reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flamingo.backbones import adapters
from flamingo.backbones import language as lm
from flamingo.choices import Activation
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.interop.open_flamingo_names import LanguageModelNames, from_ours
from flamingo.model.conditioning import conditioned_layers
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.resampler import PerceiverResampler

RESAMPLER = ResamplerConfig(
    depth=6, num_latents=64, heads=8, dim_head=64, ff_mult=4, activation=Activation.gelu
)
CROSS_ATTENTION = CrossAttentionConfig(heads=8, dim_head=64, ff_mult=4, activation=Activation.gelu)
"""What OpenFlamingo 2 builds, whatever the checkpoint: its factory has no option for it."""

OF_TRAINING = (
    *("latent_std", "max_frames", "standardize_features", "gate_init", "attention_init_scale"),
    *("feed_forward_init_scale", "language_model_norms", "every", "layers"),
)
"""Options that only decide where training starts, or that are checked by their result."""


def open_flamingo_interval(model: FlamingoForConditionalGeneration) -> int:
    """The ``cross_attn_every_n_layers`` that OpenFlamingo reads ``model`` with.

    Raises ``ValueError`` with everything that OpenFlamingo's architecture cannot express.
    """
    unlike = [
        f"{name}.{option} = {_word(value)} (there {_word(getattr(theirs, option))})"
        for name, own, theirs in (
            ("resampler", model.config.resampler_options, RESAMPLER),
            ("cross_attention", model.config.cross_attention_options, CROSS_ATTENTION),
        )
        for option, value in vars(own).items()
        if option not in OF_TRAINING and value != getattr(theirs, option)
    ]
    resampler = model.resampler
    if isinstance(resampler, PerceiverResampler) and bool(resampler.frame_embeddings.any()):
        unlike.append("resampler.frame_embeddings are not zero (there are none)")
    mean, std = resampler.feature_mean, resampler.feature_std
    if bool(mean.any()) or bool((std != 1).any()):
        unlike.append("resampler: features are standardised (there as they come)")
    if adapters.description(model.language_model) is not None:
        unlike.append("an adapter in the language model (there it is frozen)")
    if model.config.trains_language_model:
        unlike.append("a language model that was trained (there it is frozen)")
    layers = sorted(int(index) for index in model.cross_attention)
    depth = len(lm.decoder_layers(model.language_model))
    regular = [
        every
        for every in range(1, depth + 1)
        if list(conditioned_layers(CrossAttentionConfig(every=every), depth)) == layers
    ]
    if not regular:
        unlike.append(f"blocks before layers {layers} of {depth} (there before every n-th)")
    if unlike:
        raise ValueError(f"OpenFlamingo cannot express this model: {'; '.join(unlike)}")
    return regular[0]


def _word(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


@torch.no_grad()
def open_flamingo_state(model: FlamingoForConditionalGeneration) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint by OpenFlamingo's names, one after the other.

    What trains, the language model's input embedding with the new tokens' rows in their places,
    and its head likewise if that is another matrix whose rows of new tokens are not its own.
    """
    names = LanguageModelNames.of(model.language_model)
    table = model.new_tokens
    for ours, parameter in model.trainable_parameters().items():
        theirs = from_ours(ours, names.layers)
        if theirs is not None and ours != "resampler.frame_embeddings":
            yield theirs, parameter.detach().cpu().contiguous()
    ids = table.token_ids.cpu()
    rows = _vocabulary(model)
    embedding = lm.input_matrix(model.language_model)[:rows]
    yield f"lang_encoder.{names.embedding}", _with_rows(embedding, ids, table.input)
    if table.output is not None:
        head = lm.output_head(model.language_model).weight[:rows]
        whole = _with_rows(head, ids, table.output)
        if not torch.equal(whole, head.cpu()):
            yield f"lang_encoder.{names.released_head}", whole


def _vocabulary(model: FlamingoForConditionalGeneration) -> int:
    """Rows of the language model's matrix but for those at its end that are never generated.

    OpenFlamingo cuts a padded matrix to its tokenizer's length, and refuses a file of more rows.
    """
    rows, never = lm.vocabulary_size(model.language_model), set(model.never_generated)
    never -= set(model.config.new_token_ids or ())
    while rows - 1 in never:
        rows -= 1
    return rows


def _with_rows(matrix: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """A copy of ``matrix`` with ``rows`` at ``ids``, grown where ids lie behind it."""
    whole = matrix.new_zeros(max(len(matrix), int(ids.max()) + 1), matrix.shape[1], device="cpu")
    whole[: len(matrix)] = matrix
    whole[ids] = rows.to(whole)
    return whole


def save_open_flamingo(model: FlamingoForConditionalGeneration, path: Path) -> int:
    """Write a checkpoint, as safetensors or for ``torch.load`` by ``path``'s ending.

    Returns the ``cross_attn_every_n_layers`` to read it with. Raises ``ValueError`` for a model
    that OpenFlamingo cannot express, and for a file that is there already; ``OSError``, whatever
    the reason, if it cannot be written.
    """
    every = open_flamingo_interval(model)
    if path.exists():
        raise ValueError(f"{path}: expected no such file yet, found one; it is left as it is")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = dict(open_flamingo_state(model))
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        if path.suffix == ".safetensors":
            save_file(state, unfinished)
        else:  # through a Python file: torch's own writer hides the reason when the disk is full
            with unfinished.open("wb") as file:
                torch.save(state, file)
        os.replace(unfinished, path)
    except Exception as error:  # safetensors has one of its own
        unfinished.unlink(missing_ok=True)
        raise OSError(f"could not save {path}: {error}") from error
    return every
