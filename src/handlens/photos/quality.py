"""How dark, flat and sharp a photo is: a few figures of it at 192 pixels, which is about what a network sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

# Chosen on one half of 2,934 flower photos, see benchmarks/planted_faults.py:
DARK = 60  # 95 % of the pixels are darker than this grey level
BRIGHT = 195  # 95 % are brighter
EMPTY = 10.0  # standard deviation in grey levels
BLURRED = 0.45  # sharpness
_GREY = 12  # grey levels between a pixel's channels: what JPEG makes of a grey photo
_PX = 192
_TILES = 4


class Quality(NamedTuple):
    """What is measured of a photo.

    grey: no colour in it. dark, bright: grey level that 95 % of its pixels are below or above. contrast: standard
    deviation in grey levels. sharpness: how sharp its sharpest part is, see `measure`.
    """

    grey: bool
    dark: int
    bright: int
    contrast: float
    sharpness: float


def measure(photo: Image.Image) -> Quality:
    """Measure an RGB photo.

    sharpness: of 4 x 4 tiles, the most that the grey levels bend (their Laplacian) for how much they rise (their
    gradient), of the tiles with the strongest edges: of a sharp edge about 1, of a blurred one a fraction, whatever
    its contrast. A blurred background behind something sharp counts as sharp.
    """
    light, scale = photo.convert("L"), _PX / min(photo.size)  # one channel first: a third of the time
    if scale < 1:  # of a strip, the length is cut too
        width, height = (min(16 * _PX, max(1, round(side * scale))) for side in photo.size)
        light = light.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    few = np.asarray(photo.resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0), np.int16)
    grey = np.asarray(light, np.float32)
    below = np.cumsum(light.histogram()) / grey.size
    low, high = np.searchsorted(below, (0.05, 0.95))
    return Quality(
        grey=bool((few.max(2) - few.min(2)).max() <= _GREY),
        dark=int(high),
        bright=int(low),
        contrast=round(float(grey.std()), 2),
        sharpness=round(_sharpness(grey), 4),
    )


def _sharpness(grey: np.ndarray) -> float:
    if min(grey.shape) < 3:
        return 1.0
    middle = grey[1:-1, 1:-1]
    up, down, left, right = grey[2:, 1:-1], grey[:-2, 1:-1], grey[1:-1, 2:], grey[1:-1, :-2]
    bend = up + down  # in place from here on: new arrays take as long as the sums
    for side in (left, right, -4 * middle):
        bend += side
    rise, across = up - down, left - right
    for values in (bend, rise, across):
        np.square(values, out=values)
    rise += across
    bends, rises = _tiles(bend), _tiles(rise)
    strong = rises >= np.median(rises)
    return float(np.sqrt((bends[strong] / (rises[strong] + 1.0)).max()))


def _tiles(values: np.ndarray) -> np.ndarray:
    """Means over 4 x 4 tiles."""
    edges = [np.linspace(0, side, _TILES + 1).astype(int)[:-1] for side in values.shape]
    edges = [np.unique(edge) for edge in edges]
    sums = np.add.reduceat(np.add.reduceat(values, edges[0], 0), edges[1], 1)
    sizes = [np.diff(edge, append=side) for edge, side in zip(edges, values.shape, strict=True)]
    return sums / np.outer(*sizes)
