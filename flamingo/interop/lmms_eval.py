"""A Flamingo as a model of lmms-eval 0.7, with few-shot demonstrations chosen by us.

Installed beside lmms-eval, this package registers the model ``flamingo`` through the entry point
``lmms_eval.models``, so that lmms-eval's own command finds it::

    python -m lmms_eval --model flamingo --batch_size 8 --tasks TASK \\
        --model_args pretrained=runs/quickstart/seed=0,shots=4,seed=0,pool=train \\
        --output_path outputs/lmms_eval --log_samples

The model's arguments are those of :class:`Flamingo`. Every prediction is written with its prompt
to ``<predictions>/<task>.jsonl``, as :class:`flamingo.evaluation.predictions.Prediction`.

lmms-eval brings documents, questions, generation settings and scores; ours are the demonstrations
(:meth:`flamingo.interop.harness.TaskDocuments.demonstrations`), the template around questions and
answers, and how answers are generated. A task's instructions ("Answer the question using a single
word or phrase.") are part of its question; a task of yours may have others for us, under
``flamingo`` in its ``lmms_eval_specific_kwargs``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    Instance,
    unwrap_generation_output,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
    ModelManifest,
)
from tqdm import tqdm

from flamingo.choices import Precision, Protocol
from flamingo.evaluation.tasks import Kind, task
from flamingo.interop.harness import HarnessTask, TaskDocuments, Turn, opened, shown
from flamingo.interop.loading import load_reader
from flamingo.interop.options import Options
from flamingo.interop.respondent import Asked, Respondent, Settings

REQUESTS_AT_ONCE = 256
"""Requests that are read, sorted by length, answered and written to disk together."""


def manifest() -> ModelManifest:
    """What the entry point ``lmms_eval.models`` registers."""
    return ModelManifest("flamingo", simple_class_path=f"{__name__}.{Flamingo.__name__}")


class Flamingo(lmms):
    """``--model flamingo``; its arguments are those of ``--model_args``.

    Args:
        pretrained: folder (or hub name) of a saved model with its processor, or a run's directory,
            of which the newest checkpoint answers.
        shots: demonstrations before each question.
        seed: draws the demonstrations, and samples where a task wants sampled answers.
        pool: split of the task's data set that demonstrations come from; default: the task's
            ``fewshot_split``, else its ``training_split``.
        kind, protocol: which template stands around questions and answers, and what is kept of an
            answer (names of :class:`flamingo.evaluation.tasks.Kind` and
            :class:`flamingo.choices.Protocol`; their decoding, ensembles and metrics are not used).
        precision: ``auto``, ``bf16`` or ``fp32``; default: a run's own, or ``auto``.
        predictions: folder that gets a file a task.
        max_new_tokens: of an answer, where the task does not say.
        max_tokens: a longer prompt is an error; nothing is ever cut.
        batch_size, device: of lmms-eval's command. A batch is halved where memory runs out; the
            default device is the process's GPU, or the CPU.

    Answers depend on none of batch size, number of processes and limit, nor do demonstrations.
    Several processes (``accelerate launch -m lmms_eval ...``) share the documents as lmms-eval
    divides them.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        shots: int = 0,
        seed: int = 0,
        pool: str | None = None,
        kind: str = "vqa",
        protocol: str = "native",
        precision: str | None = None,
        predictions: str = "outputs/lmms_eval/predictions",
        max_new_tokens: int = 256,
        max_tokens: int = 2048,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal():
            raise ValueError(f"batch_size: expected a number, got {batch_size!r}")
        settings = Settings(
            task=task(_named(Kind, "kind", kind), _named(Protocol, "protocol", protocol)),
            predictions=Path(predictions),
            shots=shots,
            seed=seed,
            pool=pool,
            batch_size=int(batch_size),
            max_tokens=max_tokens,
        )
        wanted = None if precision is None else _named(Precision, "precision", precision)
        self.accelerator = Accelerator()
        self.device = torch.device(device) if device else self.accelerator.device
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self._max_new_tokens = max_new_tokens
        reader = load_reader(pretrained, wanted, self.device)
        self._respondent: Respondent | None = Respondent(reader, settings)
        self._documents: dict[str, TaskDocuments] = {}

    @property
    def respondent(self) -> Respondent:
        """The model under its settings, until :meth:`clean`."""
        if self._respondent is None:
            raise ValueError("model: expected a new one, as lmms-eval has freed this one")
        return self._respondent

    def clean(self) -> None:
        """Free the model, as lmms-eval asks between answering and scoring."""
        self._respondent = None
        super().clean()

    # ------------------------------------------------------------------ what lmms-eval calls

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer a request, in their order."""
        answers: dict[int, str] = {}
        draws = _occurrences(requests)
        with self._progress(len(requests)) as bar:
            for start in range(0, len(requests), REQUESTS_AT_ONCE):
                asked, options = [], []
                for place in range(start, min(start + REQUESTS_AT_ONCE, len(requests))):
                    context, kwargs, visual, index, name, split = requests[place].args
                    document = (visual, index, name, split)
                    asked.append(self._ask(requests[place], context, *document, draws[place]))
                    options.append(Options.of(kwargs, self._max_new_tokens))
                for n, text in self.respondent.answers(asked, options):
                    answers[start + n] = text
                    call = requests[start + n].args[:2]
                    self.cache_hook.add_partial("generate_until", call, text)
                    bar.update()
        return [answers[place] for place in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """(*negative* log-likelihood in nats, whether greedy search says it), one a continuation.

        Negative, of the whole continuation: lmms-eval's own models give losses, and its multiple
        choice takes the smallest. Between question and continuation stands what the template has,
        whatever the task's ``target_delimiter``. As lmms-eval 0.7 makes a text of a bare pair, it
        comes in a ``GenerationResult`` (which its ``--use_cache`` cannot store).
        """
        found: dict[int, tuple[float, bool]] = {}
        template = self.respondent.settings.task.template
        with self._progress(len(requests)) as bar:
            for start in range(0, len(requests), REQUESTS_AT_ONCE):
                asked, texts = [], []
                for request in requests[start : start + REQUESTS_AT_ONCE]:
                    context, target, visual, index, name, split = request.args
                    asked.append(self._ask(request, context, visual, index, name, split))
                    if callable(target):  # a task of output_type loglikelihood
                        target = self._documents[name].demonstration(split, index).answer
                    texts.append(template.answer_text(target.strip()))
                for n, total, greedy in self.respondent.likelihoods(asked, texts):
                    found[start + n] = (-total, greedy)
                    call = requests[start + n].args[:2]
                    self.cache_hook.add_partial("loglikelihood", call, found[start + n])
                    bar.update()
        return [_response(found[place]) for place in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds, a list a request.

        Each round is a prompt of its own, as the task makes it from what was said before. Raises
        ``NotImplementedError`` with demonstrations.
        """
        if self.respondent.settings.shots:
            raise NotImplementedError(
                "shots: expected 0 for tasks of several rounds, whose documents have no one answer "
                f"to demonstrate, got {self.respondent.settings.shots}"
            )
        said: list[list[str]] = [[] for _ in requests]
        state: list[Any] = [None for _ in requests]
        turns = {place: (own.args[0], own.args[2]) for place, own in enumerate(requests)}
        number = 0
        while turns:
            asked, options, places = [], [], list(turns)
            for place, (context, visual) in turns.items():
                _, kwargs, _, _, *document = requests[place].args
                asked.append(self._ask(requests[place], context, visual, *document))
                options.append(Options.of(kwargs, self._max_new_tokens))
            for n, text in self.respondent.answers(asked, options):
                said[places[n]].append(text)
            number += 1
            for place in places:
                _, _, _, following, index, name, split = requests[place].args
                visuals, context, done, outputs, state[place] = following(
                    self.task_dict[name][split][index],
                    previous_output=list(said[place]),
                    round_idx=number,
                    previous_round_info=state[place],
                )
                said[place] = said[place] if outputs is None else list(outputs)
                turns[place] = (context, lambda _, own=visuals: own)
                if done:
                    del turns[place]
        return said

    # ------------------------------------------------------------------ requests

    def _ask(
        self,
        request: Instance,
        context: str,
        doc_to_visual: Any,
        index: int,
        name: str,
        split: str,
        draw: int = 0,
    ) -> Asked:
        """The prompt of a request.

        lmms-eval hands a model no tasks, only a method of the one that a request belongs to; in
        later rounds it is a plain function.
        """
        respondent = self.respondent
        owner = getattr(doc_to_visual, "__self__", None)
        documents = None
        if isinstance(owner, HarnessTask):
            if name not in self._documents:
                self._documents[name] = TaskDocuments(owner, respondent.settings.task.shown)
            documents = self._documents[name]
            alone = not respondent.settings.shots
            query = documents.query(split, index, context, alone=alone)
        else:
            visuals = doc_to_visual(self.task_dict[name][split][index])
            images = opened(visuals, f"{split}/{index} of task {name}")
            query = Turn(f"{split}/{index}", shown(images, images.__getitem__), context)
        padding = request.metadata.get("__padding_only__", False)  # for equal counts on all ranks
        return respondent.ask(name, query, documents, draw=draw, record=not padding)

    def _progress(self, total: int) -> tqdm:
        return tqdm(total=total, desc="Flamingo", unit="request", disable=self.rank != 0)


def _occurrences(requests: list[Instance]) -> list[int]:
    """How often each request came before: lmms-eval repeats the same object for several draws."""
    seen: Counter[int] = Counter()
    draws = []
    for request in requests:
        draws.append(seen[id(request)])
        seen[id(request)] += 1
    return draws


def _response(pair: tuple[float, bool]) -> Any:
    return pair if unwrap_generation_output(pair)[0] == pair else GenerationResult(pair)


def _named(names: Any, field: str, name: str) -> Any:
    """The member of an enum. Raises ``ValueError`` naming the argument."""
    if name not in names.__members__:
        raise ValueError(f"{field}: expected one of {', '.join(names.__members__)}, got {name!r}")
    return names[name]
