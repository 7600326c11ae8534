"""OpenFlamingo's checkpoints as our model, to the logit.

A released file holds what trains: the perceiver resampler, the gated cross-attention blocks and
the language model's input embedding, of which only the rows of new tokens differ from the language
model's own. (OpenFlamingo 2.0.1, ``train_utils.filter_state_dict_to_trainable``.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flamingo.backbones import language as lm
from flamingo.backbones.precision import cast_parameters, loading_dtype
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.config import LanguageConfig, VisionConfig
from flamingo.interop.open_flamingo_file import CheckpointFile, read_checkpoint
from flamingo.interop.open_flamingo_names import LanguageModelNames
from flamingo.model.flamingo import FlamingoForConditionalGeneration

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 4096
"""Of embedding matrices that are compared."""


def load_open_flamingo(
    checkpoint: str | Path,
    *,
    language_model: PreTrainedModel | LanguageConfig | str | Path,
    vision_encoder: VisionEncoder | VisionConfig | str | Path | None = None,
    cross_attn_every_n_layers: int,
    image_token_id: int,
    end_of_chunk_token_id: int,
    vision_dim: int | None = None,
    dtype: torch.dtype | None = None,
) -> FlamingoForConditionalGeneration:
    """OpenFlamingo's model, with its latents, logits and answers.

    Reads the files of versions 1 and 2 of OpenFlamingo and of Otter, bare or as a training run
    saved them. The rows of new tokens are the checkpoint's; the frozen vocabulary stays the
    language model's, and a warning names the rows that differ.

    Args:
        checkpoint: a released ``.pt`` file, or a safetensors file with the same names; or a folder
            with a whole model in transformers' format, as Otter is released.
        language_model: the one it was trained with: a local folder, hub name, or a loaded model.
        vision_encoder: CLIP ViT-L/14 for the released models (its patch tokens, not normed, as
            ``VisionConfig``'s defaults have them). ``None``: the model reads ``vision_features``.
        cross_attn_every_n_layers: 1 for the released 3B, 2 for the 4B, 4 for the 9B model.
        image_token_id, end_of_chunk_token_id: of the tokenizer that it was trained with.
        vision_dim: width of the vision features, if it is to be checked: the checkpoint has it.
        dtype: of the language model when it is loaded here; default float32. float16 is cast to at
            the end: the model is compared and fingerprinted in float32.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, with their names; a
            pickle that would run code; token ids that the checkpoint has no row for; frozen
            weights in the file that are not those of the language model given.
    """
    weights = read_checkpoint(Path(checkpoint))
    if isinstance(vision_encoder, str | Path):
        vision_encoder = VisionConfig(name=str(vision_encoder))
    if isinstance(vision_encoder, VisionConfig):
        vision_encoder = load_vision_encoder(vision_encoder)
    if isinstance(language_model, str | Path):
        language_model = LanguageConfig(name=str(language_model))
    if isinstance(language_model, LanguageConfig):
        held = dtype or torch.float32
        language_model = lm.load_language_model(language_model, loading_dtype(held))
    else:
        held = None
    file = CheckpointFile.of(weights, LanguageModelNames.of(language_model))
    if vision_dim not in (None, file.vision_dim):
        raise ValueError(
            f"vision_dim: expected the checkpoint's {file.vision_dim}, got {vision_dim}"
        )
    model, notes = convert(
        file,
        language_model,
        vision_encoder,
        every=cross_attn_every_n_layers,
        image_token_id=image_token_id,
        end_of_chunk_token_id=end_of_chunk_token_id,
    )
    if held is not None and held is not loading_dtype(held):
        cast_parameters(model.language_model, held)
    for note in notes:
        logger.warning("%s: %s", checkpoint, note)
    return model


@torch.no_grad()
def convert(
    file: CheckpointFile,
    language_model: PreTrainedModel,
    vision_encoder: VisionEncoder | None,
    *,
    every: int,
    image_token_id: int,
    end_of_chunk_token_id: int,
) -> tuple[FlamingoForConditionalGeneration, list[str]]:
    """The model of a checkpoint, and what is to be said of it; raises as
    :func:`load_open_flamingo`. Tensors are copied one by one from the file."""
    file.check(language_model, every)
    tokens = {"image_token_id": image_token_id, "end_of_chunk_token_id": end_of_chunk_token_id}
    for name, token in tokens.items():
        if not 0 <= token < file.rows:
            raise ValueError(
                f"{name}: expected an id below the checkpoint's {file.rows} rows, got {token}"
            )
    if vision_encoder is not None and vision_encoder.dim != file.vision_dim:
        raise ValueError(
            f"vision_encoder: expected features of the checkpoint's width {file.vision_dim}, got "
            f"{vision_encoder.dim}"
        )
    notes = list(_frozen_weights(file, language_model))
    own = lm.vocabulary_size(language_model)
    new = sorted({*tokens.values(), *range(own, file.rows)})
    model = FlamingoForConditionalGeneration.from_backbones(
        vision=vision_encoder,
        language=language_model,
        resampler=file.resampler,
        cross_attention=file.cross_attention(every),
        vision_dim=file.vision_dim,
        image_token_id=image_token_id,
        end_of_chunk_token_id=end_of_chunk_token_id,
        new_token_ids=new,
    ).eval()
    if file.rows < own:  # OpenFlamingo cut the matrix's padding off: these are no tokens there
        model.generation_config.suppress_tokens = list(range(file.rows, own))
    parameters = model.trainable_parameters()
    for target, source in file.ours.items():
        parameters[target].copy_(file.weights[source])
    embedding = file.weights[file.language_model[file.names.embedding]]
    model.new_tokens.input.copy_(embedding[new])
    notes += _set_output_rows(file, model, new)
    notes += _frozen_rows("", embedding, lm.input_matrix(language_model), new)
    if (head := file.language_model.get(file.names.head)) is not None:
        own_head = lm.output_head(language_model).weight
        notes += _frozen_rows("'s output matrix", file.weights[head], own_head, new)
    return model, notes


# ---------------------------------------------------------------------------- new tokens


def _set_output_rows(
    file: CheckpointFile, model: FlamingoForConditionalGeneration, tokens: list[int]
) -> Iterator[str]:
    """An untied head's rows are frozen in OpenFlamingo: the language model's, where it has them."""
    if model.new_tokens.output is None:
        return
    head = lm.output_head(model.language_model).weight
    if (source := file.language_model.get(file.names.head)) is not None:
        head = file.weights[source]
    lacking = [token for token in tokens if token >= len(head)]
    for row, token in zip(model.new_tokens.output, tokens, strict=True):
        if token not in lacking:
            row.copy_(head[token])
    if lacking:
        model.new_tokens.output[[token in lacking for token in tokens]] = head.mean(
            dim=0, dtype=torch.float32
        ).to(model.new_tokens.output)
        yield (
            f"no output rows for the new tokens {lacking}, neither in the checkpoint nor in the "
            "language model: they get the mean of all others"
        )


# ---------------------------------------------------------------------------- frozen weights


def _frozen_rows(where: str, theirs: Tensor, own: Tensor, new: list[int]) -> Iterator[str]:
    """Tells of rows of the frozen vocabulary that are not the language model's."""
    common = min(len(theirs), len(own))
    differ, beyond, largest = [], [], 0.0
    for start in range(0, common, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, common))
        a, b = theirs[rows].float(), own[rows].float().to(theirs.device)
        kept = torch.tensor([token not in new for token in range(rows.start, rows.stop)])
        other = (a != b).any(dim=1) & kept
        far = (a.bfloat16() != b.bfloat16()).any(dim=1) & other
        differ += [start + int(row) for row in other.nonzero()]
        beyond += [start + int(row) for row in far.nonzero()]
        largest = max(largest, float((a - b)[other].abs().max()) if bool(other.any()) else 0.0)
    if differ:
        listed = beyond or differ
        doubt = ""
        if 2 * len(beyond) > common:
            doubt = "this may be another language model than it was trained with: "
        yield (
            f"{doubt}{len(differ)} rows of the frozen vocabulary{where} differ from the language "
            f"model's, by up to {largest:.2g} ({len(beyond)} by more than bfloat16 rounds); the "
            f"language model's are used. Tokens {listed[:10]}{' ...' if len(listed) > 10 else ''}"
        )


def _frozen_weights(file: CheckpointFile, language_model: PreTrainedModel) -> Iterator[str]:
    """Compares what else the file holds of the frozen language model with the one given.

    Raises ``ValueError`` for weights further away than bfloat16 rounds; tells of rounded ones.
    """
    own = language_model.state_dict()
    wrong, rounded = [], []
    for name, source in file.language_model.items():
        if name in (file.names.embedding, file.names.head):
            continue
        mine, theirs = own[name].float().cpu(), file.weights[source].float()
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=0.01, atol=1e-5):
            wrong.append(source)
        elif not torch.equal(mine, theirs):
            rounded.append(source)
    if wrong:
        raise ValueError(
            f"{file.path}: expected the frozen weights of the language model given, got others in "
            f"{len(wrong)} tensors, such as {wrong[:3]}: it was trained with another one"
        )
    if rounded:
        yield (
            f"{len(rounded)} frozen tensors differ by rounding from the language model's, which "
            f"are used; such as {rounded[:3]}"
        )
