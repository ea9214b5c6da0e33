"""Maps laid over photos, in the right place: torch-free.

A network sees a photo through its pixel contract, which may cut the edges off or add bars. A map over what it saw is
laid back over the whole photo here.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from handlens.errors import missing_extra
from handlens.preprocess import Preprocess, shorter_side_to

STRONGEST = 0.65  # share of the colour where the map is 1
UNSEEN = 0.3  # brightness of what the network does not see
COLOURS = "turbo"
LONGEST_PX = 480  # of a photo in a picture


def seen_box(preprocess: Preprocess, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of an upright photo that the network sees: (left, top, right, bottom) in the photo's pixels.

    It lies within the photo for "crop", is the photo for "squash", and reaches beyond it for "letterbox".
    """
    px = preprocess.image_px
    if preprocess.resize == "squash":
        return 0.0, 0.0, float(width), float(height)
    if preprocess.resize == "letterbox":
        scale = px / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
    else:
        size = shorter_side_to(width, height, preprocess.resize_px)
    across, down = width / size[0], height / size[1]
    if preprocess.resize == "letterbox":
        left, top = -((px - size[0]) // 2), -((px - size[1]) // 2)
    else:
        left, top = (size[0] - px) // 2, (size[1] - px) // 2
    return left * across, top * down, (left + px) * across, (top + px) * down


def scaled_size(width: int, height: int, longest_px: int) -> tuple[int, int]:
    """(width, height) with the longer side `longest_px`."""
    scale = longest_px / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def place(heat: np.ndarray, box: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """A map (h, w) that covers `box` of a photo -> float32 (height, width) over the whole photo.

    The cells divide the box evenly. By padding alone the 7 x 7 cells of a MobileNet would lie half a cell off (up and
    left with symmetric padding, down and right with TensorFlow's), but trained weights make up for about half of that:
    by their gradients, cells see 0 to 11 of 32 px from where they are put here. Bilinear between the cells' centres;
    NaN outside of the box, where the network sees nothing.
    """
    left, top, right, bottom = box
    down = (np.arange(height) + 0.5 - top) / (bottom - top)  # 0 to 1 within the box
    across = (np.arange(width) + 0.5 - left) / (right - left)
    placed = _weights(down, heat.shape[0]) @ heat @ _weights(across, heat.shape[1]).T
    placed[(down < 0) | (down > 1)] = np.nan
    placed[:, (across < 0) | (across > 1)] = np.nan
    return placed.astype(np.float32)


def _weights(at: np.ndarray, cells: int) -> np.ndarray:
    """Positions (n,) in [0, 1] -> (n, cells): how much of each cell is in the value there."""
    nearest = np.clip(at * cells - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(nearest[:, None] - np.arange(cells)))


def overlay(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A photo, uint8 RGB (H, W, 3), in grey with a map (H, W) in [0, 1] in colours over it: uint8 RGB (H, W, 3).

    Blue is 0, red is 1; the more, the stronger the colour. Where the map is NaN the photo is dark.
    """
    try:
        from matplotlib import colormaps
    except ImportError:
        raise missing_extra("evaluate", "matplotlib") from None
    grey = (photo @ np.array([0.299, 0.587, 0.114]))[..., None] * np.ones(3)
    unseen = np.isnan(heat)[..., None]
    filled = np.clip(np.nan_to_num(heat), 0, 1)
    colour = 255 * colormaps[COLOURS](filled)[..., :3]
    share = STRONGEST * np.sqrt(filled)[..., None]
    mixed = np.where(unseen, UNSEEN * grey, (1 - share) * grey + share * colour)
    return np.clip(mixed.round(), 0, 255).astype(np.uint8)


def over(photo: Image.Image, heat: np.ndarray) -> np.ndarray:
    """`overlay` with a map (h, w) of another size, of which the nearest cells are taken."""
    rows, columns = (np.arange(few) * many // few for few, many in zip(photo.size[::-1], heat.shape, strict=True))
    return overlay(np.array(photo), heat[np.ix_(rows, columns)])


def beside(photo: np.ndarray, heat: np.ndarray, longest_px: int = LONGEST_PX) -> bytes:
    """The photo, uint8 RGB (H, W, 3), and beside it the same with the map (h, w) laid over: one PNG."""
    left = Image.fromarray(photo)
    left = left.resize(scaled_size(*left.size, longest_px))
    both = Image.new("RGB", (2 * left.width + 8, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(Image.fromarray(over(left, heat)), (left.width + 8, 0))
    png = io.BytesIO()
    both.save(png, "PNG")
    return png.getvalue()


def focus(heat: np.ndarray) -> tuple[float, float] | None:
    """The centre of mass of a map (H, W), as (x, y) in [0, 1] from the photo's left and top; None where all is 0."""
    filled = np.nan_to_num(heat.astype(np.float64))
    if not filled.any():
        return None
    down, across = filled.sum(1), filled.sum(0)
    x = (across * (np.arange(len(across)) + 0.5)).sum() / (across.sum() * len(across))
    y = (down * (np.arange(len(down)) + 0.5)).sum() / (down.sum() * len(down))
    return float(x), float(y)
