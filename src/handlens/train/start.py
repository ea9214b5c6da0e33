"""What a run starts from: its photos with their splits, and its network with the weights' own pixel contract."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from handlens import checkpoint, files, nets
from handlens import photos as photos_room
from handlens.errors import HandlensError, counted
from handlens.nets import Net, weights
from handlens.photos import Findings, Photos
from handlens.photos.published import PUBLISHED
from handlens.photos.scan import SPLITS, listed
from handlens.preprocess import Preprocess
from handlens.train.distil import Teacher
from handlens.train.prune import shrink
from handlens.train.recipe import Recipe

SPLIT = "split.json"
EARLIER = "earlier"  # in a continued run's folder: what it needs of the run that it goes on from
_SORTED_APART = ("unsure", "unknown")  # the folders that `handlens predict --sort-into` makes beside the classes


@dataclasses.dataclass(frozen=True)
class Data:
    """The photos of a run: "train", "validation" and "test"; what was left out and why.

    sha256, pixels: the hash of each file and that of its decoded pixels, by path.
    left_out: the photos that cannot be read, as (path, reason); `notes` tell of them too.
    test_is: how the test photos came to be those, in words.
    """

    splits: dict[str, Photos]
    sha256: dict[str, str]
    pixels: dict[str, str]
    notes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    test_is: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names, in the order of the logits."""
        return self.splits["train"].classes


def look(
    source: str,
    progress: Callable[[int, int], None] | None,
    *,
    is_split: bool = False,
    keep_empty: bool = False,
) -> tuple[Photos, Findings, list[str]]:
    """Scan and examine photos: the usable ones, the findings, and a sentence on each thing that was found.

    A class without any is an error, unless `is_split`: then it came after the photos were split, and is no matter.
    keep_empty: a class folder without photos is no matter either, but one whose photos are all broken is.
    """
    found = photos_room.scan(source, keep_empty=keep_empty or is_split)
    findings = photos_room.examine(found, progress)
    broken = [path for path, _ in findings.broken]
    whole = found.without(broken) if is_split else photos_room.usable(found, findings)
    notes = [f"left out {path}: {reason}" for path, reason in findings.broken]
    label = dict(zip(found.paths, found.labels.tolist(), strict=True))
    torn = [group for group in findings.duplicates if len({label[path] for path in group}) > 1]
    if torn:
        notes.append(
            f"{len(torn)} photo{'s lie' if len(torn) > 1 else ' lies'} in two classes, and both are learned "
            f"({' = '.join(torn[0][:2])}{' ...' if len(torn) > 1 else ''}): `handlens examine PHOTOS` shows them"
        )
    notes += [
        f"{name!r} is learned as a class: remove its folder if `handlens predict --sort-into` made it"
        for name, number in zip(whole.classes, whole.counts(), strict=True)
        if number and name in _SORTED_APART
    ]
    return whole, findings, notes


def together(
    splits: dict[str, Photos], findings: Findings, named: Collection[str] = ()
) -> tuple[dict[str, Photos], list[str]]:
    """The splits with near-duplicates on one side each, and sentences on what is there more than once.

    named: the paths that the photos themselves call validation or test, which stay.
    """
    near = findings.near_duplicates()
    asked = {name: len(photos) for name, photos in splits.items()}
    splits, moved = photos_room.keep_together(splits, [[path for path in group if path not in named] for group in near])
    notes = _told("identical photos", findings.duplicates, splits)
    notes += _told("near-duplicates", near, splits, len(moved))
    if usual := findings.alike_by_nature():
        notes.append(
            f"{counted(len(usual), 'photo')} look so much alike that it is taken for the look of their class, not for "
            f"copies ({usual[0]} ...): the split may have any of them on any side"
        )
    notes += [
        f"{name} has {counted(len(splits[name]), 'photo')} in place of {asked[name]}, as whole groups of "
        "near-duplicates stay together: add photos that are no series of one scene"
        for name in ("validation", "test")
        if 2 * len(splits[name]) < asked[name]
    ]
    return splits, notes


