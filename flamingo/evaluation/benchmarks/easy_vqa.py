"""easy-VQA: open questions about one coloured shape; demonstrations from the training split.

Data: https://github.com/vzhou842/easy-VQA (MIT). 13 answers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from flamingo.data.sources.easy_vqa import ANSWERS, image_ref, load_questions
from flamingo.evaluation.demonstrations import generator, plan_random
from flamingo.evaluation.prompts import QUESTION, Episode, Item
from flamingo.types import Media

LONGEST = 32
"""Demonstrations of a plan (more if more are asked for)."""


class EasyVQABenchmark:
    """Test questions drawn by ``seed``; ``queries=0`` takes all of them.

    Ids are ``<split>/<place in questions.json>``. Raises ``ValueError`` for more queries than
    there are.
    """

    name = "easy_vqa"
    title = "easy-VQA"
    unit = "demonstrations"
    template = QUESTION

    def __init__(self, folder: Path, queries: int, seed: int, shots: Sequence[int]) -> None:
        self.seed = seed
        self.shots = shots
        self.chance = 1 / len(ANSWERS)
        self._folder = folder
        self._questions = {split: load_questions(folder, split) for split in ("train", "test")}
        test = len(self._questions["test"])
        if not 0 <= queries <= test:
            raise ValueError(
                f"evaluation.easy_vqa.queries: expected 0 (all) to {test}, got {queries}"
            )
        # A permutation cut short: fewer queries are the first of more.
        order = generator(seed, self.name, "queries").sample(range(test), test)
        self._queries = [f"test/{index}" for index in order[: queries or test]]
        self._pool = [f"train/{index}" for index in range(len(self._questions["train"]))]

    def unfit(self, shots: int) -> str | None:
        if shots > len(self._pool):
            return f"the training split has {len(self._pool)} questions"
        return None

    def episodes(self, shots: int) -> list[Episode]:
        return [self._episode(query, shots) for query in self._queries]

    def _episode(self, query: str, shots: int) -> Episode:
        longest = min(max(shots, LONGEST), len(self._pool))
        plan = plan_random(self.seed, self.name, query, self._pool, longest)
        item = self._item(query)
        assert item.media is not None
        return Episode(
            query=item,
            demonstrations=tuple(self._item(name) for name in plan.last(shots)),
            shots=shots,
            group=question_type(item.question),
            cluster=item.media.frames[0].key,
        )

    def _item(self, item_id: str) -> Item:
        split, _, place = item_id.partition("/")
        question = self._questions[split][int(place)]
        media = Media((image_ref(self._folder, split, question.image_id),))
        return Item(item_id, media, question.question, question.answer)

    @cached_property
    def _prior(self) -> dict[str, str]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for question in self._questions["train"]:
            counts[question.question][question.answer] += 1
        # The most frequent answer; of equally frequent ones the first in the alphabet.
        return {
            asked: min(c, key=lambda answer: (-c[answer], answer)) for asked, c in counts.items()
        }

    def prior(self) -> Mapping[str, str]:
        """The most frequent answer to each question in the training split."""
        return self._prior


def question_type(question: str) -> str:
    """``shape``, ``colour`` or ``yes-no``, from the words of the question."""
    if not question.lower().startswith("what"):
        return "yes-no"
    return "colour" if "color" in question.lower() else "shape"
