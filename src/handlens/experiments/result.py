"""What an experiment gives, and the figure it draws on."""

from __future__ import annotations

import dataclasses
from typing import Any

from handlens import figures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What an experiment found.

    finding: what the numbers say, made from them: where that is not what the paper says, it is said.
    tables:  by title, rows of equal keys, units in the keys.
    numbers: all else, JSON-ready.
    data:    what it was measured on: photos, split, number of random draws.
    figure:  matplotlib's Figure.
    """

    finding: str
    tables: dict[str, list[dict[str, Any]]]
    numbers: dict[str, Any]
    data: dict[str, Any]
    figure: Any

    def png(self) -> bytes:
        """The figure as a PNG file's bytes."""
        return figures.png(self.figure)


def panels(columns: int, rows: int = 1, width: float = 4.4, height: float = 3.5) -> tuple[Any, list[Any]]:
    """A figure without a window, and its axes row by row; `width` and `height` of one in inches."""
    figure = figures.figure(columns * width, rows * height)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
