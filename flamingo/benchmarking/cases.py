"""The cases: which work is done, and which of a contender's methods does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from transformers import PreTrainedTokenizerBase

from flamingo.benchmarking.contender import Contender
from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import (
    FeatureShape,
    PromptWork,
    RankingWork,
    Tokens,
    TrainingWork,
    candidates,
    prompt_work,
    training_work,
)
from flamingo.choices import Strategy
from flamingo.evaluation_config import DemonstrationsConfig


class Case(Enum):
    """What is timed, by the names of the command line."""

    train_short = "training step, short sequences"
    train_documents = "training step, documents"
    optimizer = "optimiser's step"
    resampler = "resampler alone, forward and backward"
    cross_attention = "one gated block alone, forward and backward"
    prefill_few = "prefill, few shots"
    prefill_many = "prefill, many shots"
    decode = "decode, per token"
    greedy = "greedy answers"
    beams = "answers by beam search"
    rank_few = "ranking, few candidates"
    rank_many = "ranking, many candidates"
    evaluation = "few-shot evaluation, per query"
    evaluation_common = "the same with the same demonstrations for all, per query"


@dataclass(kw_only=True)
class SizesConfig:
    """How much work. Defaults are those of the published table."""

    short_rows: int = 8
    short_tokens: int = 56
    short_images: int = 4
    """Of each row."""
    documents: list[int] = field(default_factory=lambda: [6, 4, 3, 3, 2, 1, 1, 1])
    """Real images of each document."""
    document_tokens: int = 256
    document_images: int = 6
    """What documents are padded to."""
    prompts: int = 4
    """Prompts of a batch."""
    few_shots: int = 4
    many_shots: int = 32
    shot_tokens: int = 6
    """``<image>``, four of text, ``<|endofchunk|>``. The longer the text, the less images cost."""
    new_tokens: int = 5
    decoded_tokens: int = 8
    beams: int = 3
    few_candidates: int = 2
    many_candidates: int = 1000
    ranking_rows: int = 64
    """Candidates of a batch, where they are ranked in batches."""
    pool: int = 64
    """Images that demonstrate in the evaluation."""
    queries: int = 64
    peer_queries: int = 4
    """How many of them the peers answer: each costs them the same."""
    evaluation_beams: int = 3
    patches: int = 49
    vision_dim: int = 1280
    seed: int = 0


@dataclass(frozen=True)
class Works:
    """Draws the work of each case: the same for everybody, and at every call."""

    sizes: SizesConfig
    tokens: Tokens
    device: torch.device
    dtype: torch.dtype
    """Of the features."""
    tokenizer: PreTrainedTokenizerBase

    @property
    def _shape(self) -> FeatureShape:
        return FeatureShape(self.sizes.patches, self.sizes.vision_dim)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.sizes.seed)

    def short(self) -> TrainingWork:
        return training_work(
            self.tokens,
            self._shape,
            images=[self.sizes.short_images] * self.sizes.short_rows,
            length=self.sizes.short_tokens,
            padded=self.sizes.short_images,
            generator=self._generator(),
        ).to(self.device, self.dtype)

    def documents(self) -> TrainingWork:
        return training_work(
            self.tokens,
            self._shape,
            images=self.sizes.documents,
            length=self.sizes.document_tokens,
            padded=self.sizes.document_images,
            generator=self._generator(),
        ).to(self.device, self.dtype)

    def training(self, case: Case) -> TrainingWork:
        """Of the two training cases."""
        return self.short() if case is Case.train_short else self.documents()

    def prompts(self, shots: int, new_tokens: int, beams: int = 1) -> PromptWork:
        return prompt_work(
            self.tokens,
            self._shape,
            rows=self.sizes.prompts,
            shots=shots,
            tokens_a_shot=self.sizes.shot_tokens,
            new_tokens=new_tokens,
            beams=beams,
            generator=self._generator(),
        ).to(self.device, self.dtype)

    def ranking(self, count: int) -> RankingWork:
        """``count`` candidates behind prompts of few shots."""
        found = candidates(self.tokenizer, count, self._generator())
        prompts = self.prompts(self.sizes.few_shots, 1)
        rows = self.sizes.ranking_rows
        return RankingWork(prompts, list(found), list(found.values()), rows)

    def evaluation(
        self,
        queries: int | None = None,
        shots: Sequence[int] = (),
        seeds: Sequence[int] = (0,),
        *,
        common: bool = False,
    ) -> EvaluationWork:
        """``queries`` (default: the sizes') at ``shots`` (default: many); ``common``: all of them
        with the same demonstrations."""
        sizes = self.sizes
        first = [f"train/{image}" for image in range(max(shots, default=sizes.many_shots))]
        fixed = DemonstrationsConfig(strategy=Strategy.fixed, fixed=first)
        queries = queries or sizes.queries
        shape = (sizes.pool + queries, 1, sizes.patches, sizes.vision_dim)
        return EvaluationWork(
            tokenizer=self.tokenizer,
            features=torch.randn(shape, generator=self._generator()).to(self.device, self.dtype),
            pool=sizes.pool,
            queries=queries,
            peer_queries=min(queries, sizes.peer_queries),
            shots=tuple(shots) or (sizes.many_shots,),
            seeds=tuple(seeds),
            batch_size=sizes.prompts,
            new_tokens=sizes.new_tokens,
            beams=sizes.evaluation_beams,
            demonstrations=fixed if common else DemonstrationsConfig(),
        )

    def run(self, case: Case, contender: Contender) -> Run:
        """The run of ``case`` by ``contender``; raises ``CannotDo``."""
        sizes = self.sizes
        match case:
            case Case.train_short | Case.train_documents:
                return contender.training_step(self.training(case))
            case Case.optimizer:
                return contender.optimizer_step()
            case Case.resampler:
                return contender.resampler(self.documents())
            case Case.cross_attention:
                return contender.cross_attention(self.documents())
            case Case.prefill_few:
                return contender.prefill(self.prompts(sizes.few_shots, 1))
            case Case.prefill_many:
                return contender.prefill(self.prompts(sizes.many_shots, 1))
            case Case.decode:
                return contender.decode(self.prompts(sizes.many_shots, sizes.decoded_tokens))
            case Case.greedy:
                return contender.generate(self.prompts(sizes.many_shots, sizes.new_tokens))
            case Case.beams:
                return contender.generate(
                    self.prompts(sizes.many_shots, sizes.new_tokens, sizes.beams)
                )
            case Case.rank_few:
                return contender.rank(self.ranking(sizes.few_candidates))
            case Case.rank_many:
                return contender.rank(self.ranking(sizes.many_candidates))
            case Case.evaluation:
                return contender.evaluate(self.evaluation())
            case Case.evaluation_common:
                return contender.evaluate(self.evaluation(common=True))
