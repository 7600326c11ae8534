"""Our model as a contender, by the machinery that trains and evaluates it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flamingo.backbones.language import decoder_layers
from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.shared import decode_run, fill_gradients, no_grad
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import PromptWork, RankingWork, TrainingWork
from flamingo.choices import Condition
from flamingo.config import TrainingConfig
from flamingo.evaluation.beams import search
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.ranking import rank_candidates
from flamingo.evaluation.runner import Loaded, run_benchmarks
from flamingo.evaluation.scoring import Reader
from flamingo.evaluation_config import EvaluationConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.masking import text_time
from flamingo.model.media import MediaState
from flamingo.training.loss import batch_loss, keep_mask, token_weights
from flamingo.training.optim import build_optimizer, clip_gradients, set_lr
from flamingo.types import Batch, ImageRef, Media, TokenizedSequence


class Ours:
    """A training step as the training loop takes it; answers with the demonstrations' latents at
    hand, as in an evaluation, which resamples each image once: of a prompt only the query's image
    is resampled."""

    note = (
        "OpenFlamingo's architecture; answers with the demonstrations' latents at hand and the "
        "query's image resampled; the evaluation starts with none, resamples each image once, and "
        "runs prompts whose answers are close again alone. On CPUs its language model attends by "
        "plain products where few tokens ask (flamingo/backbones/attention.py); the others' do as "
        "transformers has it."
    )

    def __init__(
        self,
        model: FlamingoForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dtype = dtype
        # Never generated, so every answer has all its tokens: equal work for all.
        model.generation_config.eos_token_id = [model.config.image_token_id]

    @property
    def parts(self) -> list[nn.Module]:
        layers = decoder_layers(self.model.language_model)
        return [self.model.resampler, *layers, *self.model.cross_attention.values()]

    def training_step(self, work: TrainingWork) -> Run:
        batch = Batch(
            input_ids=work.input_ids,
            attention_mask=torch.ones_like(work.input_ids),
            labels=work.labels,
            source=torch.zeros_like(work.input_ids),
            vision_features=work.features,
        )
        weights = token_weights(keep_mask(work.labels).sum()[None], [1.0])

        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            batch_loss(self.model, batch, weights)[0].backward()

        return Run(call, prepare=self.model.train)

    def optimizer_step(self) -> Run:
        """As the training loop's: fused, and of the vocabulary the new tokens' rows alone."""
        parameters = self.model.trainable_parameters()
        config = TrainingConfig()
        optimizer = build_optimizer(config, self.model, parameters)
        set_lr(optimizer, 0.0)

        def call(_: object) -> None:
            clip_gradients(parameters.values(), config.clip_norm)
            optimizer.step()

        return Run(call, prepare=lambda: fill_gradients(parameters.values()))

    def logits(self, work: TrainingWork) -> Tensor:
        return self.model(input_ids=work.input_ids, vision_features=work.features).logits

    def resampler(self, work: TrainingWork) -> Run:
        """On the real images: padding is never resampled."""
        real = _real(work)

        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            self.model.resampler(real).sum().backward()

        return Run(call, prepare=self.model.train)

    def cross_attention(self, work: TrainingWork) -> Run:
        block: Any = next(iter(self.model.cross_attention.values()))
        (index, _), *_ = self.model.cross_attention.items()
        is_image = work.input_ids == self.model.config.image_token_id
        present = torch.arange(work.features.shape[1]) < work.images.cpu()[:, None]
        present = present.to(work.images.device)
        text = work.features.new_ones(*work.input_ids.shape, block.attention.to_q.in_features)
        text.requires_grad_()
        with torch.no_grad():
            latents = self.model.resampler(_real(work))
        latents.requires_grad_()

        def call(_: object) -> None:
            self.model.zero_grad(set_to_none=True)
            text.grad = latents.grad = None
            state = MediaState.empty(len(text), text.device)
            state = state.append(latents, present, {int(index): block})
            reading = state.reading(text_time(is_image), self.model.visibility)
            block(text, state.keys_values[int(index)], reading).sum().backward()

        return Run(call, prepare=self.model.train)

    # ------------------------------------------------------------------ answering

    def _reading(self, work: PromptWork) -> Reading:
        """A reader of ``work``'s prompts, its demonstrations resampled already."""
        self.model.eval()
        return Reading.of(self.model, self.tokenizer, self.dtype, work)

    def prefill(self, work: PromptWork) -> Run:
        reading = self._reading(work)
        return Run(no_grad(lambda _: reading.read()), prepare=self.model.eval)

    def decode(self, work: PromptWork) -> Run:
        reading = self._reading(work)

        def read() -> Any:
            self.model.eval()
            return reading.read()

        return decode_run(read, self.model, work.input_ids, work.new_tokens)

    def generate(self, work: PromptWork) -> Run:
        """Greedy as transformers' ``generate``, beams as the evaluation searches: every prompt is
        read once, whatever the number of beams."""
        reading = self._reading(work)

        def call(_: object) -> Tensor:
            if work.beams == 1:
                inputs: dict[str, Any] = reading.inputs()
                said = self.model.generate(
                    **inputs, max_new_tokens=work.new_tokens, do_sample=False
                )
                return said[:, work.input_ids.shape[1] :]
            decoding = Decoding(max_new_tokens=work.new_tokens, beams=work.beams)
            found = search(reading.reader, reading.prompts(), decoding, reading.ends)
            return torch.tensor([best.ids for best in found])

        return Run(no_grad(call), prepare=self.model.eval)

    def rank(self, work: RankingWork) -> Run:
        """As the evaluation of classes under OpenFlamingo's protocol: means a token."""
        reading = self._reading(work.prompt)
        decoding = Decoding(normalize_by_length=True, end_of_chunk=False)

        def call(_: object) -> Tensor:
            prompts = reading.prompts()
            reading.reader.latents.prepare(medium for p in prompts for medium in p.media)
            answers = rank_candidates(
                reading.reader,
                prompts,
                [work.texts] * len(prompts),
                decoding=decoding,
                batch_size=work.rows,
            )
            return torch.tensor([answer.scores for _, answer in sorted(answers)])

        return Run(no_grad(call), prepare=self.model.eval)

    def evaluate(self, work: EvaluationWork) -> Run:
        """The evaluation itself, planning and log included, from an empty folder."""

        def call(_: object) -> None:
            with TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # its own bar
                run_benchmarks(
                    [work.benchmark()],
                    EvaluationConfig(conditions=[Condition.real], batch_size=work.batch_size),
                    work.tokenizer,
                    Path(folder),
                    model_id="speed",
                    precision=str(self.dtype),
                    load=lambda _: Loaded(self.model, work.load, self.dtype),
                )

        cells = len(work.shots) * len(work.seeds)
        return Run(call, prepare=self.model.eval, units=work.queries * cells)


