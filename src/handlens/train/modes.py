"""How each mode trains: whole networks, last blocks on cached maps, heads on cached features."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from handlens import nets
from handlens.evaluate import unknown
from handlens.evaluate.nearest import Nearest
from handlens.photos import Photos
from handlens.train import familiar, last, logs, loop, mistakes, on_device, start
from handlens.train.cut import Cut
from handlens.train.data import Data
from handlens.train.features import Frozen
from handlens.train.head import fit_head
from handlens.train.pixels import Fixed, Pixels
from handlens.train.recipe import Recipe
from handlens.train.watcher import Watcher, counter

_MOST_SEEN = 10_000  # training photos, whose features are kept in memory


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, a row an epoch, and what its features tell.

    nearest: the training photos as the network sees them.  logits: what a head answers to photos of the run, (N, K).
    """

    begun: start.Start
    log: list[dict[str, float]]
    nearest: Nearest | None = None
    logits: Callable[[Photos], np.ndarray] | None = None


def fit_whole(
    recipe: Recipe,
    data: Data,
    begun: start.Start,
    folder: Path,
    fabric: Fabric,
    watcher: Watcher,
    cut: Cut | None = None,
) -> Trained:
    """All blocks, or the last ones: on cached maps of the frozen blocks where there is a cut, else on photos."""

    def on_epoch(log: list[dict[str, float]]) -> None:
        if fabric.global_rank == 0:
            logs.write_csv(folder / "log.csv", log, watcher.note)
            logs.write_events(folder / "tensorboard", log[-1:])
            watcher.epoch(log)

    learned, judged = learned_and_judged(data)
    if cut:
        counting = counter(watcher, "frozen blocks' maps of photos")
        maps = last.maps_of(cut, recipe, begun.preprocess, learned, judged, data.sha256, fabric.device, counting)
        if maps:
            net, log = last.fit(cut, maps, recipe, begun.preprocess, folder, fabric, watcher.step, on_epoch)
            return Trained(dataclasses.replace(begun, net=net), log)
        watcher.note(last.anew("the frozen blocks' maps have values too great for float16"))
    with contextlib.closing(Pixels(learned, begun.preprocess, recipe.cache_mb)) as pixels:
        net, log = loop.fit(
            loop.prepare(begun.net, recipe),
            on_device.batches(pixels, recipe, begun.preprocess, fabric.device, watcher.note),
            Fixed(judged, begun.preprocess, recipe.cache_mb // 4),
            recipe,
            begun.preprocess,
            folder,
            fabric,
            on_step=watcher.step if fabric.global_rank == 0 else lambda step: None,
            on_epoch=on_epoch,
            teacher=begun.teacher,
        )
    return Trained(dataclasses.replace(begun, net=net), log)


def learned_and_judged(data: Data) -> tuple[Photos, Photos]:
    """Training and validation photos; the same twice where there are none for validation."""
    train, validation = data.splits["train"], data.splits["validation"]
    return train, validation if len(validation) else train


def with_hidden(recipe: Recipe, begun: start.Start) -> start.Start:
    """The start with the recipe's extra fully connected layer, if it names one that is not there yet."""
    if recipe.head_hidden == begun.arguments.get("head_hidden", 0):
        return begun
    torch.manual_seed(recipe.seed)  # trying precisions may have drawn numbers
    dropout = min(0.2, recipe.dropout)  # a head's features are dropped before; else `loop.prepare` sets it
    net = nets.replace_head(begun.net, begun.net.num_classes, recipe.head_hidden, dropout)
    return dataclasses.replace(begun, net=net, arguments={**begun.arguments, "head_hidden": recipe.head_hidden})


def frozen_of(recipe: Recipe, begun: start.Start, device: torch.device) -> Frozen:
    """The network of a run in mode head, before it has an extra layer."""
    return Frozen(
        copy.deepcopy(begun.net),
        begun.preprocess,
        # Recipes of earlier versions say "trivial" and less than the half that heads were given all the same.
        min_area=max(0.5, recipe.crop_min_area) if recipe.augment == "trivial" else recipe.crop_min_area,
        flip=recipe.flip,
        precision=recipe.precision,
        device=device,
    )


def fit_frozen(
    recipe: Recipe, data: Data, begun: start.Start, folder: Path, fabric: Fabric, watcher: Watcher, *, frozen: Frozen
) -> Trained:
    """A new head on features of the frozen network."""

    def features(name: str, views: int) -> np.ndarray:
        counting = counter(watcher, f"features of {name} photos")
        return frozen.features(data.splits[name], data.sha256, views, counting)

    seen = features("train", recipe.head_views)
    train = seen, data.splits["train"].labels
    validation = data.splits["validation"]
    judged = (features("validation", 0), validation.labels) if len(validation) else (seen[:1], train[1])
    nearest = mistakes.nearest(frozen, data.splits["train"], data.sha256, seen[0])
    begun = with_hidden(recipe, begun)
    first = len(frozen.net.classifier) - 1
    net, log = fit_head(begun.net, first, train, judged, recipe, watcher.epoch)

    def raw(vectors: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answers: np.ndarray = net.classifier[first:](torch.from_numpy(vectors)).numpy()
        return answers

    if len(validation):
        net.familiar = familiar.fit(first, seen[0], train[1], judged[0][0], raw(judged[0][0]))
    if fabric.global_rank == 0:
        logs.write_events(folder / "tensorboard", log)

    def logits(photos: Photos) -> np.ndarray:
        counting = counter(watcher, "features of photos to judge on")
        vectors = frozen.features(photos, data.sha256, progress=counting)[0]
        answers = raw(vectors)
        if known := net.familiar:
            tensors = torch.from_numpy(vectors), torch.from_numpy(answers)
            answers = known.lowered(*tensors, known.centres).numpy()
        return answers

    return Trained(dataclasses.replace(begun, net=net), log, nearest, logits)


def with_looks(trained: Trained, recipe: Recipe, data: Data, device: torch.device, watcher: Watcher) -> Trained:
    """A network that was not frozen, with what its training photos now look like to it.

    `familiar` is fitted where it began from weights: of networks from scratch nobody has measured whether it helps.
    Of more than `_MOST_SEEN` training photos so many are drawn.
    """
    net, train, validation = trained.begun.net, data.splits["train"], data.splits["validation"]
    if len(train) > _MOST_SEEN:
        drawn = np.random.default_rng(recipe.seed).choice(len(train), _MOST_SEEN, replace=False)
        train = train.select(np.sort(drawn))
    bare = nets.without_hidden(net, trained.begun.arguments)
    frozen = Frozen(bare, trained.begun.preprocess, device=device)

    def features(photos: Photos, what: str) -> np.ndarray:
        return frozen.features(photos, data.sha256, progress=counter(watcher, f"features of {what} photos"))[0]

    seen = features(train, "train")
    if recipe.mode != "scratch" and len(validation) >= unknown.FEWEST:
        judged, depth = features(validation, "validation"), len(bare.classifier) - 1
        with torch.inference_mode():
            answers = copy.deepcopy(net.classifier[depth:]).cpu()(torch.from_numpy(judged)).numpy()
        net.familiar = familiar.fit(depth, seen, train.labels, judged, answers)
    return dataclasses.replace(trained, nearest=mistakes.nearest(frozen, train, data.sha256, seen))
