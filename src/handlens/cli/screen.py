"""What the commands show: bars and notes on standard error, tables and JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

SECONDS_BETWEEN_LINES = 30.0  # where standard error is no terminal, progress is a line this often at most


@contextlib.contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar on standard error with rate and time left; gives `update(done, total)`, which any thread may call.

    Rate and time left count from the first update on, what was done before it having been there already; who knows
    better gives `update` a `rate` in words and `left_s`, seconds.
    The bar appears at the first update: work that turns out to be done already shows none.
    Where standard error is not a terminal it is one plain line every 30 seconds at most, and none for short work.
    """
    label = _escaped(label)
    if not sys.stderr.isatty():
        yield _lines(label, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    first: tuple[int, float] | None = None
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[left]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(label, total=total, rate="", left="")

    def update(done: int, total: int | None = total, *, rate: str = "", left_s: float | None = None) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or (done, now)
        a_second = (done - first[0]) / max(1e-9, now - first[1])
        if a_second > 0:
            rate = rate or (f"{a_second:.0f}/s" if a_second >= 10 else f"{a_second:.1f}/s")
            left_s = (total - done) / a_second if left_s is None and total else left_s
        left = "-:--:--" if left_s is None else _clock(left_s)
        bar.update(task, completed=done, total=total or None, rate=rate, left=left)
        bar.start()  # does nothing when it runs already

    try:
        yield update
    finally:
        bar.stop()


def _lines(label: str, total: int | None) -> Callable[..., None]:
    last = time.monotonic()

    def update(done: int, total: int | None = total, *, rate: str = "", left_s: float | None = None) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            far = f"{done} of {total}" if total else f"{done}"
            left = "" if left_s is None else f"{_clock(left_s)} left"
            note(f"{label}: {', '.join(filter(None, (far, rate, left)))}")

    return update


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard output: with rules on a terminal, plain aligned columns elsewhere.

    Numbers are right-aligned; floats are shown as they are given, so format them before; None is an empty cell. On a
    terminal that is too narrow, headings and texts are broken into lines, but for numbers and the first column; words,
    such as paths, only where nothing else helps.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title, columns = _escaped(title), [_escaped(column) for column in columns]
    rows = [[None if cell is None else _escaped(str(cell)) for cell in row] for row in rows]
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else 10_000, highlight=False, color_system=None)
    numeric = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    longest = [max([1, *(cell_len(str(row[i])) for row in rows if row[i] is not None)]) for i in range(len(columns))]
    widths = [max(cell_len(column), cells) for column, cells in zip(columns, longest, strict=True)]
    # A name or a number in two lines could not be copied: headings and other texts are broken instead.
    words = [max([1, *map(cell_len, column.split())]) for column in columns]
    least = [max(words[i], cells if numeric[i] or not i else min(12, cells)) for i, cells in enumerate(longest)]
    texts = [[word for row in rows for word in str(row[i] or "").split()] for i in range(len(columns))]
    whole = [max([lowest, *map(cell_len, text)]) for lowest, text in zip(least, texts, strict=True)]
    gap = 3 if sum(widths) + 3 * len(widths) <= console.width else 2
    for floor in (whole, least):
        while sum(widths) + gap * len(widths) > console.width and widths != floor:
            loosest = max(range(len(widths)), key=lambda i: (widths[i] - floor[i], widths[i]))
            widths[loosest] -= 1
    console.width = max(console.width, sum(widths) + gap * len(widths))  # the terminal breaks what is still too wide
    shown = Table(
        box=box.SIMPLE_HEAD if terminal else None,
        title=title or None,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, gap - 2),
    )
    for column, width, number in zip(columns, widths, numeric, strict=True):
        shown.add_column(Text(column), justify="right" if number else "left", width=width, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell or "") for cell in row))  # Text: no markup in class names
    with console.capture() as captured:
        console.print(shown)
    _print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _is_number(cell: Any) -> bool:
    digits = str(cell).replace(",", "").replace(".", "").strip("-+% ")
    return cell is None or digits.isdigit()


def print_json(value: Any) -> None:
    """Print one JSON value on standard output. NaN and infinities become null, arrays lists, and paths strings."""
    value = _plain(value)
    in_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, indent=2, ensure_ascii=not in_utf8, allow_nan=False)  # a code page's letters are no JSON
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not text
        text = json.dumps(value, indent=2, allow_nan=False)
    print(text, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(member) for key, member in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, without importing numpy
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def note(text: str) -> None:
    """Print a line on standard error."""
    _print(text, sys.stderr)


def say(text: str) -> None:
    """Print a line on standard output."""
    _print(text)


def _print(text: str, stream: Any = None) -> None:
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    text = _escaped(text, kept="\n\t")
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _escaped(text: str, kept: str = "") -> str:
    """The text with control characters as Python writes them: a file's name could else steer the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0] if found[0] in kept else repr(found[0])[1:-1], text)
