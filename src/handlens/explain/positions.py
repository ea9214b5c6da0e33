"""A Vision Transformer's position embeddings: how alike the places of a photo are to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.nets.vit import VisionTransformer


def table(net: Net) -> np.ndarray:
    """The learned positions of the patches, float32 (side, side, D), rows first, without the class token's.

    Raises HandlensError for a network that has none.
    """
    if not isinstance(net, VisionTransformer):
        raise HandlensError(f"{type(net).__name__} has no position embeddings", "the Vision Transformers do")
    positions = net.tokens.pos_embedding.detach()[0, 1:].float().numpy()
    side = math.isqrt(len(positions))
    return positions.reshape(side, side, -1)


def similarity(positions: np.ndarray) -> np.ndarray:
    """Positions (side, side, D) -> float32 (side, side, side, side): [i, j] is the map of cosine similarities of the
    patch in row i, column j to every patch, in [-1, 1] (Dosovitskiy et al. 2020, Figure 7)."""
    flat = positions.reshape(-1, positions.shape[-1])
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return np.clip(unit @ unit.T, -1, 1).reshape(*positions.shape[:2], *positions.shape[:2])


def describe(maps: np.ndarray) -> dict[str, Any]:
    """Numbers of similarity maps (side, side, side, side).

    side; same_row, same_column, elsewhere: mean similarity to other patches of the row, of the column, of neither;
    by_distance: mean similarity at rounded distances of 1, 2, ... patches; neighbour_share: of the patches, how many
    are most alike to one of the up to eight around them.
    """
    side = maps.shape[0]
    flat = maps.reshape(side**2, side**2).astype(np.float64)
    rows, columns = np.divmod(np.arange(side**2), side)
    down, across = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    distance = np.rint(np.hypot(down, across)).astype(int)
    nearest = np.where(distance == 0, -np.inf, flat).argmax(1)
    places = np.arange(side**2)
    return {
        "side": side,
        "same_row": _mean(flat[(down == 0) & (across > 0)]),
        "same_column": _mean(flat[(across == 0) & (down > 0)]),
        "elsewhere": _mean(flat[(down > 0) & (across > 0)]),
        "by_distance": [_mean(flat[distance == steps]) for steps in range(1, side)],
        "neighbour_share": float((np.maximum(down, across)[places, nearest] == 1).mean()),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
