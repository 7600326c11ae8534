"""Answers another harness's requests: prompts, answers, and a line on disk for each.

What :mod:`flamingo.interop.lmms_eval` does without lmms-eval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from flamingo.backbones.fingerprint import weights_digest
from flamingo.data.sequence import tokenize
from flamingo.evaluation.continuations import likelihoods
from flamingo.evaluation.draws import generator
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.predictions import Prediction, PredictionFile, prediction_key
from flamingo.evaluation.prompts import prompt_hash, prompt_text
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.evaluation.tasks import Task
from flamingo.interop.harness import TaskDocuments, Turn, prompt
from flamingo.interop.options import Options
from flamingo.model.persistence import trained_state
from flamingo.types import InterleavedSequence, TokenizedSequence

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model answers.

    Of ``task`` the template counts, which answer a demonstration shows, and what is kept of an
    answer; decoding is the harness's. ``pool`` names the split of demonstrations (None: the task's
    own). Predictions go to ``<predictions>/<task>.jsonl``.
    """

    task: Task
    predictions: Path
    shots: int = 0
    seed: int = 0
    pool: str | None = None
    batch_size: int = 1
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("batch_size", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a number >= {least}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a prompt; the last turn is the query.

    ``draw`` counts equal requests, each of which is sampled anew. ``record``: write it to disk.
    """

    task: str
    turns: tuple[Turn, ...]
    sequence: InterleavedSequence
    tokens: TokenizedSequence
    draw: int = 0
    record: bool = True


class Respondent:
    """A reader under settings. Answers depend on neither batch size nor what else is asked."""

    def __init__(self, reader: Reader, settings: Settings) -> None:
        self.reader = reader
        self.settings = settings
        self._weights = weights_digest(trained_state(reader.model).values())[:12]
        self._files: dict[str, PredictionFile] = {}

    def ask(
        self,
        task: str,
        query: Turn,
        documents: TaskDocuments | None,
        *,
        draw: int = 0,
        record: bool = True,
    ) -> Asked:
        """The prompt for a query, its media encoded; demonstrations come from ``documents``.

        Raises ``ValueError`` naming task and query if there should be demonstrations and there are
        none, or if the prompt is too long.
        """
        shots = self.settings.shots
        turns: tuple[Turn, ...] = (query,)
        if shots:
            if documents is None:
                raise ValueError(
                    f"shots: expected 0 where the harness does not tell whose document {query.id} "
                    f"of {task} is (a later round of an agentic task?), got {shots}"
                )
            pool = documents.pool(self.settings.pool)
            chosen = documents.demonstrations(pool, query, shots, self.settings.seed)
            turns = (*chosen, query)
        sequence = prompt(turns, self.settings.task.template)
        try:
            tokens = tokenize(sequence, self.reader.tokenizer, self.settings.max_tokens)
        except ValueError as error:
            raise ValueError(f"{query.id} of task {task} with {shots} shots: {error}") from error
        self.reader.latents.prepare(tokens.media)
        return Asked(task, turns, sequence, tokens, draw, record)

    def answers(
        self, asked: Sequence[Asked], options: Sequence[Options]
    ) -> Iterator[tuple[int, str]]:
        """What counts of each answer, with the index of its prompt, as they come.

        Raises ``ValueError`` before the first one for a prompt beyond the positions that the
        language model has learned, with as many tokens as its answer may have.
        """
        for one, own in zip(asked, options, strict=True):
            self._check_positions(one, own.decoding.max_new_tokens)
        for own, places in grouped(options).items():
            if own.temperature:
                said = ((n, self._sample(asked[place], own)) for n, place in enumerate(places))
            else:
                said = generate_answers(
                    self.reader,
                    [asked[place].tokens for place in places],
                    decoding=own.decoding,
                    batch_size=self.settings.batch_size,
                )
            found: dict[int, Prediction] = {}
            for n, answer in said:
                place = places[n]
                text = self.settings.task.clean(own.cut(answer.text))
                found[place] = self._prediction(asked[place], own.description, answer, text)
                yield place, text
            self._write([(asked[place], found[place]) for place in places])

    def likelihoods(
        self, asked: Sequence[Asked], texts: Sequence[str]
    ) -> Iterator[tuple[int, float, bool]]:
        """For each prompt and the text behind it (leading space included): index, log-likelihood
        in nats, and whether greedy search would say it. Equal prompts are read once.

        Raises ``ValueError`` for an empty text, and for one that goes beyond the positions that the
        language model has learned.
        """
        tokenizer = self.reader.tokenizer
        ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        if () in ids:
            raise ValueError(f"continuation: expected text, got {texts[ids.index(())]!r}")
        for own, continuation in zip(asked, ids, strict=True):
            self._check_positions(own, len(continuation))
        same = list(grouped((own.task, own.turns) for own in asked).values())
        scored = likelihoods(
            self.reader,
            [asked[places[0]].tokens for places in same],
            [[ids[place] for place in places] for places in same],
            batch_size=self.settings.batch_size,
        )
        for number, own in scored:
            lines = []
            for place, one in zip(same[number], own, strict=True):
                text = texts[place]
                answer = Answer(text, text.strip(), math.exp(one.total), (one.total,))
                lines.append((asked[place], self._prediction(
                    asked[place], f"likelihood of {text!r}", answer, answer.text, (text,)
                )))  # fmt: skip
                yield place, one.total, one.greedy
            self._write(lines)

    def _check_positions(self, asked: Asked, new: int) -> None:
        try:
            self.reader.check_positions(asked.tokens, new)
        except ValueError as error:
            raise ValueError(f"{asked.turns[-1].id} of task {asked.task}: {error}") from error

    @torch.no_grad()
    def _sample(self, asked: Asked, options: Options) -> Answer:
        """One answer, drawn alone: by the seed and the request, whatever else is asked."""
        reader, query = self.reader, asked.turns[-1]
        draw = generator(self.settings.seed, asked.task, query.id, query.question, asked.draw)
        inputs: dict[str, Any] = reader.inputs([(asked.tokens.input_ids, asked.tokens.media)])
        devices = [reader.device] if reader.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), reader.autocast():
            torch.manual_seed(draw.getrandbits(63))
            output = reader.model.generate(
                **inputs,
                do_sample=True,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                max_new_tokens=options.decoding.max_new_tokens,
                output_scores=True,
                return_dict_in_generate=True,
            )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :]
        scores = torch.stack(output.scores, dim=1)[0].float().log_softmax(dim=-1)
        total = scores.gather(1, ids[:, None]).sum().item()
        raw, said = (
            str(reader.tokenizer.decode(ids, skip_special_tokens=skip)) for skip in (False, True)
        )
        return Answer(raw, said.strip(), math.exp(total))

    def _prediction(
        self,
        asked: Asked,
        how: str,
        answer: Answer,
        text: str,
        candidates: tuple[str, ...] = (),
    ) -> Prediction:
        *demonstrations, query = asked.turns
        hashed = prompt_hash(asked.sequence, candidates)
        how = f"{how}, {self.reader.dtype}, draw {asked.draw}"
        return Prediction(
            key=prediction_key(self._weights, query.id, len(demonstrations), hashed, "", how),
            model=self._weights,
            query=query.id,
            shots=len(demonstrations),
            demonstrations=[turn.id for turn in demonstrations],
            prompt_hash=hashed,
            prompt=prompt_text(asked.sequence),
            candidates=list(candidates),
            raw=answer.raw,
            answer=text,
            target="",  # the harness scores
            probability=answer.probability,
            score=None,
            group=asked.task,
            cluster=" ".join(medium.frames[0].key for medium in query.media),
        )

    def _write(self, predictions: Sequence[tuple[Asked, Prediction]]) -> None:
        places = grouped(asked.task for asked, _ in predictions)
        for task, own in places.items():
            lines = [predictions[place][1] for place in own if predictions[place][0].record]
            if task not in self._files:
                self._files[task] = PredictionFile(self.settings.predictions / f"{task}.jsonl")
            self._files[task].append(lines)


def grouped(keys: Iterable[Key]) -> dict[Key, list[int]]:
    """Where each key stands, keys in the order in which they first come."""
    groups: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return groups
