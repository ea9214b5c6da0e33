"""Photos to train on, to choose by, and to test with: cut once, written down, found again."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from handlens.errors import HandlensError, counted
from handlens.files import read_json, write_json
from handlens.photos.scan import SPLITS, Photos, listed

_VERSION = 1


def split(
    photos: Photos,
    sha256: Mapping[str, str],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    duplicates: Iterable[Sequence[str]] = (),
    stay: Collection[str] = (),
) -> dict[str, Photos]:
    """Cut the photos into "train", "validation" and "test", class by class.

    Files with the same content, and the groups of paths in `duplicates`, stay on one side. Each class has at least one
    photo in train and, with three or more different ones, in each split whose fraction is not zero. The order is drawn
    from the seed and each photo's content, so it is the same on every machine, and adding a photo moves hardly any
    other. Splits that the photos came with are kept; one that is missing is cut from train, without the paths that
    `stay` there.
    """
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise HandlensError(
            f"the fractions of the split are {fractions}, expected three that sum to 1, train's above 0"
        )
    side = np.array(photos.splits or ("train",) * len(photos), dtype=f"U{max(map(len, SPLITS))}")
    missing = {name: part for name, part in zip(SPLITS, fractions, strict=True) if name not in side and part > 0}
    shares = {name: part / (fractions[0] + sum(missing.values())) for name, part in missing.items()}
    staying = set(stay)
    pool = np.array([i for i in np.flatnonzero(side == "train") if photos.paths[i] not in staying], np.int64)
    groups = _groups(photos, pool, sha256, seed, duplicates)
    by_class: dict[int, list[list[int]]] = collections.defaultdict(list)
    for group in groups:  # in drawn order; a photo that lies in two classes counts in the first of them
        by_class[min(int(photos.labels[i]) for i in group)].append(group)
    for of_class in by_class.values():
        start = 0
        for name, count in _sizes(len(of_class), shares).items():
            for group in of_class[start : start + count]:
                side[group] = name
            start += count
    for label in sorted(set(photos.labels[pool].tolist()) - set(photos.labels[side == "train"].tolist())):
        # Rounding, or another class that has the same photo, left it nothing to train on, which goes before all else.
        side[next(group for group in reversed(groups) if label in photos.labels[group])] = "train"
    return {name: photos.select(np.flatnonzero(side == name)) for name in SPLITS}


def folds(
    photos: Photos, sha256: Mapping[str, str], count: int, seed: int = 0, duplicates: Iterable[Sequence[str]] = ()
) -> list[Photos]:
    """The photos `count` times, with `splits`: each photo is in the test split of one fold, class by class.

    A ninth of a fold's other photos are its validation. Files with the same content, and the groups of paths in
    `duplicates`, of which the last that names a photo holds, stay together. Splits that the photos came with are not
    heeded. Raises HandlensError for fewer than two folds, and for a class with too few different photos.
    """
    if count < 2:
        raise HandlensError(f"the number of folds is {count}, expected 2 or more", "5 is usual")
    by_class: dict[int, list[list[int]]] = collections.defaultdict(list)
    for group in _groups(photos, np.arange(len(photos)), sha256, seed, duplicates):
        by_class[min(int(photos.labels[i]) for i in group)].append(group)
    for label, name in enumerate(photos.classes):
        if len(by_class[label]) < max(3, count):
            raise HandlensError(
                f"class {name!r} has {counted(len(by_class[label]), 'different photo')}, too few for {count} folds",
                f"give each class {max(3, count)} or more, or fewer --folds",
            )
    found = []
    for fold in range(count):
        side = np.full(len(photos), "train", dtype=f"U{max(map(len, SPLITS))}")
        for of_class in by_class.values():
            others = [group for place, group in enumerate(of_class) if place % count != fold]
            for group in of_class[fold::count]:
                side[group] = "test"
            for group in others[::9] if len(others) > 1 else ():  # training goes before all else
                side[group] = "validation"
        found.append(dataclasses.replace(photos, splits=tuple(side.tolist())))
    return found


def keep_together(
    splits: Mapping[str, Photos], groups: Iterable[Sequence[str]]
) -> tuple[dict[str, Photos], dict[str, str]]:
    """Bring groups of paths that lie on several sides to one: that of most of them, and train where that is open.

    Where this takes more than a quarter of a class's validation or test photos, as with photos that are all series,
    other whole groups take their place. A class keeps a photo to train on before all else. Photos of no such group stay
    where they are, in their order. Gives the splits and the new side of each photo that was moved.
    """
    before = {path: name for name in splits for path in splits[name].paths}
    side = dict(before)
    label = {path: int(k) for photos in splits.values() for path, k in zip(photos.paths, photos.labels, strict=True)}
    left = collections.Counter(label[path] for path in splits["train"].paths)
    moved: dict[str, str] = {}
    known = [[path for path in group if path in side] for group in groups]
    for members in known:
        count = collections.Counter(side[path] for path in members)
        if len(count) < 2:
            continue
        goal = max(SPLITS, key=lambda name: (count[name], name == "train"))
        leaving = collections.Counter(label[path] for path in members if side[path] == "train")
        if goal != "train" and any(left[k] <= number for k, number in leaving.items()):
            goal = "train"
        for path in members:
            if side[path] != goal:
                left[label[path]] += (goal == "train") - (side[path] == "train")
                side[path] = moved[path] = goal
    if moved:
        _refill(known, before, side, label)
        moved = {path: name for path, name in side.items() if name != before[path]}
    pool = {path: (photos, i) for photos in splits.values() for i, path in enumerate(photos.paths)}
    if not moved:
        return dict(splits), moved
    together = {}
    for name, photos in splits.items():
        stay = photos.select([i for i, path in enumerate(photos.paths) if side[path] == name])
        come = [pool[path] for path in moved if side[path] == name]
        together[name] = dataclasses.replace(
            stay,
            paths=(*stay.paths, *(other.paths[i] for other, i in come)),
            labels=np.concatenate([stay.labels, np.array([other.labels[i] for other, i in come], np.int64)]),
            splits=(*stay.splits, *(name for _ in come)) if stay.splits else None,
        )
    return together, moved


def _refill(
    groups: Sequence[Sequence[str]], before: Mapping[str, str], side: dict[str, str], label: Mapping[str, int]
) -> None:
    """Give whole groups of train to validation and test, where these lost more than a quarter of a class's photos."""
    drawn = collections.Counter((before[path], label[path]) for path in before)
    now = collections.Counter((side[path], label[path]) for path in side)
    for goal in ("test", "validation"):
        # First those of which most were drawn to be there.
        ranked = sorted(groups, key=lambda group: -sum(before[path] == goal for path in group) / max(1, len(group)))
        for group in ranked:
            number = collections.Counter(label[path] for path in group)
            if not number or any(side[path] != "train" for path in group):
                continue
            most = max(number, key=number.__getitem__)
            lacking = drawn[goal, most] - now[goal, most]
            closer = number[most] < 2 * lacking or (number[most] == 2 * lacking and not now[goal, most])
            if 4 * lacking <= drawn[goal, most] or not closer or any(now["train", k] <= number[k] for k in number):
                continue
            for path in group:
                side[path] = goal
                now["train", label[path]] -= 1
                now[goal, label[path]] += 1


