"""The bare language model: what any Flamingo on it must at least compute."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flamingo.benchmarking.contender import CannotDo
from flamingo.benchmarking.decoding import decode_run, likelihoods, no_grad
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, RankingWork, Tokens, TrainingWork


class BareLM:
    """The frozen LM of transformers, on the same tokens without their images.

    A training step is forward, its own loss, and backward to the gradient of the embeddings: no
    weight has a gradient. New tokens are replaced by an ordinary one.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tokens) -> None:
        self.model = model.eval().requires_grad_(False)
        self._tokens = tokens

    def _ids(self, ids: Tensor) -> Tensor:
        return ids.masked_fill(ids >= self._tokens.vocabulary, self._tokens.first)

    def training_step(self, work: TrainingWork) -> Run:
        ids = self._ids(work.input_ids)
        labels = work.labels.where(work.labels < 0, self._ids(work.labels))

        def call(_: None) -> None:
            embeddings = self.model.get_input_embeddings()(ids).requires_grad_()
            mask = torch.ones_like(ids)
            self.model(
                inputs_embeds=embeddings, attention_mask=mask, labels=labels, use_cache=False
            ).loss.backward()

        return Run(call)

    def resampler(self, work: TrainingWork) -> Run:
        raise CannotDo("has no resampler")

    def cross_attention(self, work: TrainingWork) -> Run:
        raise CannotDo("has no cross-attention")

    def prefill(self, work: PromptWork) -> Run:
        ids = self._ids(work.input_ids)
        return Run(no_grad(lambda _: self._read(ids)))

    def _read(self, ids: Tensor):  # noqa: ANN202
        return self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1
        )

    def decode(self, work: PromptWork) -> Run:
        ids = self._ids(work.input_ids)
        return decode_run(lambda: self._read(ids), self.model, ids, work.new_tokens)

    def generate(self, work: PromptWork) -> Run:
        ids = self._ids(work.input_ids)

        def call(_: None) -> Tensor:
            said = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=work.new_tokens,
                min_new_tokens=work.new_tokens,
                num_beams=work.beams,
                length_penalty=0.0,
                do_sample=False,
                pad_token_id=self._tokens.first,
            )
            return said[:, ids.shape[1] :]

        return Run(no_grad(call))

    def rank(self, work: RankingWork) -> Run:
        raise CannotDo("measured with a prompt's cache by ours alone")
