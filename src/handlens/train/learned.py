"""What the runs that one learns from have learned: none of its test photos, or its figures would flatter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from handlens import checkpoint, files
from handlens import photos as photos_room
from handlens.errors import HandlensError, counted
from handlens.nets import weights
from handlens.photos import Findings, Photos
from handlens.photos.published import PUBLISHED
from handlens.photos.split import contents
from handlens.train.data import Data, earlier_of
from handlens.train.recipe import Recipe
from handlens.train.watcher import Watcher, counter

Progress = Callable[..., contextlib.AbstractContextManager[Callable[[int, int], None]]]  # of (what, how many)
Places = Mapping[str, tuple[Findings, str]]  # by the hash of a photo's file: what was seen of it, and its path there
LEARNED = ("train", "validation")  # the splits that a run learns from or is chosen by


def check_unseen(recipe: Recipe, data: Data, watcher: Watcher | None = None) -> None:
    """That no run which this one learns from, as a teacher or by its weights, was trained on its test photos.

    Nor may weights have been trained on its validation photos, which choose its epoch, temperature and threshold.
    Raises HandlensError with how many they are, or copies of them: such a test would flatter, and such a validation
    take the network for surer than it is. Of the runs behind one that is gone on with, whose test photos are kept, a
    note tells.
    """
    watcher = watcher or Watcher()
    train, chosen = ({data.sha256[path] for path in data.splits[name].paths} for name in LEARNED)
    test, validation = data.splits["test"], data.splits["validation"]
    for what, folder, number, how in _known(learned_by(recipe.teacher, recipe.weights), test, train | chosen, watcher):
        raise HandlensError(
            f"the run {folder} ({what}) was trained on {number} of the {len(test)} test photos of this one{how}, whose "
            "figures would flatter",
            _same_split(folder, recipe.seed if data.test_is.startswith("cut") else None, how),
        )
    began_from = learned_by("", recipe.weights, splits=LEARNED[:1])
    for what, folder, number, how in _known(began_from, validation, train, Watcher()):
        raise HandlensError(
            f"the run {folder} ({what}) was trained on {number} of the {len(validation)} validation photos of this "
            f"one{how}, by which its epoch, temperature and threshold would be chosen",
            _same_split(folder, recipe.seed, how),
        )
    for _, folder, number, how in _known(learned_by("", "", recipe.continue_run), test, train | chosen, watcher):
        watcher.note(
            f"the run {folder}, from which {recipe.continue_run} learned, was trained on {number} of the {len(test)} "
            f"test photos{how}: the figures flatter"
        )


def _same_split(folder: Path, seed: int | None, how: str) -> str:
    """What to do where a run has learned what judges or chooses; `seed` is this one's where it decides that."""
    other = files.read_json(folder / files.SPLIT).get("seed")
    hint = f"train both on the same {'photos and ' if how else ''}split"
    return hint if seed in (None, other) else f"{hint}: --seed {other} made that one's"


def check_unlearned(recipe: Recipe, photos: Photos, what_for: str, watcher: Watcher | None = None) -> None:
    """That no run which this one learns from has learned or was chosen by any of these photos, or by a copy of one.

    Raises HandlensError: `what_for` cannot be had with it.
    """
    behind = learned_by(recipe.teacher, recipe.weights)
    for what, folder, number, how in _known(behind, photos, set(), watcher or Watcher()):
        raise HandlensError(
            f"the run {folder} ({what}) was trained on {number} of these photos{how}, and {what_for} needs weights "
            "that have not seen them",
            "give --weights imagenet" if what == "weights" else "leave out --teacher",
        )


def _known(
    behind: Iterable[tuple[str, Path, set[str]]], photos: Photos, apart: set[str], watcher: Watcher
) -> Iterator[tuple[str, Path, int, str]]:
    """Of each run `behind` this one that has learned some of the photos: what it is, its folder, how many, and how.

    how: empty for the very files, else that they are copies. apart: SHA-256 of photos of which none of these is a copy.
    """
    if not (behind := [*behind]):
        return
    found = photos_room.examine(photos, counter(watcher, "looking at photos"))
    for what, folder, learned in behind:
        if same := sum(content in learned for content in found.sha256.values()):
            yield what, folder, same, ""
            apart = apart | learned
            continue
        where = places(found, [folder], learned - apart, _shown(watcher), watcher.note)
        again = copies(found, [*found.facts], where, _shown(watcher))
        apart = apart | learned
        if again:
            names = f"{again[0]}, ..." if len(again) > 1 else again[0]
            yield what, folder, len(again), f", saved anew or nearly the same ({names})"


def _shown(watcher: Watcher) -> Progress:
    return lambda what, _total=0: contextlib.nullcontext(counter(watcher, what))


