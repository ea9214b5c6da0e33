"""Pictures of what `explain` finds, as PNG bytes; torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from handlens import figures

if TYPE_CHECKING:
    from handlens.explain.gates import GateStatistics
    from handlens.explain.kernels import DepthwiseKernels
    from handlens.explain.layers import Maps

MOST_CHANNELS = 48  # columns of the picture of gates
MOST_MAPS = 64  # maps of a single layer
MAPS_A_STAGE = 8


def kernels(values: np.ndarray) -> bytes:
    """First-layer kernels (N, k, k, 3) as coloured squares, each scaled by itself: grey is 0.

    Kernels with hardly any weight stay grey.
    """
    size = np.abs(values).max((1, 2, 3), keepdims=True)
    size = np.maximum(size, max(0.2 * float(np.median(size)), 1e-12))
    return _grid(0.5 + values / (2 * size), "", None)


def feature_maps(found: Maps) -> bytes:
    """The strongest maps (by mean absolute value) of one photo, `found.values` (1, C, h, w), each scaled by itself."""
    maps = found.values[0]
    order = _strongest(maps)[:MOST_MAPS]
    title = f"{found.layer or 'tokens'}: {len(order)} of {len(maps)} channels, {maps.shape[1]} x {maps.shape[2]}"
    return _grid(_each_scaled(maps[order]), title, [str(channel) for channel in order])


def stages(photo: np.ndarray, found: Sequence[Maps]) -> bytes:
    """A row a stage: the photo as the network sees it, uint8 (H, W, 3), then the strongest maps of each stage."""
    figure = figures.figure(1.35 * (MAPS_A_STAGE + 1), 1.5 * len(found))
    axes = figure.subplots(len(found), MAPS_A_STAGE + 1, squeeze=False)
    for row, stage in zip(axes, found, strict=True):
        maps = stage.values[0]
        order = _strongest(maps)[:MAPS_A_STAGE]
        row[0].imshow(photo)
        row[0].set_title(f"{stage.layer or 'tokens'}\n{len(maps)} of {maps.shape[1]} x {maps.shape[2]}", fontsize=7)
        for cell, channel in zip(row[1:], order, strict=False):
            cell.imshow(_each_scaled(maps[channel][None])[0], cmap="viridis", vmin=0, vmax=1)
            cell.set_title(f"{channel}", fontsize=7)
        for cell in row:
            cell.axis("off")
    return figures.png(figure)


def gates(found: Sequence[GateStatistics], classes: Sequence[str], layer: str = "") -> bytes:
    """The share of the gates' variance that lies between classes, by layer; and the mean gate of each class.

    The lower picture is of `layer`, by default of the one with the greatest share; its channels are sorted by theirs.
    """
    best = max(found, key=lambda one: (one.layer == layer, one.layer_share))
    figure = figures.figure(11, 5 + 0.28 * len(classes))
    above, below = figure.subplots(2, 1, height_ratios=[3, 2 + 0.28 * len(classes)])
    names = [one.layer.removeprefix("features.") for one in found]
    moving = [one.class_share[one.best_channels()] for one in found]
    above.boxplot([shares if len(shares) else [0] for shares in moving], whis=(5, 95), showfliers=False)
    places = range(1, len(found) + 1)
    above.plot(places, [one.layer_share for one in found], "o", color="tab:red", label="the layer")
    above.axhline(found[0].chance_share, color="grey", linestyle="--", label="by chance")
    above.set_xticks(places, names, rotation=45 if len(found) > 10 else 0, fontsize=8)
    above.set_ylim(0, 1)
    above.set_ylabel("variance between classes\n(share; boxes: channels that move)")
    above.legend(fontsize=8)
    order = best.best_channels()[:MOST_CHANNELS]
    order = order if len(order) else np.arange(min(MOST_CHANNELS, len(best.class_share)))
    shown = below.imshow(best.mean_by_class[:, order], aspect="auto", cmap="viridis", vmin=0, vmax=1)
    below.set_yticks(range(len(classes)), classes, fontsize=8, parse_math=False)
    below.set_xticks(range(len(order)), [str(channel) for channel in order], rotation=90, fontsize=6)
    below.set_xlabel(f"channel of {best.layer}, from the one that tells classes best apart")
    figure.colorbar(shown, ax=below, label="mean gate")
    return figures.png(figure)


def depthwise(found: Sequence[DepthwiseKernels]) -> bytes:
    """Every depthwise kernel as a dot: its weight over the layer's median, by layer; dead and silent ones coloured."""
    figure = figures.figure(10, 4.6)
    axes = figure.add_subplot()
    random = np.random.default_rng(0)
    floor = 1e-8
    for place, layer in enumerate(found, 1):
        height = np.maximum(layer.weight / max(float(np.median(layer.weight)), 1e-300), floor)
        across = place + random.uniform(-0.3, 0.3, len(height))
        axes.plot(across, height, ".", color="tab:blue", markersize=3, alpha=0.35)
        axes.plot(across[layer.silent], height[layer.silent], ".", color="tab:orange", markersize=7)
        axes.plot(across[layer.dead], height[layer.dead], ".", color="tab:red", markersize=7)
    axes.axhline(found[0].threshold, color="grey", linestyle="--")
    names = [f"{layer.layer}\n{len(layer.dead)} + {len(layer.silent)} of {len(layer.weight)}" for layer in found]
    axes.set_xticks(range(1, len(found) + 1), names, rotation=90, fontsize=6)
    axes.set_yscale("log")
    axes.set_ylabel("weight over the layer's median")
    axes.set_title(
        f"below {found[0].threshold:g} of the median: dead (red); with weight, but without variation: silent (orange)",
        fontsize=9,
    )
    return figures.png(figure)


def positions(maps: np.ndarray) -> bytes:
    """Similarity maps (side, side, side, side) in the places of their patches."""
    side = maps.shape[0]
    padded = np.pad(maps.astype(np.float64), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    mosaic = padded.transpose(0, 2, 1, 3).reshape(side * (side + 1), -1)[:-1, :-1]
    figure = figures.figure(8.4, 7.4)
    axes = figure.add_subplot()
    low = min(0.0, float(np.nanmin(mosaic)))
    shown = axes.imshow(mosaic, cmap="viridis", vmin=low, vmax=1, interpolation="nearest")
    centres = np.arange(side) * (side + 1) + (side - 1) / 2
    axes.set_xticks(centres, [str(place) for place in range(1, side + 1)])
    axes.set_yticks(centres, [str(place) for place in range(1, side + 1)])
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    figure.colorbar(shown, ax=axes, label="cosine similarity", shrink=0.8)
    return figures.png(figure)


# ---- parts -----------------------------------------------------------------------------------------------------------
def _grid(images: np.ndarray, title: str, names: Sequence[str] | None) -> bytes:
    """Images (N, h, w) in [0, 1] or (N, h, w, 3), in a square of squares."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    inch = float(np.clip(9 / columns, 0.35, 1.1))
    figure = figures.figure(inch * columns + 0.3, inch * rows * (1.2 if names else 1) + 0.5)
    if title:
        figure.suptitle(title, fontsize=9)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, cell in enumerate(axes):
        cell.axis("off")
        if index < len(images):
            cell.imshow(images[index], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
            if names:
                cell.set_title(names[index], fontsize=6, pad=1)
    return figures.png(figure)


def _strongest(maps: np.ndarray) -> np.ndarray:
    return np.argsort(-np.abs(maps).mean((1, 2)), kind="stable")


def _each_scaled(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)
