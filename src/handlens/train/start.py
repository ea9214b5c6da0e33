"""What a run starts from: its photos with their splits, and its network with the weights' own pixel contract."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from handlens import checkpoint, nets
from handlens import photos as photos_room
from handlens.errors import HandlensError
from handlens.nets import Net, weights
from handlens.photos import Findings, Photos
from handlens.preprocess import Preprocess
from handlens.train.recipe import Recipe

SPLIT = "split.json"


@dataclasses.dataclass(frozen=True)
class Data:
    """The photos of a run: "train", "validation" and "test", the hash of each file, and what was left out and why."""

    splits: dict[str, Photos]
    sha256: dict[str, str]
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names, in the order of the logits."""
        return self.splits["train"].classes


def look(source: str, progress: Callable[[int, int], None] | None) -> tuple[Photos, Findings, list[str]]:
    """Scan and examine photos: the usable ones, the findings, and a sentence on each thing that was found."""
    found = photos_room.scan(source)
    findings = photos_room.examine(found, progress)
    whole = photos_room.usable(found, findings)
    notes = [f"left out {path}: {reason}" for path, reason in findings.broken]
    if findings.duplicates:
        first = " = ".join(findings.duplicates[0])
        notes.append(f"{len(findings.duplicates)} groups of identical photos are kept on one side each ({first} ...)")
    return whole, findings, notes


def data_of(recipe: Recipe, stored: Path | None, progress: Callable[[int, int], None] | None = None) -> Data:
    """The photos of a recipe with their splits: read from `stored` (a split.json) if given, else cut anew.

    With `continue_run`, the earlier run's splits are kept as they are and the added photos join train and validation;
    classes that are new get a test share too.
    """
    if recipe.continue_run:
        return _continued(recipe, progress)
    whole, findings, notes = look(recipe.photos, progress)
    photos_room.check_trainable(whole)
    if stored:
        splits = photos_room.read_split(stored, whole, findings.sha256)
    else:
        splits = photos_room.split(whole, findings.sha256, recipe.seed, duplicates=findings.duplicates)
    return Data(splits, findings.sha256, tuple(notes))


def _continued(recipe: Recipe, progress: Callable[[int, int], None] | None) -> Data:
    facts = checkpoint.read_facts(recipe.continue_run)
    source = recipe.photos or facts["recipe"].get("photos", "")
    if not source:
        raise HandlensError(f"{recipe.continue_run} does not name its photos", "name them: handlens train PHOTOS ...")
    old, old_findings, notes = look(source, progress)
    kept = photos_room.read_split(Path(recipe.continue_run, SPLIT), old, old_findings.sha256)
    if not recipe.add:
        return Data(kept, old_findings.sha256, tuple(notes))
    new, new_findings, new_notes = look(recipe.add, progress)
    known = set(old_findings.pixels.values())
    again = [path for path in new.paths if new_findings.pixels[path] in known]
    if again:
        new_notes.append(f"left out {len(again)} added photos that the run has already ({again[0]} ...)")
    new = new.without(again)
    if not len(new):
        raise HandlensError(f"{recipe.add} has no photo that the run does not have already", "add other photos")
    cut = photos_room.split(new, new_findings.sha256, recipe.seed, duplicates=new_findings.duplicates)
    classes = (*facts["classes"], *(name for name in new.classes if name not in facts["classes"]))
    unseen = [index for index, name in enumerate(new.classes) if name not in facts["classes"]]
    is_test = np.isin(cut["test"].labels, unseen)
    cut["train"] = _joined(cut["train"], cut["test"].select(np.flatnonzero(~is_test)), new.classes)
    cut["test"] = cut["test"].select(np.flatnonzero(is_test))
    splits = {name: _joined(kept[name], cut[name], classes) for name in kept}
    root = _common_root(old.root, new.root)
    sha256 = {_below(root, photos.root, path): found.sha256[path]
              for photos, found in ((old, old_findings), (new, new_findings)) for path in photos.paths}  # fmt: skip
    notes += [*new_notes, f"{len(kept['test'])} test photos of {recipe.continue_run} are kept as they were"]
    return Data(splits, sha256, tuple(notes))


