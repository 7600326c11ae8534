"""The model: frozen backbones, a resampler, gated cross-attention, and the rows of new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from flamingo.backbones import adapters
from flamingo.backbones import language as lm
from flamingo.backbones.precision import cast_parameters, loading_dtype
from flamingo.backbones.vision import VisionEncoder, load_vision_encoder
from flamingo.choices import LanguageTraining
from flamingo.config import CrossAttentionConfig, LanguageConfig, ResamplerConfig, VisionConfig
from flamingo.model.conditioning import ConditionedCall, Conditioning, conditioned_layers
from flamingo.model.configuration import FlamingoConfig
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.embedding import NewTokenEmbedding, check_new_token_ids
from flamingo.model.generation import FlamingoGeneration, default_generation_config
from flamingo.model.loss import next_token_loss, weighted_loss
from flamingo.model.masking import document_positions, media_before, text_time
from flamingo.model.media import (
    FlamingoCache,
    MediaState,
    ProjectedMedia,
    check_media_counts,
    checked_cache,
)
from flamingo.model.reading import Reading
from flamingo.model.resampler import build_resampler
from flamingo.model.saving import FlamingoSaving
from flamingo.model.sharded import whole
from flamingo.structured import plain
from flamingo.types import IGNORE_INDEX


class FlamingoForConditionalGeneration(FlamingoSaving, FlamingoGeneration):
    """Flamingo (Alayrac et al. 2022): ``p(text | interleaved media)`` with a frozen LM.

    Before chosen layers of the LM a gated block lets every text token attend to the latents of the
    media it may see; latents come from the perceiver resampler over a frozen encoder's features.
    Only the resampler, the gated blocks and the new tokens' rows train, and adapters of peft that
    the LM was given with; by ``language.train`` (the paper's ablation) the LM itself too.

    Deviations from the paper: the LM is any decoder of transformers that hands keyword arguments on
    to its layers, or one of the few known without (MPT, Falcon, BLOOM, GPT-J), unchanged (its
    class, weights and, with closed gates, its logits bit for bit); new tokens have a table of
    their own.

    The LM keeps its dropout off (eval mode) in training too: a frozen model is a function.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False  # ours are means: Trainer divides them by its accumulation steps

    def __init__(
        self,
        config: FlamingoConfig,
        *,
        language_model: nn.Module | None = None,
        vision_encoder: VisionEncoder | None = None,
    ) -> None:
        """Assemble from ``config``; a language model that is not given is random, of its config.

        Raises ``ValueError`` for a config without ``image_token_id``.
        """
        if config.image_token_id is None:
            raise ValueError("config.image_token_id: expected the id of <image>, got none")
        super().__init__(config)
        if language_model is None:
            drawn = AutoModelForCausalLM.from_config(deepcopy(config.text_config))
            language_model = cast(PreTrainedModel, drawn)
        language_model = adapters.without_wrapper(language_model)
        adapters.freeze_base(language_model)
        if config.trains_language_model:
            adapters.train_base(language_model)
        self.language_model = language_model
        self.vision_encoder = vision_encoder
        if vision_encoder is not None:
            vision_encoder.requires_grad_(False)

        options = config.cross_attention_options
        path = lm.decoder_path(language_model)
        layers = lm.decoder_layers(language_model)
        width = lm.hidden_size(language_model)
        self.resampler = build_resampler(config.vision_dim, config.resampler_options)
        self.cross_attention = nn.ModuleDict(
            {
                str(index): GatedCrossAttentionBlock(width, config.vision_dim, options)
                for index in conditioned_layers(options, len(layers))
            }
        )
        if options.language_model_norms:
            for index, block in self.blocks.items():
                block.set_stream_scale(lm.stream_scale(layers[index]))
        new_ids = config.new_token_ids or ()
        check_new_token_ids(
            new_ids,
            lm.vocabulary_size(language_model),
            image_token_id=config.image_token_id,
            end_of_chunk_token_id=config.end_of_chunk_token_id,
        )
        self.new_tokens = NewTokenEmbedding(new_ids, width, tied=lm.has_tied_head(language_model))
        self.new_tokens.initialize_from(
            lm.input_matrix(language_model),
            lm.output_head(language_model).weight,
            [
                lm.begin_token_id(language_model)
                if token == config.image_token_id
                else lm.end_token_id(language_model)
                for token in new_ids
            ],
        )
        self.conditioning = Conditioning(layers, self.blocks, passes_keywords=path.passes_keywords)
        self.visibility = options.media
        self.generation_config = default_generation_config(
            language_model.config, config.end_of_chunk_token_id
        )
        self.post_init()

    # ------------------------------------------------------------------ building

    @classmethod
    def from_backbones(
        cls,
        vision: VisionConfig | VisionEncoder | str | None,
        language: LanguageConfig | nn.Module | str,
        *,
        resampler: ResamplerConfig | None = None,
        cross_attention: CrossAttentionConfig | None = None,
        vision_dim: int | None = None,
        dtype: torch.dtype | None = None,
        image_token_id: int | None = None,
        end_of_chunk_token_id: int | None = None,
        new_token_ids: Sequence[int] | None = None,
    ) -> FlamingoForConditionalGeneration:
        """A new model between two backbones; what trains starts at random, in float32.

        Args:
            vision: hub name, local folder, embedded asset, or a loaded encoder. ``None`` builds a
                model that reads ``vision_features`` of width ``vision_dim`` alone.
            language: hub name, local folder, embedded asset, or a loaded causal LM: as it is,
                quantised by bitsandbytes, or with a LoRA adapter of peft, which then trains too.
                One loaded in float16 is restored by its name only if it is stored in float16.
            resampler, cross_attention: architecture; the paper's where not given.
            dtype: of the language model when it is loaded here (default float32, and always where
                it trains); float16 is cast to behind its fingerprint, so that it can be restored.
            image_token_id, end_of_chunk_token_id: default: the first two ids behind the LM's own
                vocabulary.
            new_token_ids: all ids that get rows of their own, in increasing order, without a gap
                behind the LM's own vocabulary; default: the two above.

        Raises:
            ValueError: without ``vision``, unless ``vision_dim`` is given, for ids with a gap, and
                for an LM whose decoder layers cannot be found.
        """
        if isinstance(vision, str):
            vision = VisionConfig(name=vision)
        encoder = load_vision_encoder(vision) if isinstance(vision, VisionConfig) else vision
        if encoder is not None:
            vision_dim = encoder.dim
        if vision_dim is None:
            raise ValueError("vision_dim: expected the width of the vision features, got none")
        if isinstance(language, str):
            language = LanguageConfig(name=language)
        if isinstance(language, LanguageConfig):
            options = language
            trains = options.train is not LanguageTraining.frozen
            held = torch.float32 if trains or dtype is None else dtype
            language = lm.load_language_model(language, loading_dtype(held))
        else:
            held = None
            language = adapters.without_wrapper(language)
            options = LanguageConfig(name=language.name_or_path or "")
        vocabulary = lm.vocabulary_size(language)
        image = vocabulary if image_token_id is None else image_token_id
        end = vocabulary + 1 if end_of_chunk_token_id is None else end_of_chunk_token_id
        config = FlamingoConfig(
            text_config=deepcopy(language.config),  # ours to annotate, the LM's stays its own
            vision=None if encoder is None else plain(encoder.config),
            language=plain(options),
            resampler=plain(resampler or ResamplerConfig()),
            cross_attention=plain(cross_attention or CrossAttentionConfig()),
            vision_dim=vision_dim,
            new_token_ids=sorted({image, end}) if new_token_ids is None else list(new_token_ids),
            image_token_id=image,
            end_of_chunk_token_id=end,
            vision_fingerprint=None if encoder is None else encoder.fingerprint,
            language_fingerprint=lm.fingerprint(language),
            language_adapter=adapters.description(language),
        )
        if held is not None and held is not loading_dtype(held):
            cast_parameters(language, held)
        return cls(config, language_model=language, vision_encoder=encoder)

    def init_weights(self) -> None:
        """Every module draws its own initial weights; frozen ones must never be drawn again."""

    # ------------------------------------------------------------------ what trains

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Names and parameters of all that trains: the one place that says so."""
        trained = {"resampler": self.resampler, "cross_attention": self.cross_attention,
                   "new_tokens": self.new_tokens}  # fmt: skip
        own = {
            f"{prefix}.{name}": parameter
            for prefix, module in trained.items()
            for name, parameter in module.named_parameters()
        }
        added = adapters.adapter_parameters(self.language_model)
        if self.config.trains_language_model:
            added = dict(self.language_model.named_parameters())
        return own | {f"language_model.{name}": parameter for name, parameter in added.items()}

    def gates(self) -> dict[str, float]:
        """``tanh`` of every gate, by layer and branch; of a gate by channels, their mean. Empty for
        a model without gates. Of a sharded model every process must ask."""
        values = {}
        for index, block in self.blocks.items():
            gates = {"attention": block.attention_gate, "feed_forward": block.feed_forward_gate}
            for branch, gate in gates.items():
                if gate is not None:
                    values[f"layer_{index}/{branch}"] = whole(gate).tanh().mean().item()
        return values

    def train(self, mode: bool = True) -> FlamingoForConditionalGeneration:
        """Train mode for what trains; the backbones stay in eval mode (adapters in the LM not).

        Gradient checkpointing in transformers asks a layer's own flag, so with it the decoder
        layers (not their children, where dropout lives) are flagged as training.
        """
        super().train(mode)
        self.language_model.eval()
        adapters.set_training(self.language_model, mode)
        if self.vision_encoder is not None:
            self.vision_encoder.eval()
        for layer in lm.decoder_layers(self.language_model):
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                layer.training = mode
        return self

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. Raises ``ValueError`` for an LM whose layers apply dropout."""
        for layer in lm.decoder_layers(self.language_model):
            for owner in (layer, getattr(layer, "config", None)):
                for name in ("dropout", "hidden_dropout", "activation_dropout"):
                    probability = getattr(owner, name, 0.0)
                    if isinstance(probability, float) and probability > 0:
                        raise ValueError(
                            f"language model {name}: expected 0 with gradient checkpointing (a "
                            f"frozen LM has no dropout), got {probability}: load it with {name}=0"
                        )
        super().gradient_checkpointing_enable(*args, **kwargs)
        self.train(self.training)

    def detach_language_model(self) -> PreTrainedModel:
        """Take this model's hooks off the LM and hand it back; this model can run no longer."""
        self.conditioning.detach()
        return self.language_model

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    # ------------------------------------------------------------------ forward

    @can_return_tuple  # which takes return_dict, as it does for transformers' own models
    def forward(
        self,
        input_ids: Int[Tensor, "row token"],
        attention_mask: Int[Tensor, "row all"] | None = None,
        pixel_values: Float[Tensor, "media_row image frame 3 height width"] | None = None,
        vision_features: Float[Tensor, "media_row image frame patch vision_dim"] | None = None,
        media_latents: Float[Tensor, "media_row image latent vision_dim"] | None = None,
        projected_media: ProjectedMedia | None = None,
        labels: Int[Tensor, "row token"] | None = None,
        label_weights: Float[Tensor, "row token"] | None = None,
        past_key_values: Cache | None = None,
        position_ids: Int[Tensor, "row token"] | None = None,
        documents: Int[Tensor, "row token"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Bool[Tensor, "row token"] = 0,
        **decoder_inputs: Any,
    ) -> FlamingoOutput:
        """Logits of the next token at every position (or those of ``logits_to_keep``).

        With ``return_dict=False``, here or in the config, a tuple of what is not None.

        Args:
            input_ids: with one ``config.image_token_id`` for each medium, in reading order.
            attention_mask: 1 for real tokens (left or right padding); with a cache it covers the
                cached tokens too.
            pixel_values, vision_features, media_latents: the media, at most one of the three; media
                beyond a row's ``<image>`` tokens are padding. With a cache only new media.
            projected_media: instead of these, exactly the media that each row names, as
                :meth:`project_media` gives them; without gradients.
            labels: adds ``loss``, the mean cross-entropy of the next tokens (-100: not counted).
            label_weights: with them ``loss`` is the sum of each label's cross-entropy (nats) times
                its weight, computed without all logits at once (:mod:`flamingo.model.loss`);
                ``token_losses`` holds each counted label's, row by row, and ``logits`` is None.
            past_key_values: the cache of an earlier call; it holds that call's media too.
            documents: for packed rows the number of each token's document, rising through the
                row. Documents do not see one another, neither text nor media; positions begin
                anew in each. Rows are padded on the right (padding counts to the last document).
            use_cache: keep keys and values for a later call; default: as the LM's own config
                says, and not while training.
            logits_to_keep: the last n positions (0: all), or a mask: then logits are
                ``(kept, vocabulary)``, row by row.

        Raises:
            ValueError: a row with more ``<image>`` tokens than media; several forms of media;
                features of another width; a cache that is not a ``FlamingoCache``; ``documents``
                with a cache, or with an LM that cannot keep them apart (BLOOM, Mamba).
        """
        cache = self._cache(past_key_values, use_cache, packed=documents is not None)
        is_image = self.is_image_token(input_ids, attention_mask)
        counts = is_image.sum(dim=1)
        given = (projected_media, pixel_values, vision_features, media_latents)
        state = MediaState.so_far(cache, input_ids).for_text_rows(len(input_ids))
        state = self.with_new_media(state, counts, *given)
        check_media_counts(state.seen + counts, state.available_by_text_row)
        reading = self._reading(state, is_image, attention_mask, documents)
        call = ConditionedCall(self.conditioning, state.keys_values, reading)
        position_ids, attention_mask = self._positions_and_mask(
            position_ids, attention_mask, documents, input_ids.shape[1], cached=cache is not None
        )
        decoder_inputs |= {} if position_ids is None else {"position_ids": position_ids}
        output = self.conditioning.run(
            self.language_model.base_model,
            call,
            inputs_embeds=self.new_tokens(input_ids, self.language_model.get_input_embeddings()),
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            return_dict=True,
            **decoder_inputs,
        )
        if cache is not None:
            cache.media = state.after(counts, self.visibility)
            cache.note(is_image)
        return FlamingoOutput(
            **self._answer(output.last_hidden_state, logits_to_keep, labels, label_weights),
            past_key_values=cache,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def _positions_and_mask(
        self,
        position_ids: Int[Tensor, "row token"] | None,
        attention_mask: Int[Tensor, "row all"] | None,
        documents: Int[Tensor, "row token"] | None,
        tokens: int,
        *,
        cached: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the language model is told of positions, and of who sees whom."""
        if documents is not None:
            if cached or position_ids is not None:
                raise ValueError(
                    "documents: expected packed rows without a cache and with positions that "
                    "follow from them, got past_key_values, use_cache or position_ids"
                )
            mask = lm.packed_mask(self.language_model, documents)
            return document_positions(documents), mask
        if position_ids is None and attention_mask is not None:
            position_ids = lm.explicit_positions(self.language_model, attention_mask, tokens)
        return position_ids, attention_mask

    def _reading(
        self,
        state: MediaState,
        is_image: Bool[Tensor, "row token"],
        attention_mask: Int[Tensor, "row all"] | None,
        documents: Int[Tensor, "row token"] | None,
    ) -> Reading | None:
        before = None if documents is None else media_before(is_image, documents)
        time = text_time(is_image, state.seen, attention_mask)
        return state.reading(time, self.visibility, before)

    def _cache(
        self, past_key_values: Cache | None, use_cache: bool | None, *, packed: bool
    ) -> FlamingoCache | None:
        cache = checked_cache(past_key_values)
        if use_cache is None:  # as the bare LM would, but never while training or of packed rows
            asked = getattr(self.config.text_config, "use_cache", False)
            use_cache = asked and not self.training and not packed
        if cache is None and use_cache:
            return FlamingoCache(config=self.language_model.config)
        return cache

    def _logits(
        self, hidden: Float[Tensor, "row token dim"], keep: int | Bool[Tensor, "row token"]
    ) -> Float[Tensor, "*shape vocabulary"]:
        hidden = hidden[keep] if isinstance(keep, Tensor) else hidden[:, -keep if keep else 0 :]
        # One product with the head's matrix: of a slice it would be one for each row.
        return self._head(hidden.contiguous())

    def _head(self, hidden: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape vocabulary"]:
        own, new = lm.head_logits(self.language_model, hidden, self.new_tokens.output_rows)
        return self.new_tokens.join_logits(own, new)

    def _answer(
        self,
        hidden: Float[Tensor, "row token dim"],
        keep: int | Bool[Tensor, "row token"],
        labels: Int[Tensor, "row token"] | None,
        weights: Float[Tensor, "row token"] | None,
    ) -> dict[str, Any]:
        """What of loss, logits and token losses was asked for."""
        if weights is not None:
            if labels is None:
                raise ValueError("label_weights: expected labels with them, got none")
            loss, token_losses = self._weighted_loss(hidden, labels, weights)
            return {"loss": loss, "token_losses": token_losses}
        logits = self._logits(hidden, keep)
        loss = None if labels is None else next_token_loss(logits, labels)
        return {"loss": loss, "logits": logits}

    def _weighted_loss(
        self,
        hidden: Float[Tensor, "row token dim"],
        labels: Int[Tensor, "row token"],
        weights: Float[Tensor, "row token"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " kept"]]:
        counted = labels[:, 1:] != IGNORE_INDEX
        head = lm.output_head(self.language_model)
        own = [parameter for parameter in head.parameters() if parameter.requires_grad]
        return weighted_loss(
            self._head,
            hidden[:, :-1][counted],
            labels[:, 1:][counted],
            weights[:, 1:][counted],
            [self.new_tokens.output_rows, *own],
            vocabulary=head.out_features + len(self.new_tokens.token_ids),
        )


@dataclass
class FlamingoOutput(CausalLMOutputWithPast):
    """What transformers' causal models return, and each label's loss where weights were given."""

    token_losses: Tensor | None = None
