"""OpenFlamingo's checkpoints as our model, to the logit, and back.

A released file holds what trains: the perceiver resampler, the gated cross-attention blocks and
the language model's input embedding, of which only the rows of new tokens differ from the language
model's own. (OpenFlamingo 2.0.1, ``train_utils.filter_state_dict_to_trainable``.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flamingo.backbones import language as lm
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.choices import Activation
from flamingo.config import CrossAttentionConfig, LanguageConfig, ResamplerConfig, VisionConfig
from flamingo.interop.open_flamingo_names import (
    LanguageModelNames,
    canonical,
    from_ours,
    to_ours,
)
from flamingo.interop.weights import Weights, open_weights
from flamingo.model.conditioning import conditioned_layers
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.resampler import PerceiverResampler

logger = logging.getLogger(__name__)

DIM_HEAD = 64
"""Width of every head of OpenFlamingo's own attentions; shapes alone do not tell it."""
ROWS_AT_ONCE = 4096
MASK_BUFFERS = re.compile(r".*\.(attention\.bias|attn\.bias|masked_bias|rotary_emb\.inv_freq)")
"""What language models of older versions of transformers stored beside their parameters."""


@dataclass(frozen=True)
class Conversion:
    """What went where."""

    moves: Mapping[str, str]
    """Names of trained tensors: in the source and here."""
    new_rows: tuple[int, ...]
    """Token ids whose embedding rows are from the source."""
    frozen: tuple[str, ...]
    """Tensors of the frozen language model that the source holds too."""
    ignored: tuple[str, ...]
    """Tensors that are the vision encoder's, buffers, or second names of others."""
    notes: tuple[str, ...]
    """What the user should know."""


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
        checkpoint: a released ``.pt`` file, or a safetensors file with the same names.
        language_model: the one it was trained with: a local folder, hub name, or a loaded model.
        vision_encoder: CLIP ViT-L/14 for the released models (its patch tokens, not normed, as
            ``VisionConfig``'s defaults have them). ``None``: the model reads ``vision_features``.
        cross_attn_every_n_layers: 1 for the released 3B, 2 for the 4B, 4 for the 9B model.
        image_token_id, end_of_chunk_token_id: of the tokenizer that it was trained with.
        vision_dim: width of the vision features; default: the encoder's, or the checkpoint's.
        dtype: of the language model when it is loaded here; default float32.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, with their names; a
            pickle that would run code; token ids that the checkpoint has no row for; a frozen
            language model in the file that is not the one given.
    """
    model, conversion = convert_open_flamingo(
        checkpoint,
        language_model=language_model,
        vision_encoder=vision_encoder,
        cross_attn_every_n_layers=cross_attn_every_n_layers,
        image_token_id=image_token_id,
        end_of_chunk_token_id=end_of_chunk_token_id,
        vision_dim=vision_dim,
        dtype=dtype,
    )
    for note in conversion.notes:
        logger.warning("%s: %s", checkpoint, note)
    return model


def convert_open_flamingo(
    checkpoint: str | Path,
    *,
    language_model: PreTrainedModel | LanguageConfig | str | Path,
    vision_encoder: VisionEncoder | VisionConfig | str | Path | None = None,
    cross_attn_every_n_layers: int,
    image_token_id: int,
    end_of_chunk_token_id: int,
    vision_dim: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[FlamingoForConditionalGeneration, Conversion]:
    """As :func:`load_open_flamingo`, and what went where."""
    weights = open_weights(Path(checkpoint))
    language = _language_model(language_model, dtype)
    encoder = _vision_encoder(vision_encoder)
    names = LanguageModelNames.of(language)
    contents = _sort(weights, names, str(checkpoint))
    options = CrossAttentionConfig(
        every=cross_attn_every_n_layers,
        heads=_heads(contents.shape("cross_attention.", "attention.to_q.weight"), 0),
        dim_head=DIM_HEAD,
        ff_mult=_ff_mult(contents.shape("cross_attention.", "feed_forward.1.weight")),
        activation=Activation.gelu,
    )
    resampler = _resampler_options(contents)
    width = contents.shape("resampler.latents", "")[1]
    for name, given in (("vision_dim", vision_dim), ("vision_encoder", encoder and encoder.dim)):
        if given not in (None, width):
            raise ValueError(f"{name}: expected the checkpoint's width {width}, got {given}")
    _check(contents, language, options, resampler, width)

    embedding = f"lang_encoder.{names.embedding}"
    rows = contents.others_shapes[embedding][0]
    own = lm.vocabulary_size(language)
    new = sorted({image_token_id, end_of_chunk_token_id} | set(range(own, rows)))
    for name, token in (
        ("image_token_id", image_token_id),
        ("end_of_chunk_token_id", end_of_chunk_token_id),
    ):
        if not 0 <= token < rows:
            raise ValueError(
                f"{name}: expected an id below the checkpoint's {rows} rows, got {token}"
            )
    model = FlamingoForConditionalGeneration.from_backbones(
        vision=encoder,
        language=language,
        resampler=resampler,
        cross_attention=options,
        vision_dim=width,
        image_token_id=image_token_id,
        end_of_chunk_token_id=end_of_chunk_token_id,
        new_token_ids=new,
    ).eval()
    if rows < own:  # OpenFlamingo cut the padding of the matrix off: these were no tokens there
        model.generation_config.suppress_tokens = list(range(rows, own))
    parameters = model.trainable_parameters()
    with torch.no_grad():
        for target, source in contents.ours.items():
            parameters[target].copy_(weights[source])
    notes = [
        *_set_rows(model, weights, contents, names, new),
        *_compare_rows(model, weights[contents.others[embedding]], new),
        *_compare_frozen(language, weights, contents, names),
    ]
    return model, Conversion(
        moves={source: target for target, source in contents.ours.items()},
        new_rows=tuple(new),
        frozen=tuple(contents.frozen),
        ignored=tuple(contents.ignored),
        notes=tuple(notes),
    )


# ---------------------------------------------------------------------------- the file's contents


@dataclass(frozen=True)
class _Contents:
    """A checkpoint's tensors by what they are; values are names in the file."""

    path: str
    ours: Mapping[str, str]
    others: Mapping[str, str]
    """By OpenFlamingo 2's names: embedding, head, frozen weights, and what is unknown."""
    ignored: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def shape(self, prefix: str, suffix: str) -> tuple[int, ...]:
        """Of the first of our tensors of that kind. Raises ``ValueError`` if there is none."""
        for target, source in self.ours.items():
            if target.startswith(prefix) and target.endswith(suffix):
                return self.shapes[source]
        kind = "perceiver" if prefix.startswith("resampler") else "gated_cross_attn_layer"
        raise ValueError(
            f"{self.path}: expected OpenFlamingo's {kind} for this language model, got tensors "
            f"such as {sorted(self.shapes)[:3]}"
        )

    @property
    def others_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.shapes[source] for name, source in self.others.items()}

    @property
    def frozen(self) -> list[str]:
        return list(self.others.values())