def _told(what: str, groups: Sequence[Sequence[str]], splits: Mapping[str, Photos], num_moved: int = 0) -> list[str]:
    """A sentence on how many groups there are, on which sides of the split, and where they can be seen; or none."""
    if not groups:
        return []
    side = {path: name for name, photos in splits.items() for path in photos.paths}
    found = f"{counted(len(groups), 'group')} of {what} ({' ~ '.join(groups[0][:2])} ...)"
    across = sum(len({side[path] for path in group if path in side}) > 1 for group in groups)
    kept = (
        f"{across} of them across the photos' own splits, which are kept" if across else "each on one side of the split"
    )
    kept += f", for which {counted(num_moved, 'photo')} changed sides" if num_moved else ""
    return [f"{found}, {kept}: `handlens examine PHOTOS` shows them"]


def data_of(
    recipe: Recipe,
    stored: Path | None,
    progress: Callable[[int, int], None] | None = None,
    *,
    resumed: bool = False,
) -> Data:
    """The photos of a recipe with their splits: read from `stored` (a split.json) if given, else cut anew.

    `resumed`: the notes tell of photos that are there more than once, as where the split is cut.
    With `continue_run`, the earlier run's splits are kept as they are and the added photos join train and validation;
    classes that are new get a test share too.
    """
    if recipe.continue_run:
        return _continued(recipe, stored, progress, resumed)
    if stored and recipe.photos not in PUBLISHED and not os.path.exists(recipe.photos):
        raise HandlensError(
            f"the photos of the run {stored.parent} are no longer in {recipe.photos}",
            "name where they are now (train PHOTOS --resume --out RUN, evaluate RUN PHOTOS --split test, export RUN "
            "--photos PHOTOS, train PHOTOS --continue RUN), or put them back",
        )
    whole, findings, notes = look(recipe.photos, progress, is_split=stored is not None)
    if stored:
        splits = _without_later_classes(photos_room.read_split(stored, whole, findings.sha256))
        if later := len(whole) - sum(map(len, splits.values())):
            notes.append(f"{counted(later, 'photo')} of {whole.root} came later: in no split of {stored}")
        if resumed:
            notes += _told("identical photos", findings.duplicates, splits)
            notes += _told("near-duplicates", findings.near_duplicates(), splits)
    else:
        photos_room.check_trainable(whole, findings.duplicates)
        splits = photos_room.split(whole, findings.sha256, recipe.seed, duplicates=findings.duplicates)
        sides = zip(whole.paths, whole.splits or (), strict=bool(whole.splits))
        splits, more = together(splits, findings, {path for path, side in sides if side != "train"})
        notes += more
    named = "test" in (whole.splits or ())
    test_is = "named as such by the photos" if named else f"cut with seed {recipe.seed}"
    return Data(splits, findings.sha256, findings.pixels, tuple(notes), tuple(findings.broken), test_is)


def _without_later_classes(splits: dict[str, Photos], num_known: int = 0) -> dict[str, Photos]:
    """Splits with those classes only that one of their photos is in, and the first `num_known`."""
    labels = sorted({*range(num_known), *(label for photos in splits.values() for label in photos.labels.tolist())})
    names = tuple(next(iter(splits.values())).classes[label] for label in labels)
    return {
        name: dataclasses.replace(photos, labels=np.searchsorted(labels, photos.labels), classes=names)
        for name, photos in splits.items()
    }


