"""Quantization-aware training: a few epochs in which a network learns to answer as its float self, rounded to int8.

Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference. Jacob et al. 2018,
arXiv 1712.05877; distilled from the float network as in Mishra and Marr 2018, arXiv 1711.05852.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from handlens.compress.fake import Rounded, ranges_of
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.train import Recipe, distil, loop
from handlens.train.pixels import Fixed, Pixels

TEMPERATURE = 2.0  # of the float network's answers
HARD_SHARE = 0.1  # of the loss: cross-entropy with the labels; the rest are the float network's answers
MOMENTUM = 0.05  # share of each batch in the ranges of activations
FROZEN_SHARE = 1 / 3  # of the steps, the last ones: batch norm and ranges stay as they are
CALIBRATION = 64  # training photos that the ranges are taken from when they are no longer to move


def train(
    net: Net,
    photos: Photos,
    validation: Photos,
    preprocess: Preprocess,
    *,
    epochs: int = 3,
    lr: float = 1e-4,
    seed: int = 0,
    cache_mb: int = 2048,
    flip: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Net:
    """A copy of `net`, batch norm not folded, trained on `photos` so that its answers survive rounding to int8.

    It computes rounded (`fake.Rounded`) while it learns, on the device it lies on, and is judged so on validation
    after each epoch; kept is the epoch of the best top-1, by likeness to the float answers where there are several.
    flip: whether half of the photos are mirrored. The result is an ordinary network with the same names: fold it,
    export it, quantise it. Raises HandlensError when the loss is no longer a number.
    """
    recipe = _recipe(net, len(photos), preprocess, epochs, lr, seed, cache_mb, flip)
    device = next(net.parameters()).device
    teacher = copy.deepcopy(net).eval().requires_grad_(False)
    student = loop.prepare(copy.deepcopy(net), recipe)
    optimizer = loop.optimizer_for(loop.parameter_groups(student, recipe), recipe)
    with contextlib.closing(Pixels(photos, preprocess, cache_mb)) as pixels:
        make = loop.Batches(pixels, recipe, preprocess, device)
        chosen = np.sort(np.random.default_rng(seed).permutation(len(photos))[:CALIBRATION])
        calibration = Fixed(photos.select(chosen), preprocess, cache_mb)
        plain = torch.cat([make.plain(images) for images, _ in calibration])
        judged = Fixed(validation, preprocess, cache_mb)
        ranges = ranges_of(student.eval(), plain)
        plan = loop.batches_of(loop.order_of(photos.labels, recipe, 0), recipe.batch_size)
        total, done = epochs * len(plan), 0
        frozen_from = math.ceil(total * (1 - FROZEN_SHARE))
        best: tuple[float, float] = (-1.0, 0.0)
        weights: Mapping[str, Any] = {}
        for epoch in range(epochs):
            plan = loop.batches_of(loop.order_of(photos.labels, recipe, epoch), recipe.batch_size)
            _training_mode(student, frozen=done >= frozen_from)
            for step, indices in enumerate(plan):
                if done == frozen_from:
                    ranges = ranges_of(student.eval(), plain)
                    _training_mode(student, frozen=True)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * loop.rate_at(epoch + (step + 0.5) / len(plan), recipe)
                images, targets = make.make(indices, [seed, epoch, step])
                with torch.no_grad():
                    expected = teacher(images)
                with Rounded(student, ranges, momentum=0.0 if done >= frozen_from else MOMENTUM):
                    loss = loss_of(student(images), expected, targets)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
                if not math.isfinite(loss.item()):
                    raise HandlensError(
                        f"the loss became {loss.item()} in epoch {epoch + 1} of quantization-aware training",
                        f"use a lower rate than {lr:g}",
                    )
                done += 1
                if progress:
                    progress(done, total)
            found = _judge(student.eval(), teacher, judged, make, ranges_of(student, plain))
            if found >= best:
                best = found
                weights = {name: value.clone() for name, value in student.state_dict().items()}
    trained = copy.deepcopy(net).eval()
    trained.load_state_dict(weights)
    return trained


def loss_of(logits: Tensor, expected: Tensor, targets: Tensor) -> Tensor:
    """The loss of logits (B, K): mostly their divergence from the expected ones, a little from the targets (B, K)."""
    soft = distil.divergence(logits, expected, TEMPERATURE)
    return (1 - HARD_SHARE) * soft + HARD_SHARE * loop.soft_cross_entropy(logits, targets)


def _recipe(
    net: Net, num_photos: int, preprocess: Preprocess, epochs: int, lr: float, seed: int, cache_mb: int, flip: bool
) -> Recipe:
    """Mild: what has been learned stays, and only finds weights that round well."""
    px = preprocess.image_px
    train_px = round(0.8 * px / 16) * 16 if px >= 160 else px  # as `train.recipe.choose`
    try:
        net.check_input(train_px)
    except HandlensError:
        train_px = px
    return Recipe(
        image_px=px,
        train_px=train_px,
        seed=seed,
        epochs=epochs,
        batch_size=max(2, min(32, num_photos)),
        lr=lr,
        backbone_lr_ratio=1.0,
        warmup_epochs=0.0,
        weight_decay=0.0,
        augment="light",
        flip=flip,
        label_smoothing=0.0,
        dropout=0.0,
        cache_mb=cache_mb,
    )


def _training_mode(net: nn.Module, frozen: bool) -> None:
    net.train()
    for module in net.modules():
        if frozen and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def _judge(
    net: Net, teacher: Net, photos: Fixed, make: loop.Batches, ranges: dict[str, tuple[float, float]]
) -> tuple[float, float]:
    """Top-1 (a fraction) of the rounded network, and minus its mean divergence from the float one: higher is better."""
    right, divergence, count = 0, 0.0, 0
    with Rounded(net, ranges):
        for pixels, labels in photos:
            images = make.plain(pixels)
            found, expected = net(images).log_softmax(1), teacher(images).log_softmax(1)
            divergence += float((expected.exp() * (expected - found)).sum())
            right += int((found.argmax(1).cpu() == torch.from_numpy(labels)).sum())
            count += len(labels)
    return right / max(1, count), -divergence / max(1, count)