def _sort(weights: Weights, names: LanguageModelNames, path: str) -> _Contents:
    sources: dict[str, str] = {}
    ignored = []
    for source in weights:
        name = canonical(source, names.layers)
        if names.tied and name == f"lang_encoder.{names.head}":
            name = f"lang_encoder.{names.embedding}"
        if name.startswith("vision_encoder.") or MASK_BUFFERS.fullmatch(name):
            ignored.append(source)
        elif name not in sources:
            sources[name] = source
        elif torch.equal(weights[source], weights[sources[name]]):
            ignored.append(source)
        else:
            raise ValueError(
                f"{path}: expected {source} and {sources[name]}, two names of one tensor, to be "
                "equal, got different values"
            )
    ours = {to_ours(name, names.layers): source for name, source in sources.items()}
    return _Contents(
        path,
        {target: source for target, source in ours.items() if target is not None},
        {name: s for name, s in sources.items() if to_ours(name, names.layers) is None},
        tuple(ignored),
        weights.shapes,
    )


def _resampler_options(contents: _Contents) -> ResamplerConfig:
    latents = contents.shape("resampler.latents", "")[0]
    depth = len([name for name in contents.ours if name.endswith("attention.norm_latents.weight")])
    frames = contents.ours.get("resampler.frame_embeddings")
    return ResamplerConfig(
        depth=depth,
        num_latents=latents,
        heads=_heads(contents.shape("resampler.layers.", "attention.to_q.weight"), 0),
        dim_head=DIM_HEAD,
        ff_mult=_ff_mult(contents.shape("resampler.layers.", "feed_forward.1.weight")),
        activation=Activation.gelu,
        max_frames=contents.shapes[frames][0] if frames else ResamplerConfig().max_frames,
    )


def _heads(shape: tuple[int, ...], axis: int) -> int:
    if shape[axis] % DIM_HEAD:
        raise ValueError(
            f"to_q.weight: expected a multiple of OpenFlamingo's {DIM_HEAD} a head, got {shape}"
        )
    return shape[axis] // DIM_HEAD


def _ff_mult(shape: tuple[int, ...]) -> int:
    if shape[0] % shape[1]:
        raise ValueError(f"ff.1.weight: expected a multiple of its width, got {shape}")
    return shape[0] // shape[1]