def _continued(recipe: Recipe, stored: Path | None, progress: Callable[[int, int], None] | None, resumed: bool) -> Data:
    earlier = earlier_of(stored.parent, recipe.continue_run) if stored else Path(recipe.continue_run)
    if stored and not earlier.is_dir():  # of a run of an earlier version
        raise HandlensError(
            f"the run {stored.parent} goes on from {earlier}, which tells what its photos are and is no longer there",
            "put that run back",
        )
    facts = checkpoint.read_facts(earlier)
    old = data_of(_earlier(recipe, facts), earlier / SPLIT, progress)
    known = tuple(facts["classes"])
    kept = {name: counted_in(photos, known) for name, photos in old.splits.items()}
    moved = photos_room.relabelled(earlier / SPLIT, kept, old.sha256)
    if moved and (stored is None or resumed):
        told = f"{counted(len(moved), 'photo')} of {recipe.continue_run} {'has' if len(moved) == 1 else 'have'}"
        old = dataclasses.replace(old, notes=(*old.notes, f"{told} another class now ({moved[0]} ...)"))
    test_is = f"kept from {recipe.continue_run}"
    if not recipe.add:
        return dataclasses.replace(old, splits=kept, test_is=test_is)
    new, findings, notes = look(recipe.add, progress, is_split=stored is not None, keep_empty=True)
    new = _meant(new, known)
    named = [label for label, side in zip(new.labels, new.splits or (), strict=bool(new.splits)) if side == "test"]
    if not stored and any(new.classes[label] in known for label in named):
        raise HandlensError(
            f"{recipe.add} names its own test photos, which --add would train on",
            "name the folder of its training photos",
        )
    own = [path for photos in kept.values() for path in photos.paths]
    seen, hashes = {old.pixels[path] for path in own}, {old.sha256[path] for path in own}
    # Runs of earlier versions may have been begun with what is left out now.
    begun_with = contents_of(files.read_json(stored), SPLITS) - hashes if stored else set()
    fresh = [path for path in new.paths if findings.sha256[path] not in begun_with]
    # The service writes corrections anew, and names them by the hash of what it was sent.
    again = [path for path in fresh if findings.pixels[path] in seen or Path(path).stem in hashes]
    if again:
        notes.append(f"left out {counted(len(again), 'added photo')} that the run has already ({again[0]} ...)")
    new = new.without(again)
    near = [] if stored else _near_groups(kept, new, findings)
    judged = {(0, path) for name in ("validation", "test") for path in kept[name].paths}
    nearly = [path for group in near if judged & {*group} for side, path in group if side]
    if nearly:
        notes.append(
            f"left out, as nearly a validation or test photo of the run: {counted(len(nearly), 'added photo')} "
            f"({nearly[0]} ...)"
        )
    new = new.without(nearly)
    if not len(new):
        nor = ", or nearly, among those that it is judged by" if nearly else ""
        raise HandlensError(f"{recipe.add} has no photo that the run does not have already{nor}", "add other photos")
    new = counted_in(new, [name for name, number in zip(new.classes, new.counts(), strict=True) if number])
    classes = (*known, *(name for name in new.classes if name not in known))
    root = _common_root(kept["train"].root, new.root)
    sides = ((kept["train"].root, old.sha256, old.pixels), (new.root, findings.sha256, findings.pixels))
    sha256 = {_below(root, own, path): value for own, hashes, _ in sides for path, value in hashes.items()}
    pixels = {_below(root, own, path): value for own, _, hashes in sides for path, value in hashes.items()}
    notes.append(f"kept as they were: {counted(len(kept['test']), 'test photo')} of {recipe.continue_run}")
    if stored:  # more may have been added since
        everything = functools.reduce(lambda one, other: joined(one, other, classes), [*kept.values(), new])
        splits = _without_later_classes(photos_room.read_split(stored, everything, sha256), len(known))
        if resumed:
            groups = [[_below(root, new.root, path) for path in group] for group in findings.duplicates]
            notes += _told("identical photos", groups, splits)
    else:
        cut = photos_room.split(new, findings.sha256, recipe.seed, duplicates=findings.duplicates)
        cut, _ = photos_room.keep_together(cut, [[path for side, path in group if side] for group in near])
        learned = [path for group in near if not all(side for side, _ in group) for side, path in group if side]
        cut = _to_train(cut, learned)
        notes += _told("identical photos", findings.duplicates, cut)
        unseen = [index for index, name in enumerate(new.classes) if name not in known]
        if lacking := [new.classes[label] for label in unseen if not cut["train"].counts()[label]]:
            raise HandlensError(f"there is no photo to train on in {listed(lacking)}", "add photos or remove the class")
        is_test = np.isin(cut["test"].labels, unseen)
        cut["train"] = joined(cut["train"], cut["test"].select(np.flatnonzero(~is_test)), new.classes)
        cut["test"] = cut["test"].select(np.flatnonzero(is_test))
        splits = {name: joined(kept[name], cut[name], classes) for name in kept}
    if len(splits["test"]) > len(kept["test"]):
        test_is += f", those of new classes cut with seed {recipe.seed}"
    return Data(splits, sha256, pixels, (*old.notes, *notes), (*old.left_out, *findings.broken), test_is)


