"""The network that a run starts from, with the weights' own pixel contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from handlens import checkpoint, nets
from handlens.errors import HandlensError
from handlens.nets import Net, weights
from handlens.preprocess import Preprocess
from handlens.train.distil import Teacher
from handlens.train.prune import shrink
from handlens.train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Start:
    """A network ready to be trained: what `nets.create` needs to make it again, its contract, and a sentence.

    teacher: whose answers it learns beside the labels, where the recipe names one.
    """

    net: Net
    arguments: dict[str, Any]
    preprocess: Preprocess
    note: str
    teacher: Teacher | None = None


def check_mode(recipe: Recipe) -> None:
    """That a recipe's mode goes with what else it names. Raises HandlensError."""
    if recipe.weights == "none" and recipe.mode in ("last", "head") and not recipe.continue_run:
        raise HandlensError(
            f"--mode {recipe.mode} trains on top of weights, and --weights is none",
            "give --weights imagenet or a file, or use --mode scratch",
        )
    if recipe.teacher and recipe.mode == "head":
        raise HandlensError(
            "mode head trains on stored features, which a teacher does not see", "use --mode full, last or scratch"
        )
    if recipe.prune and recipe.mode != "full":
        raise HandlensError("a pruned network has to be trained as a whole again", "leave out --mode, or --prune")


def start_of(recipe: Recipe, classes: Sequence[str]) -> Start:
    """Build the network of a recipe for these classes, with the weights it names and a new classifier; its teacher."""
    check_mode(recipe)
    begun = _untaught(recipe, classes)
    if not recipe.teacher:
        return begun
    note = f"{begun.note}, taught by {recipe.teacher}"
    return dataclasses.replace(begun, teacher=Teacher(recipe, classes, begun.preprocess), note=note)


def _untaught(recipe: Recipe, classes: Sequence[str]) -> Start:
    torch.manual_seed(recipe.seed)
    if recipe.continue_run:
        return _from_run(recipe, classes)
    if recipe.weights == "none":
        arguments: dict[str, Any] = {"width": recipe.width} if recipe.width != 1 else {}
        net = nets.create(recipe.net, len(classes), **arguments)
        preprocess = Preprocess().at(recipe.image_px)
        note = "random weights"
    else:
        file = weights.find(recipe.net, recipe.weights, recipe.width)
        net = nets.replace_head(weights.load(file), len(classes))
        arguments = dict(file.arguments)
        preprocess = file.preprocess.at(recipe.image_px)
        best = " (the best published for it)" if recipe.weights == "imagenet" else ""
        made_px = file.preprocess.image_px
        at = f", but {recipe.image_px} px in place of {made_px}" if recipe.image_px != made_px else ""
        note = f"weights {file.label}{best}, {file.pixels}{at}"
    if recipe.mode in ("full", "scratch"):  # learning from random crops, it gains by seeing the whole shorter side
        preprocess = dataclasses.replace(preprocess, resize_px=preprocess.image_px)
    if recipe.normalisation != "own":
        preprocess = dataclasses.replace(
            preprocess, normalisation=recipe.normalisation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
    for px in (recipe.image_px, *recipe.crops_px):
        nets.check_input(net, px)
    return Start(net, arguments, preprocess, note)


def _from_run(recipe: Recipe, classes: Sequence[str]) -> Start:
    """The earlier run's network; rows of the classifier for classes it does not know are new."""
    if not Path(recipe.continue_run).is_dir():
        raise HandlensError(
            f"the run {recipe.continue_run}, whose weights this training begins with, is no longer there",
            "put it back, or begin anew",
        )
    earlier = checkpoint.load(recipe.continue_run)
    net = earlier.net
    net.familiar = None  # its photos will look otherwise
    old = net.classifier[-1]
    assert isinstance(old, nn.Linear)
    if len(classes) > len(earlier.classes):
        nets.replace_head(net, len(classes))
        new = net.classifier[-1]
        assert isinstance(new, nn.Linear)
        with torch.no_grad():
            new.weight[: old.out_features] = old.weight
            new.bias[: old.out_features] = old.bias
    if not recipe.prune:
        return Start(net, earlier.arguments, earlier.preprocess, f"the weights of {recipe.continue_run}")
    net, widths = shrink(net, recipe.prune)
    note = f"the weights of {recipe.continue_run} without {recipe.prune:.0%} of the expansion channels"
    return Start(net, {**earlier.arguments, "expanded": widths}, earlier.preprocess, note)


def defaults_from_run(run: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a continued run takes over from the earlier one: its network, head, size and normalisation cannot change.

    Whether photos are mirrored is taken over, too, unless it is given.
    """
    facts = checkpoint.read_facts(run)
    fixed = {
        "net": facts["net"],
        "image_px": facts["preprocess"].get("image_px"),
        "width": facts["arguments"].get("width", 1.0),
        "head_hidden": facts["arguments"].get("head_hidden", 0),
        "weights": "none",  # but the run's own
        "normalisation": "own",
    }
    for name, value in fixed.items():
        if given.get(name, value) != value:
            tail = "" if value in ("none", "own") else f", {value}"
            raise HandlensError(
                f"{name} is {given[name]}, but {run} goes on with its own{tail}",
                f"leave out --{name.replace('_', '-')}",
            )
    if given.get("mode") == "scratch":
        raise HandlensError("a continued run does not start from scratch", "use --mode full, last or head")
    # Whether left and right matter is the photos' own.
    return {"mode": "full", "flip": facts["recipe"].get("flip", True), **given, **fixed}
