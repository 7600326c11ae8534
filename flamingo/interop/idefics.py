"""IDEFICS checkpoints (transformers' Idefics, version 1) as our model.

IDEFICS (Laurençon et al. 2023, arXiv:2306.16527) is a Flamingo: LLaMA with gated cross-attention
before every ``cross_layer_interval``-th layer, a CLIP tower whose tokens (the CLS token among them,
without the last norm) are attended to directly or through a perceiver resampler, and the rows of
the additional tokens in tables of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor
from transformers import AutoTokenizer, IdeficsConfig, IdeficsForVisionText2Text
from transformers.initialization import no_init_weights

from flamingo.backbones import idefics, language
from flamingo.backbones.precision import loading_dtype
from flamingo.backbones.vision import load_vision_encoder
from flamingo.backbones.weight_files import (
    Shape,
    WeightFiles,
    check_shapes,
    find_file,
    open_weights,
)
from flamingo.choices import Activation, Gate, Norm, ResamplerKind
from flamingo.config import CrossAttentionConfig, LanguageConfig, ResamplerConfig, VisionConfig
from flamingo.interop.moves import How, Move, Part
from flamingo.model.auto import FlamingoConfig, FlamingoForConditionalGeneration
from flamingo.model.persistence import cast
from flamingo.structured import plain
from flamingo.types import IMAGE_TOKEN

END_OF_UTTERANCE = "<end_of_utterance>"
"""Ends a turn of the instruction-tuned models; the others do not have it."""

_BLOCK = {
    "cross_attn.q_proj.weight": "attention.to_q.weight",
    "cross_attn.k_proj.weight": "attention.to_kv.weight",
    "cross_attn.v_proj.weight": "attention.to_kv.weight",
    "cross_attn.o_proj.weight": "attention.to_out.weight",
    "cross_attn.q_layer_norm.weight": "attention.q_norm.weight",
    "cross_attn.k_layer_norm.weight": "attention.k_norm.weight",
    "input_layernorm.weight": "attention.norm.weight",
    "post_attention_layernorm.weight": "feed_forward.norm.weight",
    "mlp.gate_proj.weight": "feed_forward.gate.weight",
    "mlp.up_proj.weight": "feed_forward.up.weight",
    "mlp.down_proj.weight": "feed_forward.down.weight",
    "alpha_cross_attn": "attention_gate",
    "alpha_dense": "feed_forward_gate",
}
_RESAMPLER_LAYER = {
    "0.context_layer_norm": "attention.norm_media",
    "0.latents_layer_norm": "attention.norm_latents",
    "0.q_proj": "attention.to_q",
    "0.k_proj": "attention.to_kv",
    "0.v_proj": "attention.to_kv",
    "0.output_proj": "attention.to_out",
    "0.q_layer_norm": "attention.q_norm",
    "0.k_layer_norm": "attention.k_norm",
    "1.ln": "feed_forward.0",
    "1.fc": "feed_forward.1",
    "1.c_proj": "feed_forward.3",
}
_WHOLE = {
    "model.embed_tokens.additional_embedding.weight": "new_tokens.input",
    "lm_head.additional_fc.weight": "new_tokens.output",
    "model.perceiver_resampler.latents": "resampler.latents",
    "model.perceiver_resampler.layer_norm.weight": "resampler.norm.weight",
    "model.perceiver_resampler.layer_norm.bias": "resampler.norm.bias",
}
_TIED = {
    "lm_head.weight": "model.embed_tokens.weight",
    "lm_head.additional_fc.weight": "model.embed_tokens.additional_embedding.weight",
}


def load_idefics(
    name_or_folder: str,
    *,
    dtype: torch.dtype | None = None,
    trained_dtype: torch.dtype | None = None,
    revision: str | None = None,
    image_token_id: int | None = None,
    end_of_chunk_token_id: int | None = None,
) -> FlamingoForConditionalGeneration:
    """An IDEFICS checkpoint as our model: the same logits, whatever its options.

    The decoder becomes the frozen language model (a transformers Llama), the tower the frozen
    vision encoder, the rest what trains. The backbones keep the checkpoint's name:
    ``save_pretrained`` then needs it again when loading, with ``include_backbones=True`` it does
    not.

    Which image a token sees, we read from the ``<image>`` tokens: the last one before it. That is
    what transformers' ``IdeficsProcessor`` puts into its ``image_attention_mask`` for a prompt of
    one document. In rows with several, it lets what follows an end-of-sequence token see no image
    until the next ``<image>``; here such a token still sees the last one.

    Args:
        name_or_folder: hub name or local folder in transformers' format (``config.json`` and
            weights as safetensors or ``.bin``, in shards or not).
        dtype: of all parameters (default float32, as ``from_pretrained``).
        trained_dtype: of what trains, if it is to be another one.
        revision: of the hub repository.
        image_token_id: of ``<image>``. Default: as the checkpoint's tokenizer says; without one,
            the second additional token, as in the released models.
        end_of_chunk_token_id: what ends an answer besides the end of the sequence. Default: the
            tokenizer's ``<end_of_utterance>`` if it has one (instruction-tuned models), else none.

    Raises:
        ValueError: for weights that are missing, left over or of another shape (all are listed),
            for a checkpoint of another model, a ``.bin`` with more than tensors, and without
            ``image_token_id`` where it cannot be known.
    """
    config = idefics.read_config(name_or_folder, revision)
    weights = open_weights(name_or_folder, revision)
    moves = plan(weights.shapes, config, name_or_folder)
    _check_copies(moves, weights)
    tokens = _special_tokens(name_or_folder, revision)
    image = _image_token_id(image_token_id, tokens, config, name_or_folder)
    dtype = dtype or torch.float32
    names = LanguageConfig(name=name_or_folder, revision=revision)
    language_model = language.load_language_model(names, loading_dtype(dtype))
    encoder = load_vision_encoder(
        VisionConfig(name=name_or_folder, revision=revision, keep_cls=True), dtype=dtype
    )
    first = config.vocab_size
    ours = FlamingoConfig(
        text_config=deepcopy(language_model.config),
        vision=plain(encoder.config),
        language=plain(names),
        resampler=plain(resampler_config(config)),
        cross_attention=plain(cross_attention_config(config)),
        vision_dim=encoder.dim,
        new_token_ids=list(range(first, first + config.additional_vocab_size)),
        image_token_id=image,
        end_of_chunk_token_id=(
            tokens.get(END_OF_UTTERANCE) if end_of_chunk_token_id is None else end_of_chunk_token_id
        ),
        vision_fingerprint=encoder.fingerprint,
        language_fingerprint=language.fingerprint(language_model),
    )
    model = FlamingoForConditionalGeneration(
        ours, language_model=language_model, vision_encoder=encoder
    )
    cast(model, dtype)
    for part in (model.resampler, model.cross_attention, model.new_tokens):
        part.to(trained_dtype or dtype)
    _fill(model, moves, weights)
    return model.eval()


def plan(
    shapes: Mapping[str, Shape], config: IdeficsConfig, source: str = "checkpoint"
) -> list[Move]:
    """What becomes of every tensor of a checkpoint, from names and shapes alone.

    Raises ``ValueError``, with ``source`` in front, unless ``shapes`` are those of transformers'
    own model under ``config`` (tied heads may be left out; tables of positions do not count).
    """
    expected = _expected_shapes(config)
    tied = _TIED if config.tie_word_embeddings else {}
    derived = [key for key in shapes if idefics.is_derived(key)]
    given = {key: shape for key, shape in shapes.items() if key not in derived}
    check_shapes(source, expected, given, optional=tied)
    moves = [Move((key,), "", Part.derived, How.unchanged, shapes[key]) for key in derived]
    trained: dict[str, list[str]] = {}
    for key in (key for key in expected if key in given):
        if key in tied:
            moves.append(Move((key,), tied[key], Part.copy, How.unchanged, expected[key]))
        elif idefics.is_language_key(key):
            moves.append(Move((key,), key, Part.language_model, How.unchanged, expected[key]))
        elif key.startswith(idefics.VISION_PREFIX):
            target = key.removeprefix(idefics.VISION_PREFIX)
            moves.append(Move((key,), target, Part.vision_encoder, How.unchanged, expected[key]))
        else:
            trained.setdefault(_trained_target(key, config.cross_layer_interval), []).append(key)
    return moves + [_trained_move(t, keys, expected) for t, keys in trained.items()]


def resampler_config(config: IdeficsConfig) -> ResamplerConfig:
    """The resampler's options, or those of having none."""
    if not config.use_resampler:
        return ResamplerConfig(kind=ResamplerKind.identity)
    perceiver = config.perceiver_config
    assert perceiver is not None and not isinstance(perceiver, dict)
    return ResamplerConfig(
        depth=perceiver.resampler_depth,
        num_latents=perceiver.resampler_n_latents,
        heads=perceiver.resampler_n_heads,
        dim_head=perceiver.resampler_head_dim,
        ff_mult=4,
        activation=Activation.relu,
        qk_norm=perceiver.qk_layer_norms_perceiver,
        max_frames=1,
    )


