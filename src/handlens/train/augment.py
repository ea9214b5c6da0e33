"""Random crops and changes of light, shape and colour, for a whole batch at once, on whatever device it lies.

Each photo of a batch gets its own strengths in a few tensor operations. Every random choice comes from the
numpy generator that is passed in, so that a seed repeats them on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def random_crops(photos: Sequence[np.ndarray], px: int, min_area: float, rng: np.random.Generator) -> Tensor:
    """A random part of each photo, resized: uint8 (h, w, 3) each -> uint8 (B, 3, px, px) in channels-last memory.

    RandomResizedCrop of Szegedy et al. 2014: an area of `min_area` to 1, an aspect ratio of 3/4 to 4/3.
    """
    batch = torch.empty((len(photos), 3, px, px), dtype=torch.uint8, memory_format=torch.channels_last)
    for index, photo in enumerate(photos):
        height, width = photo.shape[:2]
        top, left, h, w = crop_box(height, width, min_area, rng)
        part = torch.from_numpy(photo[top : top + h, left : left + w]).permute(2, 0, 1)[None]
        batch[index] = F.interpolate(part, size=(px, px), mode="bilinear", antialias=True)[0]
    return batch


def crop_box(height: int, width: int, min_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of a random part of a photo; where that is all of it, the centre square."""
    for _ in range(10 if min_area < 1 else 0):
        area = height * width * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)  # of a very long photo, too
    return (height - side) // 2, (width - side) // 2, side, side


def flip(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror half of the photos left to right: (B, C, H, W) of any type."""
    chosen = over(torch.from_numpy(rng.random(len(images)) < 0.5), images.device)
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def trivial_augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """TrivialAugment "wide" (Mueller and Hutter 2021, Table 1): one change of random kind and strength for each photo.

    Takes and gives float (B, 3, H, W) in [0, 1].
    """
    kinds = rng.integers(len(_CHANGES), size=len(images))
    strengths = rng.random(len(images))
    signs = rng.choice([-1.0, 1.0], size=len(images))
    result = images.clone()
    for kind, change in enumerate(_CHANGES):
        where = np.flatnonzero(kinds == kind)
        if change is not None and len(where):
            index = over(torch.from_numpy(where), images.device)
            strength, sign = (_like(images, values[where]).view(-1, 1, 1, 1) for values in (strengths, signs))
            result[index] = change(images[index], strength, sign).clamp(0, 1)
    return result


def over(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device. A card does not have to finish first what it is at; elsewhere they must outlive the copy."""
    return values.to(device, non_blocking=device.type == "cuda")


def _like(images: Tensor, values: Any) -> Tensor:
    """Numbers in the type of the images and on their device."""
    return over(torch.as_tensor(values, dtype=images.dtype), images.device)


def _warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Move photos by inverse affine matrices (B, 2, 3) in pixels from the centre; what is uncovered becomes grey."""
    height, width = images.shape[-2:]
    scale = _like(images, [[1.0, height / width, 2 / width], [width / height, 1.0, 2 / height]])
    grid = F.affine_grid(matrices * scale, list(images.shape), align_corners=False)
    return F.grid_sample(images - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5


def _affine(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, f: Tensor) -> Tensor:
    rows = [torch.cat([x.view(-1, 1) for x in row], 1) for row in ((a, b, c), (d, e, f))]
    return torch.stack(rows, 1)


def _shear_x(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _affine(one, 0.99 * strength * sign, zero, zero, one, zero))


def _shear_y(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _affine(one, zero, zero, 0.99 * strength * sign, one, zero))


def _translate_x(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _affine(one, zero, images.shape[-1] / 7 * strength * sign, zero, one, zero))


def _translate_y(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _warp(images, _affine(one, zero, zero, zero, one, images.shape[-2] / 7 * strength * sign))


def _rotate(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    angle = strength * sign * math.radians(135)
    zero = torch.zeros_like(strength)
    return _warp(images, _affine(angle.cos(), angle.sin(), zero, -angle.sin(), angle.cos(), zero))


def _blend(images: Tensor, other: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """`other` + factor * (images - other) with the factor from 0.01 to 1.99: 1 changes nothing."""
    return other + (1 + 0.99 * strength * sign) * (images - other)


def _grey(images: Tensor) -> Tensor:
    weights = _like(images, [0.299, 0.587, 0.114])
    return (images * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def _brightness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, torch.zeros_like(images), strength, sign)


def _colour(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images), strength, sign)


def _contrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((2, 3), keepdim=True), strength, sign)


def _sharpness(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    kernel = _like(images, [[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return _blend(images, F.conv2d(padded, kernel.expand(3, 1, 3, 3), groups=3), strength, sign)


def _posterize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    step = 2 ** (strength * 6).round()  # 8 bits down to 2
    return ((images * 255).round() / step).floor() * step / 255


def _solarize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return torch.where(images >= 1 - strength, 1 - images, images)


def _auto_contrast(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def _equalize(images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Each channel's values replaced by the share of pixels below them: a flat histogram of 256 levels."""
    batch, channels = images.shape[:2]
    levels = (images * 255).round().long().flatten(2).flatten(0, 1)
    histogram = torch.zeros(batch * channels, 256, device=images.device)
    histogram.scatter_add_(1, levels, torch.ones_like(levels, dtype=histogram.dtype))
    below = histogram.cumsum(1) - histogram
    below_highest = below.gather(1, levels.amax(1, keepdim=True))  # none in a channel of one value, which stays
    ranks = (below / below_highest.clamp_min(1)).gather(1, levels).view_as(images).to(images.dtype)
    return torch.where(below_highest.view(batch, channels, 1, 1) > 0, ranks, images)


_CHANGES = (
    None,  # identity
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
    _brightness,
    _colour,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _auto_contrast,
    _equalize,
)


def mix(
    images: Tensor, targets: Tensor, mixup_alpha: float, cutmix_alpha: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899) of each photo with its neighbour in a shuffled batch.

    images (B, 3, H, W) float, targets (B, K) probabilities; both come back mixed in the same shares. With both alphas
    above zero one of the two is drawn for the batch; with both zero nothing changes.
    """
    kinds = [kind for kind, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha > 0]
    if not kinds or len(images) < 2:
        return images, targets
    kind = kinds[int(rng.integers(len(kinds)))]
    other = over(torch.from_numpy(rng.permutation(len(images))), images.device)
    if kind == "mixup":
        share = float(rng.beta(mixup_alpha, mixup_alpha))
        return torch.lerp(images[other], images, share), torch.lerp(targets[other], targets, share)
    cut = math.sqrt(1 - float(rng.beta(cutmix_alpha, cutmix_alpha)))
    height, width = images.shape[-2:]
    h, w = round(height * cut), round(width * cut)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    mixed = images.clone()
    mixed[..., top : top + h, left : left + w] = images[other][..., top : top + h, left : left + w]
    return mixed, torch.lerp(targets[other], targets, 1 - h * w / (height * width))
