"""What a training is going to do, in words, before it begins."""

from __future__ import annotations

import copy
import dataclasses
import platform
from collections.abc import Collection, Mapping, Sequence

import torch
from lightning_fabric import Fabric

from handlens.errors import counted
from handlens.photos import Photos
from handlens.photos.scan import listed
from handlens.train import last, loop, modes, start
from handlens.train.cut import Cut
from handlens.train.data import Data
from handlens.train.features import Frozen
from handlens.train.head import epoch_s, seconds_of_head
from handlens.train.recipe import FEW_A_CLASS, Recipe

_FEW = 5  # training photos of a class


def plan(
    recipe: Recipe,
    data: Data,
    begun: start.Start,
    step_s: float,
    fabric: Fabric,
    cut: Cut | None = None,
    frozen: Frozen | None = None,
    done: int | None = None,
    given: Collection[str] | None = None,
) -> str:
    """What will be done, and about how long it takes.

    step_s: seconds a step, in all modes but head. cut, frozen: of modes last and head, where there is one. done: epochs
    of a run that goes on, None for a new one. given: the fields of its recipe that were, where known.
    """
    sizes = ", ".join(f"{len(photos)} {name}" for name, photos in data.splits.items())
    photos = len(data.splits["train"])
    cached = ""
    if frozen:
        views = {"train": recipe.head_views}
        lacking = {k: frozen.num_lacking(v, data.sha256, views.get(k, 0)) for k, v in data.splits.items()}
        seconds = seconds_of_head(recipe, data.splits, frozen, lacking)
        if known := sum(map(len, data.splits.values())) - sum(lacking.values()):
            cached = f", as the features of {counted(known, 'photo')} are in the cache"
        first = len(begun.net.classifier) - 1
        tried = modes.with_hidden(recipe, dataclasses.replace(begun, net=copy.deepcopy(begun.net))).net
        seconds += recipe.epochs * epoch_s(tried, first, photos, recipe)
    else:
        seconds = recipe.work(done or 0) * step_s * 1.15 * max(1, photos // recipe.batch_size // fabric.world_size)
        if cut and done is None:  # else they are in the cache
            seconds += last.caching_s(cut, recipe, photos, fabric.device)
    why = {
        "full": "all weights are fine-tuned",
        "last": f"the last {recipe.last_blocks} blocks are trained"
        + (f", the others see {last.num_views(recipe)} crops of each photo once" if cut else ""),
        "head": "a new classifier is trained on frozen features",
        "scratch": "everything is learned from these photos alone",
    }[recipe.mode]
    default = " (the default)" if given is not None and "net" not in given else ""
    return (
        f"{recipe.net}{default} at {recipe.image_px} px, mode {recipe.mode} ({why}), {begun.note}; "
        f"{len(data.classes)} classes, {sizes}; {counted(recipe.epochs, 'epoch')} of "
        f"{recipe.batch_size} a batch in {recipe.precision} on {device_name(fabric.device)}: "
        f"about {_duration(seconds)}{' for what is left' if done else ''}" + cached
    )


def why_mode(mode: str, counts: Sequence[int]) -> str:
    """Why a mode was chosen where none was given, for `counts` training photos a class."""
    each = f"{counted(round(sum(counts) / len(counts)), 'training photo')} a class"
    measured = f"up to {FEW_A_CLASS} it did at least as well as full when both were measured, in less time"
    return f"mode last is chosen for {each}: {measured}" if mode == "last" else f"mode full is chosen for {each}"


def few(splits: Mapping[str, Photos]) -> list[str]:
    """A sentence on the classes that are learned from hardly any photo, and one on those that no photo tests."""
    train, test = splits["train"], splits["test"]
    learned = {name: int(count) for name, count in zip(train.classes, train.counts(), strict=True) if count < _FEW}
    untested = [name for name, count in zip(test.classes, test.counts(), strict=True) if len(test) and not count]
    most = counted(max(learned.values(), default=0), "photo")
    return [
        *([f"learned from no more than {most} each: {listed(learned)}; add photos, or remove them"] if learned else []),
        *([f"no test photo says how well {listed(untested)} will be told: add photos"] if untested else []),
    ]


def why_weights(counts: Sequence[int]) -> str:
    """Why balance "weights" was chosen where none was given, for `counts` training photos a class."""
    times = min(loop.MOST_WEIGHT, max(counts) / max(1, min(counts)))
    return (
        f"photos of rare classes count up to {times:.3g} times as much as others (--balance weights), for the "
        f"classes have {min(counts)} to {max(counts)} training photos"
    )


def device_name(device: torch.device) -> str:
    """A device as figures are told with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
