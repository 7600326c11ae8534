"""The bare language model: what any Flamingo on it must at least compute."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from flamingo.backbones.language import decoder_layers
from flamingo.benchmarking.contender import Unable
from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.shared import decode_run, no_grad
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, RankingWork, Tokens, TrainingWork


class BareLM(Unable):
    """The frozen LM of transformers, on the same tokens without their images.

    A training step is forward with logits at every position, its own loss, and backward to the
    gradient of the embeddings: no weight has a gradient. New tokens are replaced by an ordinary
    one. Beams are transformers' ``generate`` on the whole prompts.
    """

    reason = "has none of it: nothing trains, there are no images"
    note = (
        "transformers' model on the same tokens, no images; a training step is forward, loss at "
        "every position and backward to the embeddings, no weight has a gradient."
    )

    def __init__(self, model: PreTrainedModel, tokens: Tokens) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self._tokens = tokens

    @property
    def parts(self) -> list[nn.Module]:
        return list(decoder_layers(self.model))

    def _text(self, ids: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
        return ids.masked_fill(ids >= self._tokens.vocabulary, self._tokens.first)

    def training_step(self, work: TrainingWork) -> Run:
        ids = self._text(work.input_ids)
        labels = work.labels.where(work.labels < 0, self._text(work.labels))

        def call(_: object) -> None:
            embeddings = self.model.get_input_embeddings()(ids).requires_grad_()
            output = self.model(
                inputs_embeds=embeddings,
                attention_mask=torch.ones_like(ids),
                labels=labels,
                use_cache=False,
            )
            output.loss.backward()

        return Run(call)

    def prefill(self, work: PromptWork) -> Run:
        ids = self._text(work.input_ids)
        return Run(no_grad(lambda _: self._read(ids)))

    def _read(self, ids: Tensor) -> Any:
        return self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1
        )

    def decode(self, work: PromptWork) -> Run:
        ids = self._text(work.input_ids)
        return decode_run(lambda: self._read(ids), self.model, ids, work.new_tokens)

    def generate(self, work: PromptWork) -> Run:
        ids = self._text(work.input_ids)
        mask = torch.ones_like(ids)
        return Run(no_grad(lambda _: self._answer(ids, mask, work.new_tokens, work.beams)))

    def _answer(self, ids: Tensor, mask: Tensor, new_tokens: int, beams: int) -> Tensor:
        said = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            num_beams=beams,
            length_penalty=0.0,
            do_sample=False,
            pad_token_id=self._tokens.first,
        )
        return said[:, ids.shape[1] :]

    def rank(self, work: RankingWork) -> Run:
        """The prompt read once; then all but the last token of each candidate, in batches."""
        ids = self._text(work.prompt.input_ids)
        followed = [own[:-1] for own in work.candidates if len(own) > 1]

        def call(_: object) -> None:
            prefix = self._read(ids)
            if not followed:
                return
            places = [(row, own) for row in range(len(ids)) for own in followed]
            for start in range(0, len(places), work.rows):
                part = places[start : start + work.rows]
                width = max(len(own) for _, own in part)
                new = torch.full((len(part), width), self._tokens.first, device=ids.device)
                for row, (_, own) in enumerate(part):
                    new[row, : len(own)] = torch.tensor(own)
                rows = torch.tensor([row for row, _ in part], device=ids.device)
                self.model(
                    input_ids=new,
                    attention_mask=torch.ones(
                        len(part), ids.shape[1] + width, dtype=torch.long, device=ids.device
                    ),
                    past_key_values=_rows(prefix.past_key_values, rows),
                ).logits.float().log_softmax(dim=-1)

        return Run(no_grad(call))

    def evaluate(self, work: EvaluationWork) -> Run:
        def call(_: object) -> None:
            for batch in work.batches():
                ids = self._text(batch.input_ids)
                self._answer(ids, batch.mask, work.new_tokens, work.beams)

        return Run(no_grad(call), units=work.peer_queries)


def _rows(cache: Cache, rows: Int[Tensor, " selected"]) -> Cache:
    """A cache of its own with a choice of rows."""
    own = copy(cache)
    own.layers = [copy(layer) for layer in cache.layers]  # a layer replaces its tensors
    own.batch_select_indices(rows)  # type: ignore[attr-defined]
    return own
