"""The assignment of the greatest total weight, one row to one column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def best_assignment(weights: Sequence[Sequence[float]]) -> list[int | None]:
    """The column of each row, so that no two rows share one and the sum of weights is greatest.

    ``weights`` is ``(row, column)``, finite. With more rows than columns, the rows that are left
    over get None. Shortest augmenting paths (Jonker and Volgenant 1987), as
    ``scipy.optimize.linear_sum_assignment`` has it; cubic in the smaller side. Among assignments
    of equal sum any may be returned, always the same for the same weights.
    """
    costs = -np.asarray(weights, dtype=np.float64)
    if costs.size == 0:
        return [None] * len(weights)
    if costs.shape[0] > costs.shape[1]:
        columns: list[int | None] = [None] * costs.shape[0]
        for column, row in enumerate(_assign(costs.T)):
            columns[row] = column
        return columns
    return list(_assign(costs))


def _assign(costs: np.ndarray) -> list[int]:
    """The column of each row at the least total cost, with no more rows than columns."""
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)  # the row of each column
    for row in range(rows):
        distance = np.full(columns, np.inf)
        before = np.full(columns, -1)  # the column before on the path to each
        visited = np.zeros(columns, dtype=bool)
        reached, current, last = 0.0, row, -1
        while current >= 0:
            through = reached + costs[current] - row_price[current] - column_price
            shorter = ~visited & (through < distance)
            distance[shorter], before[shorter] = through[shorter], last
            last = int(np.argmin(np.where(visited, np.inf, distance)))
            reached = distance[last]
            visited[last] = True
            current = owner[last]
        row_price[row] += reached
        passed = visited & (owner >= 0)
        row_price[owner[passed]] += reached - distance[passed]
        column_price[visited] -= reached - distance[visited]
        while last >= 0:  # along the path back, each column goes to the row before it
            owner[last] = owner[before[last]] if before[last] >= 0 else row
            last = before[last]
    result = np.empty(rows, dtype=int)
    taken = owner >= 0
    result[owner[taken]] = np.flatnonzero(taken)
    return result.tolist()