def _joined(first: Photos, second: Photos, classes: Sequence[str]) -> Photos:
    first, second = first.as_classes(classes), second.as_classes(classes)
    root = _common_root(first.root, second.root)
    paths = [_below(root, photos.root, path) for photos in (first, second) for path in photos.paths]
    return Photos(root, tuple(paths), np.concatenate([first.labels, second.labels]), tuple(classes))


def _common_root(first: Path, second: Path) -> Path:
    if first == second:
        return first
    try:
        return Path(os.path.commonpath([first.resolve(), second.resolve()]))
    except ValueError:  # two drives
        raise HandlensError(f"{first} and {second} are on different drives", "bring the photos together") from None


def _below(root: Path, own_root: Path, path: str) -> str:
    return path if root == own_root else (own_root.resolve() / path).relative_to(root).as_posix()


@dataclasses.dataclass(frozen=True)
class Start:
    """A network ready to be trained: what `nets.create` needs to make it again, its contract, and a sentence."""

    net: Net
    arguments: dict[str, Any]
    preprocess: Preprocess
    note: str


def start_of(recipe: Recipe, classes: Sequence[str]) -> Start:
    """Build the network of a recipe for these classes, with the weights it names and a new classifier."""
    torch.manual_seed(recipe.seed)
    if recipe.continue_run:
        return _from_run(recipe, classes)
    if recipe.weights == "none":
        if recipe.mode in ("last", "head"):
            raise HandlensError(
                f"--mode {recipe.mode} trains on top of weights, and --weights is none",
                "give --weights imagenet or a file, or use --mode scratch",
            )
        arguments: dict[str, Any] = {"width": recipe.width} if recipe.width != 1 else {}
        net = nets.create(recipe.net, len(classes), **arguments)
        preprocess = Preprocess().at(recipe.image_px)
        note = "random weights"
    else:
        file = weights.find(recipe.net, recipe.weights, recipe.width)
        net = nets.replace_head(weights.load(file), len(classes))
        arguments = dict(file.arguments)
        preprocess = file.preprocess.at(recipe.image_px)
        note = f"weights {file.label}, pixels as they were made for"
    nets.check_input(net, recipe.image_px)
    if recipe.train_px:
        nets.check_input(net, recipe.train_px)
    return Start(net, arguments, preprocess, note)


def _from_run(recipe: Recipe, classes: Sequence[str]) -> Start:
    """The earlier run's network; rows of the classifier for classes it does not know are new."""
    earlier = checkpoint.load(recipe.continue_run)
    net = earlier.net
    old = net.classifier[-1]
    assert isinstance(old, nn.Linear)
    if len(classes) > len(earlier.classes):
        nets.replace_head(net, len(classes))
        new = net.classifier[-1]
        assert isinstance(new, nn.Linear)
        with torch.no_grad():
            new.weight[: old.out_features] = old.weight
            new.bias[: old.out_features] = old.bias
    return Start(net, earlier.arguments, earlier.preprocess, f"the weights of {recipe.continue_run}")


def defaults_from_run(run: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a continued run takes over from the earlier one: its net and size cannot change."""
    facts = checkpoint.read_facts(run)
    fixed = {"net": facts["net"], "image_px": facts["preprocess"].get("image_px")}
    for name, value in fixed.items():
        if given.get(name, value) != value:
            raise HandlensError(
                f"{name} is {given[name]}, but {run} has {value}", f"leave out --{name.replace('_', '-')}"
            )
    if given.get("mode") == "scratch":
        raise HandlensError("a continued run does not start from scratch", "use --mode full, last or head")
    return {"mode": "full", **given, **fixed, "weights": "none", "width": facts["arguments"].get("width", 1.0)}
