"""Training photos on a graphics card: kept there as uint8 where they fit, cut at random and resized there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from handlens.preprocess import Preprocess
from handlens.train import augment
from handlens.train.loop import Batches
from handlens.train.pixels import Pixels
from handlens.train.recipe import Recipe

SHARE = 0.4  # of the card's free memory that photos may take, for joining them takes as much again
_AT_ONCE = 256  # photos decoded before they go over


def batches(
    pixels: Pixels,
    recipe: Recipe,
    preprocess: Preprocess,
    device: torch.device,
    note: Callable[[str], None] = lambda text: None,
) -> Batches:
    """What makes the batches of a training: of photos on the card where there is one and they fit, else as usual.

    note: told when they do not fit.
    """
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        photos = sent(pixels, device, int(SHARE * free_bytes))
        if photos:
            return OnDevice(photos, pixels, recipe, preprocess, device)
        note(
            f"photos are cut on the processor: they take more than {SHARE:.0%} of the card's free memory, "
            f"{free_bytes / 2**20:.0f} MB"
        )
    return Batches(pixels, recipe, preprocess, device)


class Sent(NamedTuple):
    """All photos on a device, one after the other."""

    values: Tensor
    """uint8 (pixels of all photos, 3)."""
    starts: np.ndarray
    """int64 (N,): each photo's first pixel."""
    sizes: np.ndarray
    """int64 (N, 2): each photo's height and width."""


def sent(pixels: Pixels, device: torch.device, budget_bytes: int) -> Sent | None:
    """All photos on the device; None where they take more than the budget."""
    parts, sizes = [], []
    for start in range(0, len(pixels), _AT_ONCE):
        photos = pixels.get(range(start, min(start + _AT_ONCE, len(pixels))))
        budget_bytes -= sum(photo.nbytes for photo in photos)
        if budget_bytes < 0:
            return None
        parts.append(torch.from_numpy(np.concatenate([photo.reshape(-1, 3) for photo in photos])).to(device))
        sizes += [photo.shape[:2] for photo in photos]
    counts = np.prod(sizes, axis=1)
    return Sent(torch.cat(parts), np.cumsum(counts) - counts, np.array(sizes))


class OnDevice(Batches):
    """Makes the batch of a step of photos that lie on its device.

    The same seed gives the same crops as of photos in main memory. Resizing is two matrix products for the whole
    batch, with the weights of bilinear resizing with antialiasing; values differ from those by one of 255 levels at
    most, where both passes of the other round.
    """

    def __init__(
        self, photos: Sent, pixels: Pixels, recipe: Recipe, preprocess: Preprocess, device: torch.device
    ) -> None:
        super().__init__(pixels, recipe, preprocess, device)
        self.photos = photos

    def crops(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        values, starts, sizes = self.photos
        whole = sizes[indices]
        boxes = [augment.crop_box(height, width, self.min_area, rng) for height, width in whole.tolist()]
        tops, lefts, heights, widths = np.array(boxes).T
        mirrored = rng.random(len(indices)) < 0.5 if self.flips else np.zeros(len(indices), bool)
        firsts = starts[indices] + tops * whole[:, 1] + lefts
        numbers = np.stack([firsts, whole[:, 1], heights, widths, mirrored])  # in one transfer
        first, line, height, width, flipped = augment.over(torch.from_numpy(numbers), self.device)[..., None]
        # Smaller parts are filled up with their last pixels, which weigh nothing.
        down = torch.arange(int(heights.max()), device=self.device).minimum(height - 1)  # (B, H)
        across = torch.arange(int(widths.max()), device=self.device).minimum(width - 1)  # (B, W)
        parts = values[(first + down * line)[:, :, None] + across[:, None]]  # (B, H, W, 3)
        rows, columns = resampling(height, down.shape[1], self.px), resampling(width, across.shape[1], self.px)
        columns = torch.where(flipped[..., None] > 0, columns.flip(1), columns)
        images = rows[:, None] @ parts.permute(0, 3, 1, 2).float() @ columns[:, None].mT
        return images.round().clamp(0, 255).div(255)


def resampling(lengths: Tensor, size: int, px: int) -> Tensor:
    """Matrices (B, px, size) that resize the beginnings of lines of `size` pixels to `px`, bilinear with antialiasing.

    lengths: (B, 1), of the beginnings. A pixel counts by how near its middle is to the new pixel's, within one pixel,
    or one new pixel where the part is made smaller.
    """
    scale = (lengths / px)[..., None]
    middles = torch.arange(size, device=lengths.device) + 0.5  # (size,)
    wanted = (torch.arange(px, device=lengths.device)[:, None] + 0.5) * scale  # (B, px, 1)
    weights = (1 - (middles - wanted).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * (middles < lengths[..., None])
    return weights / weights.sum(2, keepdim=True)
