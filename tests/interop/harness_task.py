"""A task as a harness has it, in memory: questions about coloured shapes, and a model's reader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flamingo.data.features import content_hash
from flamingo.testing import COLOURS, SHAPES, draw

CONFIG = {
    "training_split": "train",
    "validation_split": None,
    "test_split": "test",
    "fewshot_split": None,
    "process_docs": None,
    "doc_to_choice": None,
}


def documents(count: int, first: int) -> list[dict[str, Any]]:
    """Number ``n`` shows shape number ``n % 12``; all pictures differ from each other."""
    names = [(colour, shape) for shape in SHAPES for colour in COLOURS]
    return [
        {
            "image": draw(*names[number % 12], seed=number),
            "question": f"what shape {number}?",
            "answer": names[number % 12][1],
        }
        for number in range(first, first + count)
    ]


class FakeTask:
    """What lmms-eval's ``ConfigurableTask`` does, for the columns of :func:`documents`."""

    def __init__(self, train: int = 20, test: int = 6, **config: Any) -> None:
        self.config = SimpleNamespace(**{**CONFIG, "task": "shapes", **config})
        self.dataset = {"train": documents(train, 100), "test": documents(test, 0)}
        self.opened: list[str] = []

    def fewshot_context(self, doc: Any, num_fewshot: int) -> Any:
        assert num_fewshot == 0
        return doc["question"]

    def doc_to_target(self, doc: Any) -> Any:
        return doc["answer"]

    def doc_to_choice(self, doc: Any) -> Any:
        return doc["choices"]

    def doc_to_visual(self, doc: Any) -> Any:
        self.opened.append(doc["question"])
        return None if doc["image"] is None else [doc["image"]]


def key(image: Any) -> str:
    return content_hash(image).hex()