def _near_groups(kept: Mapping[str, Photos], new: Photos, findings: Findings) -> list[list[tuple[int, str]]]:
    """Near-duplicates among a run's photos and added ones, as (0, path) of the run's and (1, path) of the added."""
    before = functools.reduce(lambda one, other: joined(one, other, one.classes), kept.values())
    sides = ((before.paths, photos_room.examine(before)), (new.paths, findings))
    facts, pixels, class_of, same = {}, {}, {}, collections.defaultdict(list)
    for side, (paths, found) in enumerate(sides):
        for path in dict.fromkeys(paths):
            if path in found.facts:
                facts[f"{side} {path}"], pixels[f"{side} {path}"] = found.facts[path], found.pixels[path]
                class_of[f"{side} {path}"] = found.class_of[path]
                same[found.pixels[path]].append(f"{side} {path}")
    duplicates = [group for group in same.values() if len(group) > 1]
    both = Findings(broken=[], sha256={}, pixels=pixels, duplicates=duplicates, facts=facts, class_of=class_of)
    return [[(int(name[0]), name[2:]) for name in group] for group in both.near_duplicates()]


def _to_train(splits: Mapping[str, Photos], paths: Sequence[str]) -> dict[str, Photos]:
    """The splits with these photos in train, where their near-duplicates are."""
    found = dict(splits)
    for name in ("validation", "test"):
        moved = [index for index, path in enumerate(splits[name].paths) if path in set(paths)]
        found["train"] = joined(found["train"], splits[name].select(moved), splits[name].classes)
        found[name] = splits[name].select(sorted({*range(len(splits[name]))} - {*moved}))
    return found


def _meant(photos: Photos, known: Sequence[str]) -> Photos:
    """Photos in folders that the service or `predict --sort-into` made, of the classes that these folders stand for.

    A class may have a name that is no folder's on every system, such as "Viola spp.".
    """
    sorted_into = files.folder_names((*_SORTED_APART, *known))
    folders = {folder: name for name, folder in sorted_into.items() if name in known}
    folders |= {folder: name for name, folder in files.folder_names(known).items()}
    names = [name if name in known else folders.get(name, name) for name in photos.classes]
    classes = tuple(dict.fromkeys(names))
    labels = np.array([classes.index(name) for name in names], np.int64)[photos.labels]
    return dataclasses.replace(photos, labels=labels, classes=classes)


def keep_earlier(folder: Path, earlier: Path) -> None:
    """Copy into a new run's folder what it needs of the run that it continues, so that it can be used without that."""
    kept = folder / EARLIER
    try:
        kept.mkdir()
        for name in (checkpoint.FACTS, SPLIT):
            shutil.copyfile(earlier / name, kept / name)
    except OSError as error:
        raise files.disk_error(error, kept) from error
    if before := checkpoint.read_facts(earlier)["recipe"].get("continue_run"):
        keep_earlier(kept, earlier_of(earlier, before))


def earlier_of(run: Path, continue_run: str) -> Path:
    """The folder that tells what the run was that `run` goes on from: its own copy, else that run."""
    return run / EARLIER if (run / EARLIER).is_dir() else Path(continue_run)


def _earlier(recipe: Recipe, facts: Mapping[str, Any]) -> Recipe:
    """What the run that a recipe continues says of its photos, which the recipe may name at a new place."""
    given: dict[str, Any] = {name: str(facts["recipe"].get(name, "")) for name in ("photos", "continue_run", "add")}
    if recipe.photos:
        given["photos"] = recipe.photos
    if not given["photos"] and not given["continue_run"]:
        raise HandlensError(f"{recipe.continue_run} does not name its photos", "name them: handlens train PHOTOS ...")
    return Recipe(seed=facts["recipe"].get("seed", 0), **given)


def counted_in(photos: Photos, classes: Sequence[str]) -> Photos:
    """Photos with their labels counted in `classes`; other classes that have none of the photos are dropped."""
    there = [name for index, name in enumerate(photos.classes) if name in classes or (photos.labels == index).any()]
    position = {name: index for index, name in enumerate(there)}
    labels = np.array([position.get(name, -1) for name in photos.classes], dtype=np.int64)[photos.labels]
    return dataclasses.replace(photos, labels=labels, classes=tuple(there)).as_classes(classes)


def joined(first: Photos, second: Photos, classes: Sequence[str]) -> Photos:
    """Both, with their labels counted in `classes` and their paths below a folder that both lie in."""
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
    if root == own_root:
        return path
    whole = own_root.resolve() / path
    return (whole.relative_to(root) if whole.is_relative_to(root) else whole).as_posix()


def contents_of(stored: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """The hashes of the photos in these splits of a split.json."""
    return {content for name in names for content in stored.get(name, {}).values()}


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
        note = f"weights {file.label}{best}, {file.pixels}"
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
    """What a continued run takes over from the earlier one: its network, head, size and normalisation cannot change."""
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
    return {"mode": "full", **given, **fixed}
