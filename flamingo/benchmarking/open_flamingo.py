"""OpenFlamingo 2.0.1 as a contender: its own classes, on our language model and weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flamingo.backbones.language import decoder_path
from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.packages import Package, peer_module
from flamingo.benchmarking.shared import decode_run, fill_gradients, likelihoods, no_grad
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, RankingWork, Tokens, TrainingWork
from flamingo.interop.open_flamingo_export import open_flamingo_interval, open_flamingo_state
from flamingo.model.flamingo import FlamingoForConditionalGeneration


class GivenFeatures(nn.Module):
    """Stands in for CLIP: the "pixels" are the features, ``(image, 1, patch, dim)``."""

    def forward(self, features: Tensor) -> tuple[None, Tensor]:
        return None, features[:, 0]


class GivenVision(nn.Module):
    """OpenFlamingo takes ``.visual`` of what open_clip returns."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = GivenFeatures()


class MaskMayBeMissing:
    """transformers 5 generates without a mask where it is all ones; their forward requires one."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest: Any) -> Any:
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids, attention_mask=attention_mask, **rest
        )


def build_open_flamingo(
    model: FlamingoForConditionalGeneration, language_model: PreTrainedModel
) -> Any:
    """Their model on ``language_model`` (a copy of ours, which is changed), with our weights.

    The steps of their ``factory.create_model_and_transforms`` behind the loading of backbones:
    the LM's class is extended, its embedding grows by the new tokens, all is frozen but resampler,
    gated blocks and the input embedding (their default).
    """
    packages = (Package.open_flamingo, Package.einops_exts)
    flamingo = peer_module("open_flamingo_src.flamingo", *packages)
    mixin = peer_module("open_flamingo_src.flamingo_lm", *packages).FlamingoLMMixin
    extend = peer_module("open_flamingo_src.utils", *packages).extend_instance
    extend(language_model, mixin)
    extend(language_model, MaskMayBeMissing)
    extended: Any = language_model
    extended.set_decoder_layers_attr_name(decoder_path(language_model).layers)
    state = dict(open_flamingo_state(model))
    embedding = next(t for name, t in state.items() if t.shape[0] > 1 and "embed" in name)
    extended.resize_token_embeddings(len(embedding), mean_resizing=False)
    image, end = model.config.image_token_id, model.config.end_of_chunk_token_id
    theirs = flamingo.Flamingo(
        GivenVision(),
        extended,
        end,
        image,
        vis_dim=model.config.vision_dim,
        cross_attn_every_n_layers=open_flamingo_interval(model),
    )
    theirs.requires_grad_(False)
    theirs.perceiver.requires_grad_(True)
    theirs.lang_encoder.gated_cross_attn_layers.requires_grad_(True)
    theirs.lang_encoder.get_input_embeddings().requires_grad_(True)
    load_exactly(theirs, state)
    return theirs


def load_exactly(theirs: nn.Module, state: dict[str, Tensor]) -> None:
    """Load ``state``; raises ``ValueError`` unless it holds all that trains, and nothing else."""
    loaded = theirs.load_state_dict(state, strict=False)
    names = {id(p): name for name, p in theirs.named_parameters() if p.requires_grad}
    missing = sorted(set(names.values()) - set(state))
    if missing or loaded.unexpected_keys:
        raise ValueError(
            f"OpenFlamingo: expected exactly its trained weights, missing {missing[:3]}, "
            f"unexpected {loaded.unexpected_keys[:3]}"
        )


class OpenFlamingo:
    """Its training step, and generation and ranking as its evaluation calls them."""

    note = (
        "its own code with our weights; features come in as pixels; two changes for transformers "
        "5: a mask of ones may be missing, and a candidate's tokens are cut from the cache again. "
        "Padded images are resampled like real ones, a prompt's images for every prompt and beam. "
        "Of the evaluation it answers the first queries."
    )

    def __init__(self, model: Any, tokens: Tokens) -> None:
        self.model = model.eval()  # the LM has no dropout: train() would change nothing
        self._tokens = tokens

    @property
    def parts(self) -> list[nn.Module]:
        layers = self.model.lang_encoder._get_decoder_layers()
        blocks = self.model.lang_encoder.gated_cross_attn_layers
        decoders = [layer.decoder_layer for layer in layers]
        return [self.model.perceiver, *decoders, *(block for block in blocks if block is not None)]

    def training_step(self, work: TrainingWork) -> Run:
        """As ``train_utils.train_one_epoch``: padded images are resampled like real ones."""

        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            mask = torch.ones_like(work.input_ids)
            self.model(
                vision_x=_pixels(work.features),
                lang_x=work.input_ids,
                attention_mask=mask,
                labels=work.labels,
            )[0].backward()

        return Run(call, prepare=self._forget)

    def _forget(self) -> None:
        """The media of prompts that were read before: kept, its training would refuse its own."""
        self.model.lang_encoder.clear_conditioned_layers()
        self.model.lang_encoder._use_cached_vision_x = False

    def optimizer_step(self) -> Run:
        """As their training: the whole vocabulary has gradients, all but the new rows zeroed, and
        AdamW in the form that is torch's default."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        embedding = self.model.lang_encoder.get_input_embeddings().weight
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.1)
        mask = torch.zeros_like(embedding)
        mask[[self._tokens.image, self._tokens.end_of_chunk]] = 1

        def call(_: object) -> None:
            embedding.grad = embedding.grad * mask
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()

        return Run(call, prepare=lambda: fill_gradients(parameters))

    def logits(self, work: TrainingWork) -> Tensor:
        mask = torch.ones_like(work.input_ids)
        return self.model(_pixels(work.features), work.input_ids, mask).logits

    def resampler(self, work: TrainingWork) -> Run:
        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            self.model.perceiver(work.features).sum().backward()

        return Run(call)

    def cross_attention(self, work: TrainingWork) -> Run:
        blocks = self.model.lang_encoder.gated_cross_attn_layers
        block = next(block for block in blocks if block is not None)
        places = work.input_ids == self._tokens.image
        dim = self.model.lang_dim
        text = work.features.new_ones(*work.input_ids.shape, dim).requires_grad_()
        with torch.no_grad():
            media = self.model.perceiver(work.features)
        media.requires_grad_()

        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            text.grad = media.grad = None
            block(text, media, media_locations=places, use_cached_media=False).sum().backward()

        return Run(call)

    def prefill(self, work: PromptWork) -> Run:
        return Run(no_grad(lambda _: self._read(work)))

    def _read(self, work: PromptWork) -> Any:
        """As its ``generate`` reads a prompt: images resampled, logits of every position."""
        language = self.model.lang_encoder
        language.clear_conditioned_layers()
        language._use_cached_vision_x = True
        self.model._encode_vision_x(vision_x=_pixels(work.features))
        ids = work.input_ids
        return language(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)

    def decode(self, work: PromptWork) -> Run:
        return decode_run(
            lambda: self._read(work), self.model.lang_encoder, work.input_ids, work.new_tokens
        )

    def generate(self, work: PromptWork) -> Run:
        mask = torch.ones_like(work.input_ids)

        def call(_: object) -> Tensor:
            return self._answer(work.input_ids, mask, work.features, work.new_tokens, work.beams)

        return Run(no_grad(call))

    def _answer(
        self, ids: Tensor, mask: Tensor, features: Tensor, new_tokens: int, beams: int
    ) -> Tensor:
        """As its evaluation; ``<image>`` is never chosen, so that answers compare with ours."""
        self.model.lang_encoder.clear_conditioned_layers()
        said = self.model.generate(
            _pixels(features),
            ids,
            mask,
            max_new_tokens=new_tokens,
            num_beams=beams,
            length_penalty=0.0,
            do_sample=False,
            eos_token_id=self._tokens.image,
            pad_token_id=self._tokens.first,
            suppress_tokens=[self._tokens.image],
        )
        return said[:, ids.shape[1] :]

    def evaluate(self, work: EvaluationWork) -> Run:
        """Every query's images are resampled with it, for each of its beams."""

        def call(_: object) -> None:
            for batch in work.batches():
                self._answer(
                    batch.input_ids, batch.mask, batch.features, work.new_tokens, work.beams
                )

        return Run(no_grad(call), units=work.peer_queries)

    def rank(self, work: RankingWork) -> Run:
        """As its ``get_rank_classifications`` with ``use_cache``: the prompt read once, then one
        call a candidate, all rows at a time.

        That was written for caches that are tuples. transformers 5 appends to the cache it is
        given, so each call's tokens are cut off again here: without that the candidates would
        follow one another.
        """
        prompt = work.prompt
        rows = len(prompt.input_ids)

        def call(_: object) -> Tensor:
            language = self.model.lang_encoder
            language.clear_conditioned_layers()
            self.model.cache_media(input_ids=prompt.input_ids, vision_x=_pixels(prompt.features))
            mask = torch.ones_like(prompt.input_ids)
            output = self.model(
                None, prompt.input_ids, mask, clear_conditioned_layers=False, use_cache=True
            )
            last, cache = output.logits[:, -1:], output.past_key_values
            scores = []
            for ids in work.candidates:
                own = torch.tensor(ids, device=mask.device).expand(rows, -1)
                read = self.model(
                    None, own, None, clear_conditioned_layers=False, past_key_values=cache
                ).logits
                own = likelihoods(torch.cat([last, read[:, :-1]], dim=1), ids)
                scores.append(own / len(ids))
                cache.crop(-len(ids))
            self.model.uncache_media()
            return torch.stack(scores, dim=1)

        return Run(no_grad(call))


def _pixels(features: Tensor) -> Tensor:
    """Features as the pixels they take: (row, image, frame = 1, channel = 1, patch, dim)."""
    return features[:, :, :, None]