def learned_by(
    teacher: str, weights: str, continue_run: str = "", splits: Sequence[str] = LEARNED
) -> Iterator[tuple[str, Path, set[str]]]:
    """What has been learned by the runs that one learns from, and by those that these have learned from.

    Gives (whether by "teacher" or "weights", folder, hashes of its photos in `splits`) of each that is still there. Of
    a run that is continued, whose split is kept, these are those behind it. What cannot be read is passed over, but of
    the runs that are given.
    """
    given = _sources({"teacher": teacher, "weights": weights, "continue_run": continue_run})
    waiting, known = [*given], set[tuple[str, str]]()
    while waiting:
        what, folder = waiting.pop(0)
        place = (what, os.path.realpath(folder))
        if place in known:
            continue
        known.add(place)
        try:
            learned = contents(folder / files.SPLIT, splits)
        except (HandlensError, OSError):
            if (what, folder) in given:
                raise
            learned = set()
        if learned and what != "continue_run":
            yield what, folder, learned
        with contextlib.suppress(HandlensError, OSError):  # where it is no longer there, or cannot be read
            behind = _sources(checkpoint.read_facts(folder)["recipe"], folder)
            waiting += [(name if what == "continue_run" else what, path) for name, path in behind]


def _sources(recipe: Mapping[str, Any], run: Path | None = None) -> list[tuple[str, Path]]:
    """The folders of the runs that the recipe (of `run`) names, each with the field that does."""
    folders = {name: recipe.get(name) for name in ("teacher", "continue_run")}
    folders["weights"] = weights.run_of(str(recipe.get("weights", "")))
    if run and folders["continue_run"]:
        folders["continue_run"] = earlier_of(run, folders["continue_run"])
    return [(name, Path(folder)) for name, folder in folders.items() if folder]


def places(
    found: Findings, runs: Sequence[Path], known: set[str], progress: Progress, note: Callable[[str], None]
) -> Places:
    """Where the photos whose files have a known hash can be seen: those that were looked at, and those of the runs.

    runs: those that learned what is known, whose photos are looked at where they still lie; a note says how many do
    not. progress: as of `seen.seen`.
    """
    learned: dict[str, tuple[Findings, str]] = {}
    for there in _there(found, runs, progress) if known else ():
        learned |= {
            content: (there, path) for path, content in there.sha256.items() if content in known and path in there.facts
        }
    if lost := len(known) - len(learned):
        note(
            f"{counted(lost, 'photo')} that {runs[0]}, or a run behind it, learned from {'is' if lost == 1 else 'are'} "
            "no longer where it was: copies saved anew, or nearly the same, are not known again"
        )
    return learned


def copies(found: Findings, paths: Sequence[str], learned: Places, progress: Progress) -> list[str]:
    """Those of the photos that are, or nearly, one that was learned: the same pixels, or near-duplicates.

    found: what was seen of the photos at `paths`. progress: as of `seen.seen`.
    """
    if not paths or not learned:
        return []
    pixels = {there.pixels[path] for there, path in learned.values()}
    again = {path for path in paths if found.pixels[path] in pixels}
    sides = {f"0 {content}": place for content, place in learned.items()}
    sides |= {f"1 {path}": (found, path) for path in paths if path not in again}
    if len(again) < len(paths):
        with progress("comparing with what was learned", len(sides)) as update:
            groups = photos_room.combined(sides).near_duplicates(update)
            update(len(sides), len(sides))
        for group in groups:
            if any(name[0] == "0" for name in group):
                again |= {name[2:] for name in group if name[0] == "1"}
    return [path for path in paths if path in again]


def _there(found: Findings, runs: Iterable[Path], progress: Progress) -> Iterator[Findings]:
    """What can be seen of the photos of runs where these lie, and of photos that were looked at already."""
    yield found
    for place in dict.fromkeys(place for run in runs for place in _places(run)):
        if place in PUBLISHED and not (files.cache_folder() / "photos" / place).exists():
            continue  # looking must not download it
        with contextlib.suppress(HandlensError):
            with progress("looking at the run's photos") as update:
                looked = photos_room.examine(photos_room.scan(place, keep_empty=True), update)
            yield looked


def _places(run: Path) -> Iterator[str]:
    """Where the photos of a run lay, and those of the runs that it continues."""
    known = set[str]()
    while os.path.realpath(run) not in known:
        known.add(os.path.realpath(run))
        try:
            recipe = checkpoint.read_facts(run)["recipe"]
        except (HandlensError, OSError):
            return
        yield from (str(recipe[name]) for name in ("photos", "add") if recipe.get(name))
        run = earlier_of(run, recipe["continue_run"]) if recipe.get("continue_run") else run
