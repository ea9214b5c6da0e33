"""Figures as PNG bytes. matplotlib's object interface: no window, no global state, any thread."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from handlens.errors import missing_extra


def figure(width: float, height: float) -> Any:
    """An empty Figure of so many inches, to be drawn on and given to `png`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("evaluate", "matplotlib") from None
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def png(figure: Any) -> bytes:
    """A Figure as a PNG file's bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def drawable(names: Sequence[str], longest: int = 28) -> list[str]:
    """The names as matplotlib's own font can draw them: cut to `longest`, or the number, from 1, in their place."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    known = FT2Font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return [
        str(number)
        if any(ord(letter) not in known or not letter.isprintable() for letter in name)
        else name
        if len(name) <= longest
        else name[: longest - 1] + "…"
        for number, name in enumerate(names, 1)
    ]