def _groups(
    photos: Photos, pool: np.ndarray, sha256: Mapping[str, str], seed: int, duplicates: Iterable[Sequence[str]]
) -> list[list[int]]:
    """Indices of photos that belong together, in the order drawn from the seed and the content."""
    first = {}  # the least hash of a group of duplicates stands for all of its files
    for paths in duplicates:
        hashes = [sha256[path] for path in paths if path in sha256]
        first.update(dict.fromkeys(hashes, min(hashes, default="")))
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for i in pool.tolist():
        content = sha256[photos.paths[i]]
        groups[first.get(content, content)].append(i)
    drawn = {content: hashlib.sha256(f"{seed} {content}".encode()).digest() for content in groups}
    return [groups[content] for content in sorted(groups, key=drawn.__getitem__)]


def _sizes(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many of a class's groups each missing split gets."""
    return {name: max(round(count * share), int(count >= 3)) for name, share in shares.items()}


def write_split(
    path: str | os.PathLike[str], splits: Mapping[str, Photos], sha256: Mapping[str, str], seed: int
) -> None:
    """Write the classes in order, and which photo is in which split, by relative path and content hash, as JSON."""
    value: dict[str, Any] = {"version": _VERSION, "seed": seed, "classes": list(splits["train"].classes)}
    for name in SPLITS:
        value[name] = {photo: sha256[photo] for photo in splits[name].paths}
    write_json(path, value)


def read_split(
    path: str | os.PathLike[str], photos: Photos, sha256: Mapping[str, str], gone: Collection[str] = ()
) -> dict[str, Photos]:
    """The splits that `write_split` wrote, found among `photos`.

    A photo is known by its relative path and content; one that was moved or renamed is found by its content, and has
    the label that its new place gives it. Photos that the file does not name are in no split.
    gone: the SHA-256 of photos that need not be there.
    Raises HandlensError with what is missing or has changed, or when the file is not a split of this version.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        raise HandlensError(f"{path} is not a split of version {_VERSION}", "was it written by another handlens?")
    for name in SPLITS:
        given = value.get(name)
        if not isinstance(given, dict) or not all(isinstance(content, str) for content in given.values()):
            raise HandlensError(f"{path} has no proper list of {name} photos", "it may be damaged; train again")
    wanted = [(photo, content, name) for name in SPLITS for photo, content in value[name].items()]
    index_of = {photo: i for i, photo in enumerate(photos.paths)}
    in_place = {photo for photo, content, _ in wanted if photo in index_of and sha256.get(photo) == content}
    moved = collections.defaultdict(list)
    for photo in reversed(photos.paths):
        if photo not in in_place and photo in sha256:
            moved[sha256[photo]].append(photo)
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    lost = []
    for photo, content, name in wanted:
        if photo in in_place:
            found[name].append(index_of[photo])
        elif moved[content]:
            found[name].append(index_of[moved[content].pop()])
        elif content not in gone:
            lost.append(f"{photo} ({'changed' if photo in index_of else 'missing'})")
    if lost:
        raise HandlensError(
            f"of the photos in {path}, {len(lost)} {'is' if len(lost) == 1 else 'are'} not in {photos.root} as before: "
            f"{listed(lost)}",
            "put them back, or train again: handlens train PHOTOS --out NEW",
        )
    return {name: photos.select(indices) for name, indices in found.items()}


def contents(path: str | os.PathLike[str], names: Iterable[str] = SPLITS) -> set[str]:
    """The SHA-256 of the photos in these splits of a file that `write_split` wrote; none where there is no file.

    What is no proper list of photos is passed over. Raises HandlensError where the file is not JSON.
    """
    value = read_json(path) if os.path.isfile(path) else None
    parts = [value.get(name) for name in names] if isinstance(value, dict) else []
    return {str(content) for part in parts if isinstance(part, dict) for content in part.values()}


def relabelled(path: str | os.PathLike[str], splits: Mapping[str, Photos], sha256: Mapping[str, str]) -> list[str]:
    """The photos of `splits` that now lie elsewhere, where they have another class than the folder that they came from.

    `path`: the file that `read_split` found them by. Only folders that bear the name of a class tell.
    """
    value = read_json(path)
    stored = {photo: content for name in SPLITS for photo, content in value[name].items()}
    before = {content: photo for photo, content in stored.items()}
    found = []
    for photos in splits.values():
        for photo, label in zip(photos.paths, photos.labels.tolist(), strict=True):
            was = PurePosixPath(before.get(sha256[photo], photo))
            named = {*was.parts[:-1]} & {*photos.classes} if not was.is_absolute() else set()
            if photo not in stored and len(named) == 1 and named != {photos.classes[label]}:
                found.append(photo)
    return found
