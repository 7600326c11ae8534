"""Work: which predictions are missing, which process makes them, and in which order."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from itertools import groupby

from flamingo.choices import Condition
from flamingo.evaluation.cells import Cell, PromptLengths

QUERIES_AT_ONCE = 256
"""Queries whose prompts, under every shot count, seed and condition, are read one after another.

They show the same images, so that few latents have to be kept for each image to be encoded once;
and the prompts of a cell among them are sorted by length together.
"""

Places = Sequence[Sequence[int]]
"""For each cell the places of some of its episodes."""


def missing_places(
    cells: Sequence[Cell], known: Callable[[Cell], Container[str]]
) -> list[list[int]]:
    """The episodes whose keys are not ``known`` of their cell; equal prompts only once."""
    planned: set[tuple[str, Condition, str]] = set()
    missing = []
    for cell in cells:
        there, own = known(cell), []
        for place, key in enumerate(cell.keys):
            named = (cell.benchmark.name, cell.condition, key)
            if key not in there and named not in planned:
                planned.add(named)
                own.append(place)
        missing.append(own)
    return missing


def share_out(
    cells: Sequence[Cell], missing: Places, lengths: PromptLengths, count: int
) -> list[list[list[int]]]:
    """``missing`` divided among ``count`` processes, each episode to exactly one.

    All prompts of a query go to the same process, where they share images. The costliest query
    (most tokens) goes first, always to the process that has least to read: the totals differ by
    at most one query. A pure function of its arguments: every process computes the same.
    """
    if count == 1:
        return [[list(own) for own in missing]]
    costs: dict[tuple[str, str], int] = defaultdict(int)
    for cell, own in zip(cells, missing, strict=True):
        for place in own:
            episode = cell.episodes[place]
            costs[_query(cell, place)] += lengths(episode, cell.benchmark.task.template)
    loads = [(0, process) for process in range(count)]
    belongs = {}
    for query in sorted(costs, key=lambda query: (-costs[query], query)):
        load, process = heapq.heappop(loads)
        belongs[query] = process
        heapq.heappush(loads, (load + costs[query], process))
    return [
        [
            [place for place in own if belongs[_query(cell, place)] == process]
            for cell, own in zip(cells, missing, strict=True)
        ]
        for process in range(count)
    ]


def in_order(cells: Sequence[Cell], own: Places) -> Iterator[tuple[Cell, list[int]]]:
    """The episodes at the places ``own`` of a cell, :data:`QUERIES_AT_ONCE` queries at a time.

    A benchmark's queries come in the order of its cells; all cells of some before the next ones.
    """
    pairs = zip(cells, own, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].benchmark.name):
        together = list(group)
        queries = [_query(cell, place) for cell, places in together for place in places]
        number = {query: n for n, query in enumerate(dict.fromkeys(queries))}
        blocks: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, (cell, places) in enumerate(together):
            for place in places:
                blocks[number[_query(cell, place)] // QUERIES_AT_ONCE, index].append(place)
        for (_, index), places in sorted(blocks.items()):
            yield together[index][0], places


def _query(cell: Cell, place: int) -> tuple[str, str]:
    return cell.benchmark.name, cell.episodes[place].query.id
