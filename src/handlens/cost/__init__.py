"""What a network costs, counted: `count`, `count_params`."""

from __future__ import annotations

from handlens.cost.count import Cost, count, count_params

__all__ = ["Cost", "count", "count_params"]
