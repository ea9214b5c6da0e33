"""Which labelled photos a run or a bundle is asked about."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from handlens.photos import Photos
    from handlens.train.data import Data

SPLITS = ("train", "validation", "test")
FEW = 3  # photos left out that are named each
CHOSE_NOTHING = "; it chose nothing"  # the end of what is told of a test split


class Chosen(NamedTuple):
    """Labelled photos, and a sentence on how they were chosen.

    left_out: (path, reason) of those of a run's own photos that cannot be read. caution: what to know beside figures.
    """

    photos: Photos
    how: str
    left_out: tuple[tuple[str, str], ...] = ()
    caution: str = ""


def labelled(run: str, source: str, split: str = "") -> Chosen:
    """Labelled photos for a run (by default its own test split) or a bundle."""
    from handlens import bundle

    if source and (bundle.is_bundle(run) or split in ("", "all") or split in _named_splits(source)):
        return own_split(scan(source), split)
    return runs_split(run, source, split)


def runs_split(run: str, source: str = "", split: str = "", tell: bool = True) -> Chosen:
    """The photos of a run's own split (by default its test split).

    `source` is where the run's photos lie now, if elsewhere than in training. tell: show what was noticed of them.
    """
    from handlens import files
    from handlens.cli import screen
    from handlens.errors import HandlensError

    stored = Path(run, files.SPLIT)
    if not stored.is_file():
        raise HandlensError(f"{run} has no {files.SPLIT}", "name a folder of photos, without --split")
    from handlens import checkpoint
    from handlens.train import Recipe
    from handlens.train.data import data_of, other_class

    facts = checkpoint.read_facts(run)
    recipe = Recipe.of(facts["recipe"])
    if source:  # the run's photos at a new place
        recipe = dataclasses.replace(recipe, photos=source)
    split = split or "test"
    with screen.progress("looking at photos") as update:
        data = data_of(recipe, stored, update, asked=(split,))
    if tell:
        _tell(data, facts["metrics"].get("notes") or ())
    sizes = ", ".join(f"{len(data.splits[name])} {name}" for name in SPLITS)
    how = f"the run's own {split} split ({sizes})" + (CHOSE_NOTHING if split == "test" else "")
    own = {*data.splits[split].paths}
    relabelled = [path for path in data.relabelled if path in own]
    caution = other_class(relabelled, f"the {split} split") if relabelled else ""
    return Chosen(data.splits[split], how, data.left_out, caution)


def _tell(data: Data, told: Sequence[str]) -> None:
    """Show what was noticed of a run's photos that its training has not told; and shortly, which it left out."""
    from handlens.cli import screen

    for line in data.notes:
        if line not in told:
            screen.note(line)
    again = [f"{path}: {reason}" for path, reason in data.left_out if f"left out {path}: {reason}" in told]
    if len(again) > FEW:
        screen.note(f"{len(again)} photos are left out, as in training (the first: {again[0]})")
        return
    for line in again:
        screen.note(f"left out, as in training: {line}")


def scan(source: str) -> Photos:
    """Photos with labels: a folder, a CSV or a published set, which is fetched if need be."""
    from handlens import photos as photos_room
    from handlens.cli import screen

    with screen.progress("downloading") as update:  # seen only for a published set that is not in the cache yet
        return photos_room.scan(source, update)


def _named_splits(source: str) -> tuple[str, ...]:
    """The splits that folders or a CSV name themselves, whatever classes they have."""
    from handlens import photos as photos_room

    return photos_room.scan(source, keep_empty=True).splits or ()


def own_split(found: Photos, split: str) -> Chosen:
    """The part of scanned photos that their own folders or CSV call `split`."""
    from handlens.errors import HandlensError

    split = split or ("test" if found.splits and "test" in found.splits else "all")
    if split == "all":
        return Chosen(found, f"all photos of {found.root.resolve().name}")
    if not found.splits or split not in found.splits:
        raise HandlensError(f"{found.root} has no {split} split", "leave out --split")
    chosen = found.select([index for index, own in enumerate(found.splits) if own == split])
    return Chosen(chosen, f"the {split} split that {found.root.resolve().name} itself names")
