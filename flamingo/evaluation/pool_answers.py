"""What the pool of demonstrations answers to a question alone: no image, no model, no context."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, cached_property

from flamingo.evaluation.baselines import Guess, most_frequent
from flamingo.evaluation.prompts import Item
from flamingo.evaluation.question_index import QuestionIndex


class PoolAnswers:
    """The answers of ``pool`` by question.

    Items that show an image of the query never count: where a benchmark has one split alone, the
    query itself is among them.
    """

    def __init__(self, pool: Sequence[Item]) -> None:
        self._answers: dict[str, Counter[str]] = defaultdict(Counter)
        self._on_image: dict[str, list[Item]] = defaultdict(list)
        for item in pool:
            self._answers[item.question][item.answer] += 1
            for key in _images(item):
                self._on_image[key].append(item)

    @property
    def tells(self) -> bool:
        """Whether questions say anything: there is one that is not empty."""
        return not self._answers.keys() <= {""}

    @property
    def differ(self) -> bool:
        """Whether there is more than one question, of which one can be nearest."""
        return len(self._answers) > 1

    @cache  # noqa: B019 - lives as long as the baselines; every shot count asks the same
    def prior(self, query: Item) -> Guess:
        """The most frequent answers to the same question; none where nobody asked it."""
        return most_frequent(self._elsewhere(query.question, query))

    @cache  # noqa: B019
    def nearest_question(self, query: Item) -> Guess:
        """The most frequent answers to the questions most like the query's, itself the first."""
        barred = frozenset(
            self._place[item.question]
            for key in _images(query)
            for item in self._on_image.get(key, ())
            if not self._elsewhere(item.question, query)
        )
        alike = self._index.nearest(query.question, barred)
        together: Counter[str] = Counter()
        for place in alike:
            together += self._elsewhere(self._index.questions[place], query)
        return most_frequent(together)

    @cached_property
    def _index(self) -> QuestionIndex:
        return QuestionIndex(list(self._answers))

    @cached_property
    def _place(self) -> dict[str, int]:
        return {question: place for place, question in enumerate(self._index.questions)}

    def _elsewhere(self, question: str, query: Item) -> Counter[str]:
        """The answers to ``question`` on other images than the query's, without zeros."""
        answers = self._answers.get(question, Counter())
        own = {
            item.id: item.answer
            for key in _images(query)
            for item in self._on_image.get(key, ())
            if item.question == question
        }
        return answers - Counter(own.values())


def _images(item: Item) -> list[str]:
    """The keys of an item's frames, each once."""
    return [] if item.media is None else list({frame.key: None for frame in item.media.frames})
