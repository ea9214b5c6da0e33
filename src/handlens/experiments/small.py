"""A small set of photos in memory, and a short training on it: what the experiments that train have in common."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from handlens import files
from handlens import photos as photos_room
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.nets.pixels import by_photo
from handlens.photos import drawn, painting
from handlens.preprocess import Preprocess
from handlens.run.torch_runtime import keep_freed_memory

Progress = Callable[[int, int], None] | None
MOST_PHOTOS = 1500
SPLIT = (2 / 3, 0.0, 1 / 3)  # train and test: nothing is chosen by validation, all epochs are shown
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Side:
    """Photos as uint8 RGB (N, px, px, 3) and their labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Small:
    """A set of photos, cut into train and test; `facts` says from where and how."""

    train: Side
    test: Side
    num_classes: int
    facts: dict[str, Any]


def load(photos: str | Path | None, image_px: int, seed: int, most: int = MOST_PHOTOS) -> Small:
    """Photos of a folder, or drawn flowers, `image_px` squared; cut 2 : 1 into train and test by `seed`.

    At most `most` are taken, drawn by `seed` (`_some`). The drawn flowers are the same for every seed, and are kept in
    the cache. Raises HandlensError for photos that cannot be trained on.
    """
    source = Path(photos) if photos else _flowers(most // len(drawn.CLASSES))
    found = photos_room.scan(source)
    if len(found) > most:
        found = _some(found, most, seed)
    findings = photos_room.examine(found)
    found = photos_room.usable(found, findings)
    photos_room.check_trainable(found)
    sides = photos_room.split(found, findings.sha256, seed, SPLIT, findings.duplicates)
    if photos:  # no drawn flower is another's near-duplicate
        sides, _ = photos_room.keep_together(sides, findings.near_duplicates())
    if not len(sides["test"]):
        raise HandlensError(f"{source} leaves no photo to test on", "use at least three photos a class")
    contract = Preprocess(image_px=image_px, resize_px=image_px)
    train, test = (_side(sides[name], contract) for name in ("train", "test"))
    facts = {
        "photos": str(photos) if photos else "flowers drawn by program (`handlens draw-flowers`)",
        "classes": list(found.classes),
        "image_px": image_px,
        "train_photos": len(train),
        "test_photos": len(test),
        "split_seed": seed,
    }
    return Small(train, test, len(found.classes), facts)


def _some(found: photos_room.Photos, most: int, seed: int) -> photos_room.Photos:
    """At most `most` photos, with three of each class, and of each side where the photos name theirs, if it has them.

    More than `most` where these three are.
    """
    sides = found.splits or [""] * len(found)
    seen: collections.Counter[tuple[int, str]] = collections.Counter()
    first: list[int] = []
    others: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(found)).tolist():
        group = int(found.labels[index]), sides[index]
        seen[group] += 1
        (first if seen[group] <= 3 else others).append(index)
    return found.select(sorted([*first, *others][: max(most, len(first))]))


def _flowers(photos_per_class: int) -> Path:
    drawing = b"".join(Path(str(module.__file__)).read_bytes() for module in (drawn, painting))
    name = f"{photos_per_class}-{hashlib.sha256(drawing).hexdigest()[:12]}"
    folder = files.cache_folder() / "drawn" / name
    return folder if folder.is_dir() else drawn.draw(folder, photos_per_class, image_px=96)


def _side(photos: photos_room.Photos, contract: Preprocess) -> Side:
    images, labels = zip(*photos_room.batches(photos, contract, 64), strict=True)
    return Side(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))


def create(build: Callable[[], Net], seed: int) -> Net:
    """The network that `build` gives, its random weights drawn from `seed`."""
    torch.manual_seed(seed)
    return build().to(memory_format=torch.channels_last)


def as_input(images: Tensor, contract: Preprocess) -> Tensor:
    """uint8 (B, px, px, 3) -> what a network takes by the contract, float32 (B, 3, px, px)."""
    scaled = by_photo(images.permute(0, 3, 1, 2).float() / 255, contract.normalisation)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    return (scaled - mean) / std


def steps(small: Small, epochs: int, batch_size: int) -> int:
    """How many steps `fit` will make."""
    return epochs * len(_cuts(len(small.train), batch_size))


def ticker(progress: Progress, total: int) -> Callable[[], None]:
    """A function that counts its calls and tells `progress`."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    return tick


def fit(
    net: torch.nn.Module,
    small: Small,
    epochs: int,
    tick: Callable[[], None],
    *,
    seed: int,
    lr: float,
    batch_size: int = 32,
    contract: Preprocess | None = None,
) -> list[dict[str, float]]:
    """Train `net` in place; a row an epoch with the loss and top-1 of train and test.

    SGD with Nesterov momentum 0.9 and weight decay 5e-4; the rate rises for a tenth of the steps and falls as a
    cosine; photos are mirrored and shifted by up to an eighth. Figures of train are of the augmented photos, while
    the weights change; those of test are in evaluation mode after the epoch.
    """
    keep_freed_memory()
    contract = contract or Preprocess(mean=HALF, std=HALF)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    total, done = steps(small, epochs, batch_size), 0
    log = []
    for epoch in range(1, epochs + 1):
        net.train()
        loss_sum, right = 0.0, 0
        for images, labels in _shuffled(small.train, batch_size, rng):
            optimizer.param_groups[0]["lr"] = lr * _rate(done / total)
            logits = net(as_input(images, contract).contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            right += int((logits.argmax(1) == labels).sum())
            done += 1
            tick()
        count = len(small.train)
        row = {"epoch": epoch, "train_loss": loss_sum / count, "train_top1": right / count}
        log.append(row | judge(net, small.test, contract))
    return log


def judge(net: torch.nn.Module, side: Side, contract: Preprocess, batch_size: int = 64) -> dict[str, float]:
    """Loss and top-1 on photos as they are, in evaluation mode."""
    net.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(side), batch_size):
            images, labels = (part[start : start + batch_size] for part in (side.images, side.labels))
            logits = net(as_input(images, contract).contiguous(memory_format=torch.channels_last))
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
    return {"test_loss": loss / len(side), "test_top1": right / len(side)}


def _rate(share: float) -> float:
    return share / 0.1 + 0.01 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))


def _cuts(count: int, batch_size: int) -> list[int]:
    """Where the batches begin; a last one of a single photo joins the one before, for batch norm needs two."""
    return [start for start in range(0, count, batch_size) if start == 0 or count - start > 1]


def _shuffled(side: Side, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = rng.permutation(len(side))
    for indices in np.split(order, _cuts(len(side), batch_size)[1:]):
        images = side.images[indices]
        mirrored = torch.from_numpy(rng.random(len(indices)) < 0.5)[:, None, None, None]
        images = torch.where(mirrored, images.flip(2), images)
        most = images.shape[1] // 8
        down, right = rng.integers(-most, most + 1, 2).tolist()
        yield images.roll((down, right), (1, 2)), side.labels[indices]
