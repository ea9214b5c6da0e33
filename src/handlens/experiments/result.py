"""What an experiment gives, and the figure it draws on."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

from handlens.errors import missing_extra


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
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def panels(columns: int, rows: int = 1, width: float = 4.4, height: float = 3.5) -> tuple[Any, list[Any]]:
    """A figure without a window, and its axes row by row; `width` and `height` of one in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("evaluate", "matplotlib") from None
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