@dataclass(eq=False)
class Reading:
    """Prompts as the evaluation reads them: the query's image is new to it at every call."""

    reader: Reader
    work: PromptWork
    ends: set[int]
    calls: int = 0

    @classmethod
    def of(
        cls,
        model: FlamingoForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        work: PromptWork,
    ) -> Reading:
        def load(media: Sequence[Media]) -> Tensor:
            (medium,) = media
            row, image = (int(part) for part in medium.frames[0].key.split("/")[-2:])
            return work.features[row, image][None]

        latents = MediaLatents(model, load)
        reading = cls(Reader(model, tokenizer, latents, dtype), work, {model.config.image_token_id})
        for prompt in reading.prompts():
            latents.prepare(prompt.media[:-1])
        return reading

    def prompts(self) -> list[TokenizedSequence]:
        """The prompts, their queries' images under keys that were never seen."""
        self.calls += 1
        shown = self.work.features.shape[1]
        return [
            TokenizedSequence(
                tuple(ids),
                (),
                tuple(
                    _medium(f"{self.calls if image == shown - 1 else 0}/{row}/{image}")
                    for image in range(shown)
                ),
            )
            for row, ids in enumerate(self.work.input_ids.tolist())
        ]

    def inputs(self) -> dict[str, Tensor]:
        return self.reader.inputs([(p.input_ids, p.media) for p in self.prompts()])

    def read(self) -> Any:
        return self.reader.model(**self.inputs(), use_cache=True, logits_to_keep=1)


def _medium(key: str) -> Media:
    return Media((ImageRef(key=key, open=_nothing),))


def _nothing() -> Any:
    raise AssertionError("features are given: no image is opened")


def _real(work: TrainingWork) -> Tensor:
    """Features of the images that are no padding, (medium, 1, patch, dim)."""
    rows = [features[:count] for features, count in zip(work.features, _counts(work), strict=True)]
    return torch.cat(rows)


def _counts(work: TrainingWork) -> Sequence[int]:
    return work.images.tolist()
