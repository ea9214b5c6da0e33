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
    """See `Facts`, which has the same figures."""

    grey: bool
    dark: int
    bright: int
    contrast: float
    sharpness: float


def measure(photo: Image.Image, small: Image.Image) -> Quality:
    """Measure an RGB photo, of which `small` is the same at 32 x 32 pixels.

    sharpness: of 4 x 4 tiles, the most that the grey levels bend (their Laplacian) for how much they rise (their
    gradient), of the tiles with the strongest edges: of a sharp edge about 1, of a blurred one a fraction, whatever
    its contrast. A blurred background behind something sharp counts as sharp.
    """
    light, scale = photo.convert("L"), _PX / min(photo.size)  # one channel first: a third of the time
    if scale < 1:  # of a strip, the length is cut too
        width, height = (min(16 * _PX, max(1, round(side * scale))) for side in photo.size)
        light = light.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    few = np.asarray(small, np.int16)
    share, levels = np.array(light.histogram()) / (light.width * light.height), np.arange(256)
    low, high = np.searchsorted(np.cumsum(share), (0.05, 0.95))
    return Quality(
        grey=bool((few.max(2) - few.min(2)).max() <= _GREY),
        dark=int(high),
        bright=int(low),
        contrast=round(float(np.sqrt(share @ np.square(levels - share @ levels))), 2),
        sharpness=round(_sharpness(np.asarray(light, np.float32)), 4),
    )


def _sharpness(grey: np.ndarray) -> float:
    if min(grey.shape) < 3:
        return 1.0
    middle = grey[1:-1, 1:-1]
    up, down, left, right = grey[2:, 1:-1], grey[:-2, 1:-1], grey[1:-1, 2:], grey[1:-1, :-2]
    bend = up + down  # in place from here on: new arrays take as long as the sums
    for side in (left, right, -4 * middle):
        bend += side
    bends, rises = _tiles(bend), _tiles(up - down) + _tiles(left - right)
    strong = rises >= np.median(rises)
    return float(np.sqrt((bends[strong] / (rises[strong] + 1.0)).max()))


def _tiles(values: np.ndarray) -> np.ndarray:
    """Means of the squares over 4 x 4 tiles."""
    rows, columns = (np.unique(np.linspace(0, side, _TILES + 1).astype(int)[:-1]) for side in values.shape)
    strips = np.split(values, rows[1:])
    sums = [np.add.reduceat(np.einsum("ij,ij->j", strip, strip), columns) for strip in strips]  # squares not stored
    height, width = values.shape
    return np.stack(sums) / np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
