"""What is in a checkpoint of OpenFlamingo, and whether it is all that a model needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from flamingo.backbones import language as lm
from flamingo.backbones.weight_files import WeightFiles, open_weights, read_files
from flamingo.choices import Activation
from flamingo.config import CrossAttentionConfig, ResamplerConfig
from flamingo.interop.moves import How, Move, Part
from flamingo.interop.open_flamingo_names import (
    LanguageModelNames,
    canonical,
    from_ours,
    to_ours,
)
from flamingo.model.conditioning import conditioned_layers
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.resampler import PerceiverResampler

DIM_HEAD = 64
"""Width of every head of OpenFlamingo's own attentions; shapes alone do not tell it."""
MASK_BUFFERS = re.compile(r".*\.(attention\.bias|attn\.bias|masked_bias|rotary_emb\.inv_freq)")
"""What language models of older versions of transformers stored beside their parameters."""


def read_checkpoint(path: Path) -> WeightFiles:
    """The tensors of a file, or of a folder as transformers writes it (Otter, in shards).

    Raises ``ValueError`` for one that is missing, broken, or a pickle that would run code.
    """
    return open_weights(str(path)) if path.is_dir() else read_files(str(path), [path])


@dataclass(frozen=True)
class CheckpointFile:
    """The tensors of a checkpoint by what they are. Values are names in the file."""

    weights: WeightFiles
    names: LanguageModelNames
    ours: Mapping[str, str]
    """By our names: what trains, but for the embedding."""
    language_model: Mapping[str, str]
    """By the language model's names: its embedding, and whatever else there is."""
    ignored: Mapping[str, Part]
    """The vision encoder's tensors, buffers, and second names of others, and which it is."""

    @classmethod
    def of(cls, weights: WeightFiles, names: LanguageModelNames) -> CheckpointFile:
        """Raises ``ValueError`` if two names of one tensor disagree."""
        sources: dict[str, str] = {}
        ignored: dict[str, Part] = {}
        spelled = {source: canonical(source, names) for source in weights.shapes}
        for source in sorted(spelled, key=lambda s: spelled[s] != s):  # OpenFlamingo 2's own first
            name = spelled[source]
            if name.startswith("vision_encoder."):
                ignored[source] = Part.unused
            elif MASK_BUFFERS.fullmatch(name):
                ignored[source] = Part.derived
            elif name not in sources:
                sources[name] = source
            elif torch.equal(weights[source], weights[sources[name]]):
                ignored[source] = Part.copy
            else:
                raise ValueError(
                    f"{weights.source}: expected {source} and {sources[name]}, two names of "
                    "one tensor, to be equal, got different values"
                )
        ours = {to_ours(name, names.layers): source for name, source in sources.items()}
        trained = {target: source for target, source in ours.items() if target is not None}
        rest = {n: s for n, s in sources.items() if s not in trained.values()}
        return cls(
            weights,
            names,
            trained,
            {name.removeprefix("lang_encoder."): source for name, source in rest.items()},
            ignored,
        )

    @property
    def path(self) -> str:
        """Where it is, for errors."""
        return self.weights.source

    def shape(self, prefix: str, suffix: str = "") -> tuple[int, ...]:
        """Of the first of our tensors of that kind. Raises ``ValueError`` if there is none."""
        for target, source in self.ours.items():
            if target.startswith(prefix) and target.endswith(suffix):
                return self.weights.shapes[source]
        kind = "perceiver" if prefix.startswith("resampler") else "gated_cross_attn_layer"
        raise ValueError(
            f"{self.path}: expected OpenFlamingo's {kind} for a language model with layers in "
            f"{self.names.layers}, got tensors such as {sorted(self.weights.shapes)[:3]}"
        )

    @property
    def vision_dim(self) -> int:
        return self.shape("resampler.latents")[1]

    @property
    def rows(self) -> int:
        """Of the embedding: OpenFlamingo's vocabulary."""
        return self.weights.shapes[self.language_model[self.names.embedding]][0]

    @property
    def resampler(self) -> ResamplerConfig:
        frames = self.ours.get("resampler.frame_embeddings")
        return ResamplerConfig(
            depth=len([name for name in self.ours if name.endswith("norm_latents.weight")]),
            num_latents=self.shape("resampler.latents")[0],
            heads=self._heads("resampler.layers."),
            dim_head=DIM_HEAD,
            ff_mult=self._ff_mult("resampler.layers."),
            activation=Activation.gelu,
            max_frames=self.weights.shapes[frames][0] if frames else ResamplerConfig().max_frames,
        )

    def cross_attention(self, every: int) -> CrossAttentionConfig:
        return CrossAttentionConfig(
            every=every,
            heads=self._heads("cross_attention."),
            dim_head=DIM_HEAD,
            ff_mult=self._ff_mult("cross_attention."),
            activation=Activation.gelu,
        )

    def _heads(self, part: str) -> int:
        inner = self.shape(part, "attention.to_q.weight")[0]
        if inner % DIM_HEAD:
            raise ValueError(
                f"{self.path}: to_q.weight: expected a multiple of {DIM_HEAD} a head, got {inner}"
            )
        return inner // DIM_HEAD

    def _ff_mult(self, part: str) -> int:
        inner, width = self.shape(part, "feed_forward.1.weight")
        return max(inner // width, 1)

    def moves(self, new_tokens: int) -> list[Move]:
        """What becomes of every tensor, when so many tokens get rows of their own."""
        shapes = self.weights.shapes
        moves = [
            Move((source,), target, Part.trained, How.unchanged, shapes[source])
            for target, source in self.ours.items()
        ]
        rows = {self.names.embedding: "new_tokens.input", self.names.head: "new_tokens.output"}
        for name, source in self.language_model.items():
            if name in rows:
                shape = (new_tokens, *shapes[source][1:])
                moves.append(Move((source,), rows[name], Part.trained, How.rows, shape))
            else:
                moves.append(Move((source,), name, Part.unused, How.unchanged, shapes[source]))
        return moves + [
            Move((source,), "", part, How.unchanged, shapes[source])
            for source, part in self.ignored.items()
        ]

    def check(self, language_model: PreTrainedModel, every: int) -> None:
        """Raise ``ValueError`` with all tensors that are missing, left over or misshapen."""
        embedding, width = self.names.embedding, lm.hidden_size(language_model)
        expected = self._expected(language_model, every)
        missing = [
            from_ours(name, self.names.layers) or name
            for name in expected
            if name not in self.ours and name != "resampler.frame_embeddings"
        ]
        missing += [f"lang_encoder.{embedding}"] if embedding not in self.language_model else []
        left_over = [source for name, source in self.ours.items() if name not in expected]
        known = language_model.state_dict().keys()
        left_over += [source for name, source in self.language_model.items() if name not in known]
        misshapen = []
        for name, source in self.ours.items():
            got = self.weights.shapes[source]
            if name in expected and got != expected[name]:
                misshapen.append(f"{source}: expected {expected[name]}, got {got}")
        for name in (embedding, self.names.head):
            if (source := self.language_model.get(name)) is not None:
                got = self.weights.shapes[source]
                if got[1:] != (width,):
                    misshapen.append(f"{source}: expected (rows, {width}), got {got}")
        if missing or left_over or misshapen:
            raise ValueError(
                f"{self.path}: expected a checkpoint for this language model{self._interval(every)}"
                f": missing {missing}, left over {left_over}, of another shape {misshapen}"
            )

    def _interval(self, every: int) -> str:
        """Of blocks, if it is not ``every`` layers."""
        places = {name.split(".")[1] for name in self.ours if name.startswith("cross_attention.")}
        layers = sorted(map(int, places))
        if all((layer + 1) % every == 0 for layer in layers) and layers[0] + 1 == every:
            return ""
        return (
            f" with every={every} (model.cross_attention.every, cross_attn_every_n_layers), got "
            f"one with blocks before layers {layers}, counted from 0"
        )

    def _expected(self, language_model: PreTrainedModel, every: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all that trains but the embedding."""
        options = self.cross_attention(every)
        with torch.device("meta"):
            modules: dict[str, nn.Module] = {
                "resampler": PerceiverResampler(self.vision_dim, self.resampler)
            }
            block = GatedCrossAttentionBlock(
                lm.hidden_size(language_model), self.vision_dim, options
            )
        for index in conditioned_layers(options, len(lm.decoder_layers(language_model))):
            modules[f"cross_attention.{index}"] = block
        return {
            f"{prefix}.{name}": tuple(parameter.shape)
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
        }