def cross_attention_config(config: IdeficsConfig) -> CrossAttentionConfig:
    """The gated blocks' options. Raises ``ValueError`` for what no model of transformers can run:
    layers that the interval does not divide, unknown gates; and for an activation of ours."""
    interval, layers = config.cross_layer_interval, config.num_hidden_layers
    if interval < 1 or layers % interval:
        raise ValueError(
            f"cross_layer_interval: expected a divisor of the {layers} layers, got {interval}"
        )
    activations = {"silu": Activation.silu, "gelu": Activation.gelu, "relu": Activation.relu}
    gates = {"float": Gate.scalar, "vector": Gate.channel}
    for field, known in (("hidden_act", activations), ("alpha_type", gates)):
        if getattr(config, field) not in known:
            raise ValueError(
                f"{field}: expected one of {sorted(known)}, got {getattr(config, field)!r}"
            )
    return CrossAttentionConfig(
        every=None,
        layers=list(range(0, layers, interval)),
        heads=config.num_attention_heads,
        dim_head=config.hidden_size // config.num_attention_heads,
        ff_width=config.intermediate_size,
        ff_gated=True,
        activation=activations[config.hidden_act],
        norm=Norm.rms,
        norm_eps=config.rms_norm_eps,
        qk_norm=config.qk_layer_norms,
        gate=gates[config.alpha_type],
    )


