"""Mode "head": a new classifier on the features of a frozen network."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from handlens.cores import available
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.photos import Photos
from handlens.train import trial
from handlens.train.features import Frozen, by_onnxruntime
from handlens.train.loop import (
    Kept,
    batches_of,
    class_weights_of,
    optimizer_for,
    order_of,
    rate_at,
    soft_cross_entropy,
)
from handlens.train.recipe import Recipe


def fit_head(
    net: Net,
    num_frozen: int,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    recipe: Recipe,
    on_epoch: Callable[[list[dict[str, float]]], None] = lambda log: None,
) -> tuple[Net, list[dict[str, float]]]:
    """Train the modules of `net.classifier` from index `num_frozen` on; returns the network and a row a epoch.

    train: features float32 (V, N, F) of V views of N photos, and labels int64 (N,); each photo of each epoch shows one
    view. validation: the same with its first view used. Kept is the latest epoch that validation finds as good as the
    best (`loop.Kept`).
    """
    features, labels = torch.from_numpy(train[0]), train[1]
    val_features, val_labels = torch.from_numpy(validation[0][0]), torch.from_numpy(validation[1])
    torch.manual_seed(recipe.seed)
    # Standardised features make one learning rate fit every network; the scale is folded into the layer afterwards.
    mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-3
    features, val_features = (features - mean) / std, (val_features - mean) / std
    head = nn.Sequential(*list(net.classifier)[num_frozen:]).cpu()
    first = next(module for module in head if isinstance(module, nn.Linear))
    if recipe.continue_run:  # what it has learned is for features as they come
        with torch.no_grad():
            first.bias.add_(first.weight @ mean)
            first.weight.mul_(std)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in head.parameters() if p.ndim > 1], "peak_lr": recipe.lr},
        {"params": [p for p in head.parameters() if p.ndim <= 1], "peak_lr": recipe.lr, "weight_decay": 0.0},
    ]
    groups[0]["weight_decay"] = recipe.weight_decay
    optimizer = optimizer_for([{**group, "lr": group["peak_lr"]} for group in groups], recipe)
    num_classes = net.num_classes
    weights = class_weights_of(labels, num_classes) if recipe.balance == "weights" else None
    targets = F.one_hot(torch.from_numpy(labels), num_classes).float()
    targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / num_classes
    weights_kept, kept = {}, Kept(len(val_labels))
    log: list[dict[str, float]] = []
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        head.train()
        plan = batches_of(order_of(labels, recipe, epoch), recipe.batch_size)
        rng = np.random.default_rng([recipe.seed, epoch, 1])
        views = rng.integers(len(features), size=len(labels))
        total, right = 0.0, 0
        for step, indices in enumerate(plan):
            factor = rate_at(epoch + (step + 1) / len(plan), recipe)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            seen = features[views[indices], indices]
            if recipe.dropout:  # numpy draws three times as fast as nn.Dropout, which would take a third of the time
                seen = seen * torch.from_numpy(rng.random(seen.shape, np.float32) >= recipe.dropout)
                seen = seen / (1 - recipe.dropout)
            logits = head(seen)
            loss = soft_cross_entropy(logits, targets[indices], weights)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(indices)
            right += int((logits.argmax(1) == torch.from_numpy(labels[indices])).sum())
        if not math.isfinite(total):
            raise HandlensError(
                f"the loss became {total} in epoch {epoch + 1}",
                f"remove this run, or choose another --out, and train with a lower --lr than {recipe.lr:g}",
            )
        seconds = time.perf_counter() - start
        head.eval()
        with torch.inference_mode():
            logits = head(val_features)
        val_loss = F.cross_entropy(logits, val_labels).item() if len(val_labels) else 0.0
        top1 = float((logits.argmax(1) == val_labels).float().mean()) if len(val_labels) else 0.0
        log.append(
            {
                "epoch": epoch + 1,
                "train_loss": total / len(labels),
                "train_top1": right / len(labels),
                "validation_loss": val_loss,
                "validation_top1": top1,
                "lr": recipe.lr * rate_at(epoch + 1, recipe),
                "photos_per_s": len(labels) / seconds,
                "seconds": seconds,
            }
        )
        if kept.take(log[-1]):
            weights_kept = {key: value.clone() for key, value in head.state_dict().items()}
        on_epoch(log)
        if recipe.patience_epochs and epoch + 1 - kept.best_epoch >= recipe.patience_epochs:
            break
    head.load_state_dict(weights_kept)
    with torch.no_grad():
        first.bias.sub_(first.weight @ (mean / std))
        first.weight.div_(std)
    return net.cpu().eval(), log


_ONNX_FASTER = 2.5  # than torch on as many cores: measured 1.1 (MobileNetV1 at width 0.25) to 4 (EfficientNet-Lite0)
_REST_S = 4.0  # making onnxruntime's file, judging, the report


def epoch_s(net: Net, num_frozen: int, num_photos: int, recipe: Recipe) -> float:
    """Seconds of an epoch of `fit_head` on so many photos, from a trial of a few steps, which changes `net`."""
    width = next(module for module in net.classifier[num_frozen:] if isinstance(module, nn.Linear)).in_features
    count = min(num_photos, recipe.batch_size)
    side = np.zeros((1, count, width), np.float32), np.arange(count) % net.num_classes
    tried = dataclasses.replace(recipe, epochs=8, warmup_epochs=1.0, patience_epochs=0)
    _, log = fit_head(net, num_frozen, side, side, tried)
    return statistics.mean(row["seconds"] for row in log[1:]) * math.ceil(num_photos / recipe.batch_size)


def seconds_of_head(
    recipe: Recipe, splits: Mapping[str, Photos], frozen: Frozen, num_lacking: Mapping[str, int]
) -> float:
    """About how long a run in mode head takes beside its epochs.

    num_lacking: how many photos of each split have no features in the cache. Each of them is decoded once, which is
    timed on four of them, and each of its views is passed forward once, which is timed in torch.
    """
    train = splits["train"]
    if not (num_photos := sum(num_lacking.values())):
        return _REST_S
    few = range(0, len(train), max(1, len(train) // 4))[:4]
    start = time.perf_counter()
    for index in few:
        frozen.preprocess.load(train.path(index))
    decoding_s = num_photos * (time.perf_counter() - start) / len(few) / available()
    step_s = trial.pass_s(copy.deepcopy(frozen.net).to(frozen.device).eval(), recipe, frozen.device)
    passing_s = (num_photos + num_lacking["train"] * recipe.head_views) * step_s / recipe.batch_size
    if by_onnxruntime(frozen.device, len(train) * (1 + recipe.head_views)):
        passing_s *= torch.get_num_threads() / available() / _ONNX_FASTER
    return _REST_S + decoding_s + passing_s
