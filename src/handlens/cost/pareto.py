"""The Pareto front: what no other beats in both price and worth."""

from __future__ import annotations

from collections.abc import Sequence


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices, cheapest first, of those for which no other costs as little and is worth as much, or more.

    Of those equal in both the first stays.
    """
    kept: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i)):
        if not kept or values[index] > values[kept[-1]]:
            kept.append(index)
    return kept
