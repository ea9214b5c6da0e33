"""Pictures of scores, as PNG bytes: the confusion matrix and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from handlens import figures
from handlens.evaluate.calibration import Bin

MOST_NUMBERS = 25  # with more classes the cells are too small for their counts
MOST_NAMES = 120  # and with more than this, the axes for their names


def confusion(counts: np.ndarray, classes: Sequence[str]) -> bytes:
    """The confusion matrix (K, K), row the true class, as a PNG: cells are shaded by their share of the row.

    Names that matplotlib's font cannot draw (Chinese, emoji) appear as their number, counted from 1.
    """
    count = len(classes)
    inches = float(np.clip(2.5 + 0.32 * count, 4.5, 14))
    figure = figures.figure(inches, inches)
    axes = figure.add_subplot()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")
    if count <= MOST_NAMES:
        names = figures.drawable(classes)
        size = float(np.clip(300 / count, 4, 10))
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    if count <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    return figures.png(figure)


def reliability(sides: Mapping[str, tuple[Sequence[Bin], float]]) -> bytes:
    """Reliability diagrams side by side as a PNG: by title, the bins and the expected calibration error.

    A bar's height is how often answers of that probability are right; its colour's depth, how many there are.
    """
    figure = figures.figure(4.2 * len(sides), 4.2)
    for place, (title, (bins, error)) in enumerate(sides.items(), 1):
        axes = figure.add_subplot(1, len(sides), place, aspect="equal", xlim=(0, 1), ylim=(0, 1))
        most = max(found.num_photos for found in bins)
        for found in bins:
            depth = 0.25 + 0.75 * found.num_photos / most
            axes.bar(found.low, found.accuracy, found.high - found.low, align="edge", color="#1f6fb4", alpha=depth,
                     edgecolor="white")  # fmt: skip
            axes.plot(found.confidence, found.accuracy, "o", color="black", markersize=3)
        axes.plot((0, 1), (0, 1), "--", color="grey", linewidth=1)
        axes.set_title(f"{title}: calibration error {error:.1%}", fontsize=10)
        axes.set_xlabel("probability of the answer")
        axes.set_ylabel("how often it is right")
    return figures.png(figure)