# ---------------------------------------------------------------------------- keys


def _expected_shapes(config: IdeficsConfig) -> dict[str, Shape]:
    """Names and shapes of transformers' own model, built without memory."""
    # How gates start is no matter here, and transformers cannot build "normal" scalar ones.
    config = IdeficsConfig(**{**config.to_dict(), "alpha_initializer": "zeros"})
    with torch.device("meta"), no_init_weights():
        model = IdeficsForVisionText2Text(config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _trained_target(key: str, interval: int) -> str:
    if key in _WHOLE:
        return _WHOLE[key]
    if found := re.fullmatch(r"model\.gated_cross_attn_layers\.(\d+)\.(.+)", key):
        return f"cross_attention.{int(found[1]) * interval}.{_BLOCK[found[2]]}"
    found = re.fullmatch(r"model\.perceiver_resampler\.blocks\.(\d+)\.(.+)\.(weight|bias)", key)
    assert found is not None, key
    return f"resampler.layers.{found[1]}.{_RESAMPLER_LAYER[found[2]]}.{found[3]}"


def _trained_move(target: str, keys: list[str], shapes: Mapping[str, Shape]) -> Move:
    if target.endswith("to_kv.weight"):
        keys = sorted(keys)  # k_proj, then v_proj
        rows = sum(shapes[key][0] for key in keys)
        return Move(tuple(keys), target, Part.trained, How.stacked, (rows, *shapes[keys[0]][1:]))
    (key,) = keys
    if target.endswith("_gate"):
        return Move((key,), target, Part.trained, How.flattened, shapes[key][-1:])
    return Move((key,), target, Part.trained, How.unchanged, shapes[key])


# ---------------------------------------------------------------------------- weights


def _check_copies(moves: list[Move], weights: WeightFiles) -> None:
    for move in moves:
        if move.part is Part.copy and not torch.equal(
            weights[move.source[0]], weights[move.target]
        ):
            raise ValueError(
                f"{weights.source}: expected {move.source[0]} equal to {move.target} "
                "(tie_word_embeddings), got other values"
            )


@torch.no_grad()
def _fill(model: FlamingoForConditionalGeneration, moves: list[Move], weights: WeightFiles) -> None:
    """Copy what trains into ``model``, one tensor at a time."""
    targets = model.trainable_parameters()
    for move in moves:
        if move.part is Part.trained:
            target = targets.pop(move.target)
            target.copy_(_tensor(move, weights))
    # IDEFICS knows no clips; ours of an image starts, and stays, at zero. Of no token: empty.
    left = {name for name, parameter in targets.items() if parameter.numel() > 0}
    assert left <= {"resampler.frame_embeddings"}, left


def _tensor(move: Move, weights: WeightFiles) -> Tensor:
    tensors = [weights[key] for key in move.source]
    match move.how:
        case How.stacked:
            return torch.cat(tensors)
        case How.flattened:
            return tensors[0].flatten()
        case How.unchanged | How.rows:
            return tensors[0]


# ---------------------------------------------------------------------------- tokens


def _special_tokens(name: str, revision: str | None) -> dict[str, int]:
    """The vocabulary of the checkpoint's tokenizer; empty if it has none."""
    files = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
    if all(find_file(name, file, revision) is None for file in files):
        return {}
    return AutoTokenizer.from_pretrained(name, revision=revision).get_vocab()


def _image_token_id(
    given: int | None, tokens: Mapping[str, int], config: IdeficsConfig, source: str
) -> int:
    if given is not None:
        return given
    if IMAGE_TOKEN in tokens:
        return tokens[IMAGE_TOKEN]
    if not tokens and config.additional_vocab_size >= 2:
        return config.vocab_size + 1  # behind <fake_token_around_image>
    raise ValueError(
        f"image_token_id: expected the id of {IMAGE_TOKEN}, got none: the tokenizer of {source} "
        f"{'lacks it' if tokens else 'is missing'}, and there are "
        f"{config.additional_vocab_size} additional tokens"
    )
