"""Ranges of activations from calibration photos: what float values the 256 steps of a tensor are to cover."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import numpy as np

Observer = Literal["minmax", "percentile", "mse", "entropy"]
OBSERVERS: tuple[Observer, ...] = ("minmax", "percentile", "mse", "entropy")
BINS = 2048
PERCENTILE = 99.99
LEVELS = 256
CANDIDATES = 64  # clipped ranges that "mse" and "entropy" choose from

Activations = Callable[[], Iterable[Mapping[str, np.ndarray]]]
"""Runs the calibration photos once: for each batch the values of every observed tensor, by name."""


Quantize = Callable[[Observer | None, Collection[str]], dict[str, bytes]]
"""(observer, names of the network's modules that stay in float) -> the INT8 artifact of a target.

Without an observer the weights alone are in eight bits, where the target can express it."""

Plain = Callable[[], Mapping[str, bytes]]
"""() -> the float artifact that a quantiser begins with."""


class Ranges:
    """The ranges of tensors by each observer, from one run of the photos for the extremes and one for histograms."""

    def __init__(self, activations: Activations) -> None:
        self._activations = activations
        self._extremes: dict[str, tuple[float, float]] = {}
        self._histograms: dict[str, np.ndarray] = {}

    def by(self, observer: Observer) -> dict[str, tuple[float, float]]:
        """(lowest, highest) of each tensor, 0 always between them.

        "minmax": all that was seen; "percentile": without the outermost 0.01 % on either side; "mse": the clipping
        that makes the mean squared error of rounding to 256 levels least; "entropy": the clipping whose 256 levels
        lose least information (Kullback-Leibler divergence between the histograms, Migacz 2017).
        """
        if not self._extremes:
            for batch in self._activations():
                for name, values in batch.items():
                    low, high = self._extremes.get(name, (0.0, 0.0))
                    self._extremes[name] = min(low, float(values.min())), max(high, float(values.max()))
        if observer == "minmax":
            return dict(self._extremes)
        if not self._histograms:
            for batch in self._activations():
                for name, values in batch.items():
                    counts = np.histogram(values, BINS, self._extremes[name])[0]
                    self._histograms[name] = self._histograms.get(name, np.zeros(BINS)) + counts
        choose = {"percentile": _percentile, "mse": _mse, "entropy": _entropy}[observer]
        return {
            name: choose(self._histograms[name], low, high) if high > low else (low, high)
            for name, (low, high) in self._extremes.items()
        }


def _percentile(histogram: np.ndarray, low: float, high: float) -> tuple[float, float]:
    edges = np.linspace(low, high, BINS + 1)
    share = np.cumsum(histogram) / histogram.sum()
    cut = 1 - PERCENTILE / 100
    below, above = int(np.searchsorted(share, cut, side="right")), int(np.searchsorted(share, 1 - cut))
    return min(0.0, float(edges[below])), max(0.0, float(edges[min(above + 1, BINS)]))


def _mse(histogram: np.ndarray, low: float, high: float) -> tuple[float, float]:
    return _least(low, high, lambda a, b: _squared_error(histogram, low, high, a, b))


def _squared_error(histogram: np.ndarray, low: float, high: float, a: float, b: float) -> float:
    """Summed squared error of values in the bins' centres when [a, b] has 256 levels and what is outside is cut."""
    centres = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    step = (b - a) / (LEVELS - 1)
    rounded = a + np.clip(np.round((centres - a) / step), 0, LEVELS - 1) * step
    # within a step the error is uniform, which centres alone would hide where bins are as wide as steps
    inside = (centres >= a) & (centres <= b)
    return float((histogram * np.where(inside, step**2 / 12, (centres - rounded) ** 2)).sum())


def _entropy(histogram: np.ndarray, low: float, high: float) -> tuple[float, float]:
    # Zero is a level of its own, and after ReLU half of all values: spread over its level's bins it would decide alone.
    others = histogram.copy()
    others[min(int(-low / (high - low) * BINS), BINS - 1)] = 0
    return _least(low, high, lambda a, b: _divergence(others, low, high, a, b)) if others.any() else (low, high)


def _divergence(histogram: np.ndarray, low: float, high: float, a: float, b: float) -> float:
    """KL divergence between the histogram cut to [a, b] (the rest moved to its ends) and its 256-level form."""
    width = (high - low) / BINS
    first, last = round((a - low) / width), max(round((b - low) / width), round((a - low) / width) + 1)
    cut = histogram[first:last].astype(np.float64)
    whole = cut.copy()
    whole[0] += histogram[:first].sum()
    whole[-1] += histogram[last:].sum()
    level = np.minimum(np.arange(len(cut)) * LEVELS // len(cut), LEVELS - 1)
    filled = (cut > 0).astype(np.float64)
    sums, counts = np.bincount(level, cut, LEVELS), np.bincount(level, filled, LEVELS)
    coarse = np.where(filled > 0, (sums / np.maximum(counts, 1))[level], 0)
    p, q = whole / whole.sum(), coarse / max(coarse.sum(), 1e-12)
    held = p > 0
    return float((p[held] * np.log(p[held] / np.maximum(q[held], 1e-9))).sum())


def _least(low: float, high: float, cost: Callable[[float, float], float]) -> tuple[float, float]:
    """The clipping of [low, high] of least cost; each side is tried in turn, zero stays inside."""
    shares = np.linspace(1, 0.2, CANDIDATES)
    best_high = high * float(shares[np.argmin([cost(low, high * share) for share in shares])]) if high > 0 else high
    best_low = low * float(shares[np.argmin([cost(low * share, best_high) for share in shares])]) if low < 0 else low
    return best_low, best_high
