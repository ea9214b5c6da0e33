"""Mode "last" on maps: what the frozen blocks give for some views of each photo is computed once, and cached."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.train import loop, trial
from handlens.train.cut import Cut, cut
from handlens.train.distil import Teacher
from handlens.train.features import Frozen, by_onnxruntime
from handlens.train.pixels import Fixed
from handlens.train.recipe import Recipe

_JUDGED_AT_ONCE = 64  # photos, as `Fixed` gives them


class MapBatches(loop.Batches):
    """Makes the batch of a step of cached maps, float16 (V, N, *shape) of V views of N photos.

    Each photo shows one view an epoch, the next one in the next, from one that the seed draws on.
    """

    def __init__(self, maps: np.ndarray, photos: Photos, recipe: Recipe, device: torch.device) -> None:
        self.maps, self.recipe, self.device = maps, recipe, device
        self.labels, self.num_classes, self.px = photos.labels, len(photos.classes), recipe.crop_px(0)
        self.first = np.random.default_rng(recipe.seed).integers(len(maps), size=len(photos))

    def make(self, indices: np.ndarray, seed: list[int]) -> tuple[Tensor, Tensor]:
        """Maps float32 (B, *shape) and target probabilities (B, K) of the photos at `indices`; seed[1] is the epoch."""
        views = (self.first[indices] + seed[1]) % len(self.maps)
        targets = F.one_hot(torch.from_numpy(self.labels[indices]).to(self.device), self.num_classes).float()
        smoothing = self.recipe.label_smoothing
        return self.plain(self.maps[views, indices]), targets * (1 - smoothing) + smoothing / self.num_classes

    def plain(self, images: np.ndarray) -> Tensor:
        """float16 (B, *shape) -> what the tail takes, on the device."""
        maps = torch.from_numpy(images).to(self.device).float()
        return maps.contiguous(memory_format=torch.channels_last) if maps.ndim == 4 else maps


class FixedMaps(Fixed):
    """A split as the tail will see it in use: maps float16 (N, *shape) of its photos."""

    def __init__(self, maps: np.ndarray, photos: Photos) -> None:
        self.maps, self.photos = maps, photos

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches in order: (B, *shape) and int64 (B,)."""
        for start in range(0, len(self.photos), _JUDGED_AT_ONCE):
            chosen = slice(start, start + _JUDGED_AT_ONCE)
            yield self.maps[chosen], self.photos.labels[chosen]


def cut_for(
    net: Net, recipe: Recipe, train: Photos, validation: Photos, teacher: Teacher | None = None, processes: int = 1
) -> tuple[Cut | None, str]:
    """The network, made ready for training and cut in two for mode "last"; or None, with a sentence on why not."""
    if recipe.mode != "last" or not num_views(recipe):
        return None, ""
    why = _needs_pixels(recipe, teacher, processes)
    parts = None if why else cut(net, recipe.last_blocks, lambda whole: loop.prepare(whole, recipe))
    if not parts:
        return None, anew(why or f"{recipe.net} cannot be cut before its last {recipe.last_blocks} blocks")
    values = num_views(recipe) * len(train) * math.prod(parts.shape(recipe.train_px or recipe.image_px))
    values += len(validation) * math.prod(parts.shape(recipe.image_px))
    need_mb = math.ceil(2 * 2 * values / 2**20)  # float16, and once more while they are put in order
    if need_mb > recipe.cache_mb:
        return None, anew(f"the frozen blocks' maps need {need_mb} MB, and cache_mb is {recipe.cache_mb}")
    return parts, ""


def num_views(recipe: Recipe) -> int:
    """Views of each photo that are cached: no more than there are epochs to show them in."""
    return min(recipe.last_views, recipe.epochs)


def anew(why: str) -> str:
    """The sentence on a run that cannot use maps."""
    return f"photos go through the whole network each epoch: {why}"


def _needs_pixels(recipe: Recipe, teacher: Teacher | None, processes: int) -> str:
    """What of a recipe maps cannot give."""
    reasons = (
        (recipe.augment == "trivial", "augment is trivial, which changes each photo anew"),
        (recipe.mixup_alpha or recipe.cutmix_alpha, "mixup and CutMix blend photos anew"),
        (len(recipe.crops_px) > 1, "first_px or last_px gives crops of two sizes"),
        (teacher, "a teacher looks at photos"),
        (processes > 1, "several processes share the photos"),
    )
    return next((why for given, why in reasons if given), "")


def caching_s(parts: Cut, recipe: Recipe, num_photos: int, device: torch.device) -> float:
    """About how many seconds the maps of training photos take, where none are in the cache."""
    at = dataclasses.replace(recipe, image_px=recipe.train_px or recipe.image_px)
    images = num_photos * num_views(recipe)
    faster = 4 if by_onnxruntime(device, images) else 1
    return trial.pass_s(copy.deepcopy(parts.trunk).to(device), at, device) * images / recipe.batch_size / faster


def maps_of(
    parts: Cut,
    recipe: Recipe,
    preprocess: Preprocess,
    train: Photos,
    validation: Photos,
    sha256: dict[str, str],
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MapBatches, FixedMaps] | None:
    """What `loop.fit` trains a tail on; None where a map has values that are too great for float16.

    progress: called with training photos (done, total) whose maps are not in the cache.
    """

    def maps(photos: Photos, px: int, views: range) -> np.ndarray:
        contract = dataclasses.replace(preprocess, image_px=px, resize_px=max(px, preprocess.resize_px))
        plain = recipe.augment == "none"
        frozen = Frozen(
            parts.trunk,
            contract,
            min_area=1.0 if plain else recipe.crop_min_area,
            flip=recipe.flip and not plain,
            # On a CPU the faster precision is found by a trial, whose chances are not to decide what is in the cache.
            precision="32-true" if device.type == "cpu" else recipe.precision,
            device=device,
            shape=parts.shape(px),
            dtype=np.float16,
        )
        return frozen.of_views(photos, sha256, views, progress)

    seen = maps(train, recipe.train_px or recipe.image_px, range(1, 1 + num_views(recipe)))
    judged = maps(validation, recipe.image_px, range(1))[0]
    if not (np.isfinite(seen).all() and np.isfinite(judged).all()):
        return None
    return MapBatches(seen, train, recipe, device), FixedMaps(judged, validation)


def fit(
    parts: Cut,
    maps: tuple[MapBatches, FixedMaps],
    recipe: Recipe,
    preprocess: Preprocess,
    folder: Path,
    fabric: Fabric,
    on_step: Callable[[loop.Step], None] = lambda step: None,
    on_epoch: Callable[[list[dict[str, float]]], None] = lambda log: None,
) -> tuple[Net, list[dict[str, float]]]:
    """`loop.fit` of the tail on maps; gives the whole network, and a row a epoch."""
    tail, log = loop.fit(parts.tail, *maps, recipe, preprocess, folder, fabric, on_step, on_epoch)
    return parts.whole(tail), log
