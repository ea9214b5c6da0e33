"""Training photos on a graphics card: kept there as uint8 where they fit, cut at random and resized there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from handlens.preprocess import Preprocess
from handlens.train import augment
from handlens.train.loop import Batches
from handlens.train.pixels import Pixels
from handlens.train.recipe import Recipe

SHARE = 0.4  # of the card's free memory that photos may take: the rest is for the network
_AT_ONCE = 256  # photos decoded before they go over


def batches(pixels: Pixels, recipe: Recipe, preprocess: Preprocess, device: torch.device) -> Batches:
    """What makes the batches of a training: of photos on the card where there is one and they fit, else as usual."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        photos = sent(pixels, device, int(SHARE * free_bytes))
        if photos is not None:
            return OnDevice(photos, pixels, recipe, preprocess, device)
    return Batches(pixels, recipe, preprocess, device)


def sent(pixels: Pixels, device: torch.device, budget_bytes: int) -> list[Tensor] | None:
    """All photos as uint8 (h, w, 3) on the device; None where they take more than the budget."""
    photos: list[Tensor] = []
    for start in range(0, len(pixels), _AT_ONCE):
        for photo in pixels.get(range(start, min(start + _AT_ONCE, len(pixels)))):
            budget_bytes -= photo.nbytes
            if budget_bytes < 0:
                return None
            photos.append(torch.from_numpy(photo).to(device))
    return photos


class OnDevice(Batches):
    """Makes the batch of a step of photos that lie on its device, uint8 (h, w, 3) each.

    The same seed gives the same crops as of photos in main memory. Each is two matrix products for the whole batch,
    with the weights of bilinear resizing with antialiasing; values differ from those by one of 255 levels at most,
    where both passes of the other round.
    """

    def __init__(
        self, photos: list[Tensor], pixels: Pixels, recipe: Recipe, preprocess: Preprocess, device: torch.device
    ) -> None:
        super().__init__(pixels, recipe, preprocess, device)
        self.photos = photos

    def crops(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        photos = [self.photos[index] for index in indices]
        boxes = [augment.crop_box(photo.shape[0], photo.shape[1], self.min_area, rng) for photo in photos]
        mirrored = rng.random(len(photos)) < 0.5 if self.flips else np.zeros(len(photos), bool)
        height, width = (max(photo.shape[side] for photo in photos) for side in (0, 1))
        whole = torch.zeros((len(photos), height, width, 3), dtype=torch.uint8, device=self.device)
        for place, photo in zip(whole, photos, strict=True):
            place[: photo.shape[0], : photo.shape[1]] = photo
        tops, lefts, heights, widths = torch.tensor(boxes, dtype=torch.float32, device=self.device).T
        rows, columns = resampling(tops, heights, height, self.px), resampling(lefts, widths, width, self.px)
        flipped = torch.from_numpy(mirrored).to(self.device)[:, None, None]
        columns = torch.where(flipped, columns.flip(1), columns)
        images = rows[:, None] @ whole.permute(0, 3, 1, 2).float() @ columns[:, None].mT
        return images.round().clamp(0, 255).div(255)


def resampling(starts: Tensor, lengths: Tensor, size: int, px: int) -> Tensor:
    """Matrices (B, px, size) that resize parts of lines of `size` pixels to `px`, bilinear with antialiasing.

    starts, lengths: (B,), where each line's part begins and how long it is. A pixel counts by how near its middle is
    to the new pixel's, within one pixel, or one new pixel where the part is made smaller.
    """
    scale = (lengths / px)[:, None, None]
    middles = torch.arange(size, device=starts.device) + 0.5 - starts[:, None, None]  # (B, 1, size), in the part
    wanted = (torch.arange(px, device=starts.device)[:, None] + 0.5) * scale  # (B, px, 1)
    weights = (1 - (middles - wanted).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((middles > 0) & (middles < lengths[:, None, None]))
    return weights / weights.sum(2, keepdim=True)
