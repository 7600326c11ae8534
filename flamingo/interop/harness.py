"""Documents of another harness's tasks as demonstrations and prompts; needs no harness installed.

The pure core of :mod:`flamingo.interop.lmms_eval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from flamingo.data.features import content_hash
from flamingo.evaluation.demonstrations import plan_random
from flamingo.evaluation.prompts import Template, joined
from flamingo.images import as_rgb, open_image
from flamingo.types import (
    END_OF_CHUNK_TOKEN,
    IMAGE_TOKEN,
    ImageRef,
    InterleavedSequence,
    Media,
    Text,
)

DOCUMENTS_IN_MEMORY = 64
"""Documents whose opened images are kept, between identifying and encoding them."""

# ---------------------------------------------------------------------------- documents


@runtime_checkable
class HarnessTask(Protocol):
    """What is used of a task of lmms-eval 0.7 (``lmms_eval.api.task.ConfigurableTask``)."""

    config: Any
    dataset: Any

    def fewshot_context(self, doc: Any, num_fewshot: int) -> Any: ...
    def doc_to_target(self, doc: Any) -> Any: ...
    def doc_to_choice(self, doc: Any) -> Any: ...
    def doc_to_visual(self, doc: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Turn:
    """A document as a demonstration, or, without answer, as the query: any number of images."""

    id: str
    media: tuple[Media, ...]
    question: str
    answer: str = ""


def opened(visuals: object, where: str) -> tuple[Image.Image, ...]:
    """What ``doc_to_visual`` gave as RGB images, as ``open_image`` gives them; None is no image.

    Raises ``ValueError`` naming ``where`` for anything but images (video, audio).
    """
    if visuals is None:
        return ()
    suffixes = Image.registered_extensions()
    images = []
    for visual in visuals if isinstance(visuals, list | tuple) else [visuals]:
        if isinstance(visual, Image.Image):
            images.append(as_rgb(visual, where))
        elif isinstance(visual, str) and Path(visual).suffix.lower() in suffixes:
            images.append(open_image(visual))
        else:
            raise ValueError(
                f"{where}: expected images, got {visual!r:.80}: video and audio are not supported"
            )
    return tuple(images)


def shown(images: Sequence[Image.Image], again: Callable[[int], Image.Image]) -> tuple[Media, ...]:
    """A medium an image, with its content as its key; ``again(n)`` opens number ``n`` anew."""
    keys = [content_hash(image).hex() for image in images]
    return tuple(Media((ImageRef(key, partial(again, n)),)) for n, key in enumerate(keys))


class TaskDocuments:
    """The documents of a task as turns: each is read once, its images are opened when needed.

    An image's key is its content, so that one image in several documents, splits or tasks is one.
    ``choose`` picks the answer that a demonstration shows from all right ones
    (:attr:`flamingo.evaluation.tasks.Task.shown`).
    """

    def __init__(self, task: HarnessTask, choose: Callable[[Sequence[str]], str]) -> None:
        self._task = task
        self._choose = choose
        self._media: dict[str, tuple[Media, ...]] = {}
        self._turns: dict[str, Turn] = {}
        self._rows = cache(self._read_split)
        self._ids = cache(self._list_split)
        self._images = lru_cache(maxsize=DOCUMENTS_IN_MEMORY)(self._open_images)

    @property
    def name(self) -> str:
        return self._task.config.task

    def pool(self, split: str | None) -> str:
        """The split that demonstrations come from: ``split``, or the task's own.

        Raises ``ValueError`` naming the task if there is none.
        """
        config = self._task.config
        own = split or config.fewshot_split or config.training_split
        if own is None:
            raise ValueError(
                f"pool: expected the name of a split, as task {self.name} has neither a "
                f"fewshot_split nor a training_split to take demonstrations from, got none; its "
                f"data set has {sorted(self._task.dataset)} (or give shots=0)"
            )
        self._rows(own)
        return own

    def media(self, split: str, index: int) -> tuple[Media, ...]:
        """The images of a document."""
        name = f"{split}/{index}"
        if name not in self._media:
            again = partial(self._open, split, index)
            self._media[name] = shown(self._images(split, index), again)
        return self._media[name]

    def query(self, split: str, index: int, context: str, *, alone: bool = True) -> Turn:
        """A document as the harness asks about it.

        With demonstrations (not ``alone``) its ``context`` must be the task's own question and
        nothing else, as theirs is: more is a ``ValueError``.
        """
        name = f"{split}/{index}"
        if not alone and context != (own := self._question(self._rows(split)[index], name)):
            raise ValueError(
                f"shots: expected the context of {name} to be task {self.name}'s own question "
                f"{own!r} (no num_fewshot or system_instruction of the harness), got {context!r}"
            )
        return Turn(name, self.media(split, index), context)

    def demonstration(self, split: str, index: int) -> Turn:
        """A document with its question as the harness would ask it, and its answer."""
        name = f"{split}/{index}"
        if name not in self._turns:
            doc = self._rows(split)[index]
            question = self._question(doc, name)
            self._turns[name] = Turn(
                name, self.media(split, index), question, self.answer(doc, name)
            )
        return self._turns[name]

    def demonstrations(self, pool: str, query: Turn, shots: int, seed: int) -> tuple[Turn, ...]:
        """``shots`` documents of the split ``pool``, drawn for ``query``; the last stands next.

        Drawn by :func:`flamingo.evaluation.demonstrations.plan_random`: a pure function of the
        seed, the task's name, the query's id (split and index) and the pool, the ``k``-shot set
        the last ``k`` of any longer one. What is the query's own document or shows one of its
        images is passed over when drawn. That is found out for what was drawn alone, as the plan
        is the same as if all such documents of the pool were known beforehand.

        Raises ``ValueError`` if there are fewer than ``shots``.
        """
        ids = self._ids(pool)
        keys = {medium.frames[0].key for medium in query.media}
        split, own = _address(query.id)
        gone = {own} if split == pool else set()
        while True:
            plan = plan_random(seed, self.name, query.id, ids, shots, gone)
            places = [_address(name)[1] for name in plan.demonstrations]
            same = {
                index
                for index in places
                if any(m.frames[0].key in keys for m in self.media(pool, index))
            }
            if not same:
                return tuple(self.demonstration(pool, index) for index in places)
            gone |= same

    def answer(self, doc: Any, name: str) -> str:
        """The answer of a document as text. Raises ``ValueError`` if it has none."""
        target = self._task.doc_to_target(doc)
        choices = None
        if self._task.config.doc_to_choice is not None:
            choices = self._task.doc_to_choice(doc)
        texts = []
        for own in target if isinstance(target, list | tuple) else [target]:
            if isinstance(own, int) and not isinstance(own, bool) and choices is not None:
                own = choices[own]
            if not isinstance(own, str | int | float) or not str(own).strip():
                raise ValueError(
                    f"doc_to_target: expected the answer of {name} of task {self.name}, to show "
                    f"it as a demonstration, got {target!r:.80}"
                )
            texts.append(str(own).strip())
        if not texts:
            raise ValueError(f"doc_to_target: expected an answer of {name} of {self.name}, got []")
        return self._choose(texts)

    def _question(self, doc: Any, name: str) -> str:
        question = self._task.fewshot_context(doc=doc, num_fewshot=0)
        if not isinstance(question, str):
            raise ValueError(
                f"doc_to_text: expected one text for {name} of task {self.name}, got "
                f"{question!r:.80}; tasks with several contexts a document need shots=0"
            )
        return question

    def _read_split(self, split: str) -> Any:
        """The rows of a split, as the task processes those it names."""
        task, config = self._task, self._task.config
        if split not in task.dataset:
            raise ValueError(
                f"pool: expected a split of task {self.name}'s data set, one of "
                f"{sorted(task.dataset)}, got {split!r}"
            )
        named = (config.training_split, config.validation_split, config.test_split)
        rows = task.dataset[split]
        if config.process_docs is not None and split not in (*named, config.fewshot_split):
            rows = config.process_docs(rows)
        return rows

    def _list_split(self, split: str) -> list[str]:
        return [f"{split}/{index}" for index in range(len(self._rows(split)))]

    def _open_images(self, split: str, index: int) -> tuple[Image.Image, ...]:
        visuals = self._task.doc_to_visual(self._rows(split)[index])
        return opened(visuals, f"{split}/{index} of task {self.name}")

    def _open(self, split: str, index: int, number: int) -> Image.Image:
        return self._images(split, index)[number]


def _address(name: str) -> tuple[str, int]:
    """Split and index of a document's id."""
    split, _, index = name.rpartition("/")
    return split, int(index)


# ---------------------------------------------------------------------------- prompts


def prompt(turns: Sequence[Turn], template: Template) -> InterleavedSequence:
    """Demonstrations with their answers, then the last turn without."""
    *demonstrations, query = turns
    segments: list[Text | Media] = []
    for turn in demonstrations:
        answer = template.answer_text(turn.answer)
        ending = Text(f"{answer}{END_OF_CHUNK_TOKEN}{template.separator}")
        segments += [*_asked(turn, template), ending]
    segments += _asked(query, template)
    return InterleavedSequence(tuple(joined(segments) if template.whole else segments))


def _asked(turn: Turn, template: Template) -> list[Text | Media]:
    """Images where the text has ``<image>`` for them, else in front of it."""
    first, *rest = template.question_text(turn.question).split(IMAGE_TOKEN)
    if not rest:
        return [*turn.media, Text(first)]
    if len(rest) != len(turn.media):
        raise ValueError(
            f"{turn.id}: expected an image for each of its {len(rest)} {IMAGE_TOKEN}, "
            f"got {len(turn.media)} images"
        )
    segments: list[Text | Media] = [Text(first)] if first else []
    for medium, text in zip(turn.media, rest, strict=True):
        segments += [medium, Text(text)] if text else [medium]
    return segments
