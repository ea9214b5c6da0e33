"""The photos of a run with their splits: cut anew, found again, or those of an earlier run with others added."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlens import checkpoint, files
from handlens import photos as photos_room
from handlens.errors import HandlensError, counted
from handlens.photos import Findings, Photos
from handlens.photos.published import PUBLISHED
from handlens.photos.scan import SPLITS, listed, spelled
from handlens.photos.split import contents
from handlens.train.recipe import Recipe

EARLIER = "earlier"  # in a continued run's folder: what it needs of the run that it goes on from
_SORTED_APART = ("unsure", "unknown")  # the folders that `handlens predict --sort-into` makes beside the classes


@dataclasses.dataclass(frozen=True)
class Data:
    """The photos of a run: "train", "validation" and "test"; what was left out and why.

    sha256, pixels: the hash of each file and that of its decoded pixels, by path.
    left_out: the photos that cannot be read, as (path, reason); `notes` tell of them too.
    test_is: how the test photos came to be those, in words.
    gone: SHA-256 of photos that the splits go without: they are no longer there, and none was asked for.
    relabelled: the photos that have another class now than in the stored split; `notes` tell of them too.
    """

    splits: dict[str, Photos]
    sha256: dict[str, str]
    pixels: dict[str, str]
    notes: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    test_is: str = ""
    gone: frozenset[str] = frozenset()
    relabelled: tuple[str, ...] = ()

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
    notes += [] if is_split else filter(None, [photos_room.unsorted(source)])
    label = dict(zip(found.paths, found.labels.tolist(), strict=True))
    torn = [group for group in findings.duplicates if len({label[path] for path in group}) > 1]
    if torn:
        notes.append(
            f"{len(torn)} photo{'s lie' if len(torn) > 1 else ' lies'} in two classes "
            f"({' = '.join(torn[0][:2])}{' ...' if len(torn) > 1 else ''}): `handlens examine PHOTOS` shows them"
        )
    notes += [
        f"{name!r} is learned as a class: remove its folder if `handlens predict --sort-into` made it"
        for name, number in zip(whole.classes, whole.counts(), strict=True)
        if number and name in _SORTED_APART and not is_split
    ]
    return whole, findings, notes


def together(
    splits: dict[str, Photos],
    findings: Findings,
    named: Collection[str] = (),
    searching: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Photos], list[str]]:
    """The splits with near-duplicates on one side each, and sentences on what is there more than once.

    named: the paths that the photos themselves call validation or test, which stay. searching: as of `data_of`.
    """
    near = findings.near_duplicates(searching)
    asked = {name: len(photos) for name, photos in splits.items()}
    splits, moved = photos_room.keep_together(splits, [[path for path in group if path not in named] for group in near])
    notes = _identical(findings.duplicates, splits)
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


def _identical(groups: Sequence[Sequence[str]], splits: Mapping[str, Photos]) -> list[str]:
    """What is told of groups of identical photos, but those in two classes, of which `look` tells."""
    label = {path: own for photos in splits.values() for path, own in zip(photos.paths, photos.labels, strict=True)}
    groups = [group for group in groups if len({label[path] for path in group if path in label}) <= 1]
    return _told("identical photos", groups, splits)


def data_of(
    recipe: Recipe,
    stored: Path | None,
    progress: Callable[[int, int], None] | None = None,
    *,
    resumed: bool = False,
    asked: Sequence[str] = SPLITS,
    searching: Callable[[int, int], None] | None = None,
) -> Data:
    """The photos of a recipe with their splits: read from `stored` (a split.json) if given, else cut anew.

    `progress` is called with photos looked at, `searching` with pairs compared where these are many: (done, total).
    `resumed`: the notes tell of photos that are there more than once, as where the split is cut.
    With `continue_run`, the earlier run's splits are kept as they are and the added photos join train and validation;
    classes that are new get a test share too. Where the folder of photos that an earlier run added is gone, a note says
    so, and its splits go without them, but for those that are `asked` for.
    """
    data = _data_of(recipe, stored, progress, resumed, asked, searching)
    moved = tuple(photos_room.relabelled(stored, data.splits, data.sha256)) if stored else ()
    if not stored or not moved:
        return data
    return dataclasses.replace(data, notes=(*data.notes, other_class(moved, stored.parent)), relabelled=moved)


def other_class(photos: Sequence[str], of: str | os.PathLike[str]) -> str:
    """A sentence on photos of a run, or of its split, that have another class now than it learned them as."""
    return f"{counted(len(photos), 'photo')} of {of} {'has' if len(photos) == 1 else 'have'} another class now " + (
        f"({photos[0]} ...)"
    )


def _data_of(
    recipe: Recipe,
    stored: Path | None,
    progress: Callable[[int, int], None] | None,
    resumed: bool,
    asked: Sequence[str],
    searching: Callable[[int, int], None] | None = None,
) -> Data:
    if recipe.continue_run:
        return _continued(recipe, stored, progress, resumed, asked)
    if stored and recipe.photos not in PUBLISHED and not os.path.exists(recipe.photos):
        run = stored.parent
        while run.name == EARLIER and (run.parent / files.SPLIT).is_file():
            run = run.parent
        raise HandlensError(
            f"the photos of the run {run} are no longer in {recipe.photos}",
            "name where they are now (train PHOTOS --resume --out RUN, evaluate RUN PHOTOS --split test, export RUN "
            "--photos PHOTOS, train PHOTOS --continue RUN, compare-runs RUN OTHER PHOTOS), or put them back",
        )
    whole, findings, notes = look(recipe.photos, progress, is_split=stored is not None)
    gone: set[str] = set()
    if stored:
        gone = contents(stored, [name for name in SPLITS if name not in asked]) - {*findings.sha256.values()}
        splits = _without_later_classes(photos_room.read_split(stored, whole, findings.sha256, gone))
        if gone:
            lost = f"{counted(len(gone), 'photo')} of {stored.parent} {'is' if len(gone) == 1 else 'are'}"
            notes.append(f"{lost} no longer in {whole.root} as before: it goes without, as none is of {listed(asked)}")
        if later := len(whole) - sum(map(len, splits.values())):
            notes.append(f"{counted(later, 'photo')} of {whole.root} came later: in no split of {stored}")
        if resumed:
            notes += _identical(findings.duplicates, splits)
            notes += _told("near-duplicates", findings.near_duplicates(searching), splits)
    else:
        photos_room.check_trainable(whole, findings.duplicates)
        sides = zip(whole.paths, whole.splits or (), strict=bool(whole.splits))
        named = {path for path, side in sides if side != "train"}
        # A copy of a photo that chooses is not drawn to judge, nor one of a photo that judges to choose.
        groups = [*findings.duplicates, *findings.near_duplicates(searching)] if named else []
        staying = {path for group in groups if not named.isdisjoint(group) for path in group}
        splits = photos_room.split(whole, findings.sha256, recipe.seed, duplicates=findings.duplicates, stay=staying)
        splits, more = together(splits, findings, named, searching)
        notes += more
    test_is = "named as such by the photos" if "test" in (whole.splits or ()) else f"cut with seed {recipe.seed}"
    left_out = tuple(findings.broken)
    return Data(splits, findings.sha256, findings.pixels, tuple(notes), left_out, test_is, frozenset(gone))


def _without_later_classes(splits: dict[str, Photos], num_known: int = 0) -> dict[str, Photos]:
    """Splits with those classes only that one of their photos is in, and the first `num_known`."""
    labels = sorted({*range(num_known), *(label for photos in splits.values() for label in photos.labels.tolist())})
    names = tuple(next(iter(splits.values())).classes[label] for label in labels)
    return {
        name: dataclasses.replace(photos, labels=np.searchsorted(labels, photos.labels), classes=names)
        for name, photos in splits.items()
    }


def _continued(
    recipe: Recipe,
    stored: Path | None,
    progress: Callable[[int, int], None] | None,
    resumed: bool,
    asked: Sequence[str],
) -> Data:
    earlier = earlier_of(stored.parent, recipe.continue_run) if stored else Path(recipe.continue_run)
    if stored and not earlier.is_dir():  # of a run of an earlier version
        raise HandlensError(
            f"the run {stored.parent} goes on from {earlier}, which tells what its photos are and is no longer there",
            "put that run back",
        )
    facts = checkpoint.read_facts(earlier)
    old = _data_of(_earlier(recipe, facts), earlier / files.SPLIT, progress, False, asked)
    known = tuple(facts["classes"])
    kept = {name: counted_in(photos, known) for name, photos in old.splits.items()}
    moved = photos_room.relabelled(earlier / files.SPLIT, kept, old.sha256)
    if moved and not stored:  # else `data_of` tells of it
        old = dataclasses.replace(old, notes=(*old.notes, other_class(moved, recipe.continue_run)))
    test_is = f"kept from {recipe.continue_run}"
    if not recipe.add:
        return dataclasses.replace(old, splits=kept, test_is=test_is)
    if stored and recipe.add not in PUBLISHED and not os.path.exists(recipe.add):
        return _without_added(recipe.add, stored, dataclasses.replace(old, splits=kept, test_is=test_is), asked)
    new, findings, near, notes = _fresh(recipe, stored, progress, old, kept)
    classes = (*known, *(name for name in new.classes if name not in known))
    root = _common_root(kept["train"].root, new.root)
    sides = ((kept["train"].root, old.sha256, old.pixels), (new.root, findings.sha256, findings.pixels))
    sha256 = {_below(root, own, path): value for own, hashes, _ in sides for path, value in hashes.items()}
    pixels = {_below(root, own, path): value for own, _, hashes in sides for path, value in hashes.items()}
    notes.append(f"kept as they were: {counted(len(kept['test']), 'test photo')} of {recipe.continue_run}")
    if stored:  # more may have been added since
        everything = functools.reduce(lambda one, other: joined(one, other, classes), [*kept.values(), new])
        gone = old.gone | contents(stored, [name for name in SPLITS if name not in asked])
        splits = _without_later_classes(photos_room.read_split(stored, everything, sha256, gone), len(known))
        if resumed:
            groups = [[_below(root, new.root, path) for path in group] for group in findings.duplicates]
            notes += _identical(groups, splits)
    else:
        cut, more = _cut(new, findings, near, known, recipe.seed)
        notes += more
        splits = {name: joined(kept[name], cut[name], classes) for name in kept}
    if len(splits["test"]) > len(kept["test"]):
        test_is += f", those of new classes cut with seed {recipe.seed}"
    return Data(splits, sha256, pixels, (*old.notes, *notes), (*old.left_out, *findings.broken), test_is, old.gone)


def _without_added(add: str, stored: Path, old: Data, asked: Sequence[str]) -> Data:
    """What a run keeps of the earlier one where the folder of the photos that it added is gone.

    Raises HandlensError where they are among those that are asked for.
    """
    gone = contents(stored) - {old.sha256[path] for photos in old.splits.values() for path in photos.paths} - old.gone
    lacking = {name: len(gone & contents(stored, (name,))) for name in old.splits}
    told = f"the photos that {stored.parent} added are no longer in {add}, of which it has "
    told += " and ".join(f"{number} in {name}" for name, number in lacking.items() if number)
    if any(lacking[name] for name in asked):
        raise HandlensError(told, f"put them back, or say where they are now as `add` in {stored.parent / files.FACTS}")
    return dataclasses.replace(old, notes=(*old.notes, f"{told}: it goes without them"), gone=old.gone | gone)


def _fresh(
    recipe: Recipe,
    stored: Path | None,
    progress: Callable[[int, int], None] | None,
    old: Data,
    kept: Mapping[str, Photos],
) -> tuple[Photos, Findings, list[list[tuple[int, str]]], list[str]]:
    """The added photos that are new beside the run's own, `kept`: they, what was seen, near-duplicates and notes.

    Near-duplicates are as `_near_groups` gives them, none where the split is stored. Raises HandlensError where no
    photo is new.
    """
    new, findings, notes = look(recipe.add, progress, is_split=stored is not None, keep_empty=True)
    known = kept["train"].classes
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
    begun_with = contents(stored) - hashes if stored else set()
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
    return new, findings, near, notes


def _cut(
    new: Photos, findings: Findings, near: Sequence[Sequence[tuple[int, str]]], known: Sequence[str], seed: int
) -> tuple[dict[str, Photos], list[str]]:
    """Added photos in splits, of which test has those of new classes only, and sentences on identical ones.

    near: as `_near_groups` gives them. known: the classes of the run. Raises HandlensError for a new class with none
    to train on.
    """
    cut = photos_room.split(new, findings.sha256, seed, duplicates=findings.duplicates)
    cut, _ = photos_room.keep_together(cut, [[path for side, path in group if side] for group in near])
    learned = [path for group in near if not all(side for side, _ in group) for side, path in group if side]
    cut = _to_train(cut, learned)
    notes = _identical(findings.duplicates, cut)
    unseen = [index for index, name in enumerate(new.classes) if name not in known]
    if lacking := [new.classes[label] for label in unseen if not cut["train"].counts()[label]]:
        raise HandlensError(f"there is no photo to train on in {listed(lacking)}", "add photos or remove the class")
    is_test = np.isin(cut["test"].labels, unseen)
    cut["train"] = joined(cut["train"], cut["test"].select(np.flatnonzero(~is_test)), new.classes)
    cut["test"] = cut["test"].select(np.flatnonzero(is_test))
    return cut, notes


def _near_groups(kept: Mapping[str, Photos], new: Photos, findings: Findings) -> list[list[tuple[int, str]]]:
    """Near-duplicates among a run's photos and added ones, as (0, path) of the run's and (1, path) of the added."""
    before = functools.reduce(lambda one, other: joined(one, other, one.classes), kept.values())
    sides = ((before.paths, photos_room.examine(before)), (new.paths, findings))
    both = photos_room.combined(
        {
            f"{side} {path}": (found, path)
            for side, (paths, found) in enumerate(sides)
            for path in paths
            if path in found.facts
        }
    )
    return [[(int(name[0]), name[2:]) for name in group] for group in both.near_duplicates()]


def _to_train(splits: Mapping[str, Photos], paths: Sequence[str]) -> dict[str, Photos]:
    """The splits with these photos in train, where their near-duplicates are."""
    found, there = dict(splits), set(paths)
    for name in ("validation", "test"):
        moved = [index for index, path in enumerate(splits[name].paths) if path in there]
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
    names = [spelled(name, known) for name in photos.classes]
    names = [name if name in known else folders.get(name, name) for name in names]
    classes = tuple(dict.fromkeys(names))
    labels = np.array([classes.index(name) for name in names], np.int64)[photos.labels]
    return dataclasses.replace(photos, labels=labels, classes=classes)


def keep_earlier(folder: Path, earlier: Path) -> None:
    """Copy into a new run's folder what it needs of the run that it continues, so that it can be used without that."""
    kept = folder / EARLIER
    try:
        kept.mkdir()
        for name in (files.FACTS, files.SPLIT):
            shutil.copyfile(earlier / name, kept / name)
    except OSError as error:
        raise files.disk_error(error, kept) from error
    if before := checkpoint.read_facts(earlier)["recipe"].get("continue_run"):
        keep_earlier(kept, earlier_of(earlier, before))


def sources(recipe: Recipe, run: Path) -> list[str]:
    """The photos that a run was trained on, those of the runs that it goes on from first; `run` is its folder."""
    if not recipe.continue_run:
        return [recipe.photos]
    earlier = earlier_of(run, recipe.continue_run)
    before = _earlier(recipe, checkpoint.read_facts(earlier))
    return [*sources(before, earlier), *([recipe.add] if recipe.add else [])]


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