def _check(
    contents: _Contents,
    language: PreTrainedModel,
    options: CrossAttentionConfig,
    resampler: ResamplerConfig,
    vision_dim: int,
) -> None:
    """Raise ``ValueError`` with all tensors that are missing, left over or of another shape."""
    names = LanguageModelNames.of(language)
    layers = conditioned_layers(options, len(lm.decoder_layers(language)))
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"resampler": PerceiverResampler(vision_dim, resampler)}
        block = GatedCrossAttentionBlock(lm.hidden_size(language), vision_dim, options)
    modules |= {f"cross_attention.{index}": block for index in layers}
    expected = {
        f"{prefix}.{name}": tuple(parameter.shape)
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    if "resampler.frame_embeddings" not in contents.ours:
        del expected["resampler.frame_embeddings"]
    embedding = f"lang_encoder.{names.embedding}"
    missing = [from_ours(n, names.layers) or n for n in expected if n not in contents.ours]
    missing += [embedding] if embedding not in contents.others else []
    known = {f"lang_encoder.{name}" for name in language.state_dict()}
    left_over = [source for name, source in contents.ours.items() if name not in expected]
    left_over += [source for name, source in contents.others.items() if name not in known]
    found = {name: contents.shapes[source] for name, source in contents.ours.items()}
    reshaped = [
        f"{contents.ours[name]}: expected {shape}, got {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    width = lm.hidden_size(language)
    for name in (embedding, f"lang_encoder.{names.head}"):
        shape = contents.others_shapes.get(name, (0, width))
        if shape[1:] != (width,):
            reshaped.append(f"{contents.others[name]}: expected (rows, {width}), got {shape}")
    if missing or left_over or reshaped:
        raise ValueError(
            f"{contents.path}: expected OpenFlamingo's checkpoint for this language model with "
            f"blocks before layers {list(layers)}: missing {missing}, left over {left_over}, of "
            f"another shape {reshaped}"
        )


# ---------------------------------------------------------------------------- rows and frozen parts


@torch.no_grad()
def _set_rows(
    model: FlamingoForConditionalGeneration,
    weights: Weights,
    contents: _Contents,
    names: LanguageModelNames,
    tokens: list[int],
) -> list[str]:
    """Give the new tokens the checkpoint's rows; returns what is to be said of them."""
    table = model.new_tokens
    table.input.copy_(weights[contents.others[f"lang_encoder.{names.embedding}"]][tokens])
    if table.output is None:
        return []
    head = lm.output_head(model.language_model).weight
    if (source := contents.others.get(f"lang_encoder.{names.head}")) is not None:
        head = weights[source]
    inside = [token < len(head) for token in tokens]
    for row, token, known in zip(table.output, tokens, inside, strict=True):
        row.copy_(head[token] if known else head.float().mean(dim=0))
    lacking = [token for token, known in zip(tokens, inside, strict=True) if not known]
    if not lacking:
        return []
    return [
        f"no output rows for the new tokens {lacking}, neither in the checkpoint nor in the "
        "language model: they get the mean of all others"
    ]


def _compare_rows(
    model: FlamingoForConditionalGeneration, embedding: Tensor, new: list[int]
) -> list[str]:
    frozen = lm.input_matrix(model.language_model).detach()
    common = min(len(frozen), len(embedding))
    differ: list[int] = []
    largest = 0.0
    for start in range(0, common, ROWS_AT_ONCE):
        theirs = embedding[start : min(start + ROWS_AT_ONCE, common)].to(frozen.dtype)
        distance = (theirs - frozen[start : start + len(theirs)].cpu()).abs().amax(dim=1)
        rows = [start + int(i) for i in distance.nonzero()]
        differ += [row for row in rows if row not in new]
        largest = max([largest, *(float(distance[r - start]) for r in rows if r not in new)])
    if not differ:
        return []
    return [
        f"{len(differ)} rows of the frozen vocabulary differ from the language model's, by up to "
        f"{largest:.2g}; the language model's are used. Tokens {differ[:10]}"
        + (" ..." if len(differ) > 10 else "")
    ]


@torch.no_grad()
def _compare_frozen(
    language: PreTrainedModel, weights: Weights, contents: _Contents, names: LanguageModelNames
) -> list[str]:
    """Raises ``ValueError`` for frozen weights in the file that are not this language model's."""
    own = language.state_dict()
    wrong, rounded = [], []
    for name, source in contents.others.items():
        name = name.removeprefix("lang_encoder.")
        if name in (names.embedding, names.head):
            continue
        mine, theirs = own[name].float().cpu(), weights[source].float()
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=0.02, atol=1e-4):
            wrong.append(source)
        elif not torch.equal(mine, theirs):
            rounded.append(source)
    if wrong:
        raise ValueError(
            f"{contents.path}: expected the frozen weights of the language model given, got others "
            f"in {len(wrong)} tensors, such as {wrong[:3]}: it was trained with another one"
        )
    if rounded:
        return [
            f"{len(rounded)} frozen tensors differ by rounding from the language model's, which are "
            f"used; such as {rounded[:3]}"
        ]
    return []


# ---------------------------------------------------------------------------- backbones


def _language_model(
    given: PreTrainedModel | LanguageConfig | str | Path, dtype: torch.dtype | None
) -> PreTrainedModel:
    if isinstance(given, PreTrainedModel):
        return given
    config = given if isinstance(given, LanguageConfig) else LanguageConfig(name=str(given))
    return lm.load_language_model(config, dtype or torch.float32)


def _vision_encoder(
    given: VisionEncoder | VisionConfig | str | Path | None,
) -> VisionEncoder | None:
    if given is None or isinstance(given, VisionEncoder):
        return given
    config = given if isinstance(given, VisionConfig) else VisionConfig(name=str(given))
    return load_vision_encoder(config)
