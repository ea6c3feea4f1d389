"""Exact assignment of things to proposals, with pairs of proposals that exclude each other."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from impasto.data.concepts import Box, area, intersection

SHARED = 0.5  # of the smaller of two boxes within the other: they exclude each other


def assign(cost: np.ndarray, boxes: Sequence[Box]) -> list[int] | None:
    """For each column of cost [proposals, things] its row, all different, with the smallest sum of costs, none of two
    boxes that share more than SHARED of the smaller one; None where there is no such choice.

    Depth first with the sum of the smallest costs of what remains as the bound: exact, for a few things.
    """
    proposals, things = cost.shape
    excluded = np.eye(proposals, dtype=bool)
    for i, j in combinations(range(proposals), 2):
        shared = intersection(boxes[i], boxes[j]) / min(area(boxes[i]), area(boxes[j]))
        excluded[i, j] = excluded[j, i] = shared > SHARED
    order = np.argsort(cost, axis=0)
    remaining = np.append(np.cumsum(cost.min(0)[::-1])[::-1], 0.0)
    best: tuple[float, list[int] | None] = (np.inf, None)

    def search(thing: int, chosen: list[int], total: float) -> None:
        nonlocal best
        if thing == things:
            best = (total, chosen)
            return
        for row in order[:, thing].tolist():
            if total + cost[row, thing] + remaining[thing + 1] >= best[0]:
                return
            if not excluded[row, chosen].any():
                search(thing + 1, [*chosen, row], total + cost[row, thing])

    search(0, [], 0.0)
    return best[1]
