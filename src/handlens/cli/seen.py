"""Which photos a run knows already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from handlens.photos import Findings, Photos

SPLIT_FILE = "split.json"  # of a run's folder
LEARNED = ("train", "validation")


class Seen(NamedTuple):
    """Paths of photos that a run knows: the very files, and the same photos in other files, or nearly the same."""

    files: list[str]
    copies: list[str]

    def __str__(self) -> str:
        if not self.copies:
            return "trained on or chosen by"
        nearly = len(self.copies)
        return f"trained on or chosen by, {nearly if self.files else 'all'} of them saved anew or nearly the same"


def seen(run: Path, photos: Photos) -> Seen:
    """Those of the photos that the run, or one that it learned from, was trained on or chosen by.

    Where the photos of these runs still lie where they were, what was saved anew or is nearly the same is found too;
    a note says where they do not. Photos of the run's own test split are not compared: its split kept them apart.
    """
    from handlens import checkpoint
    from handlens import photos as photos_room
    from handlens.cli import screen
    from handlens.train.learned import learned_by
    from handlens.train.start import earlier_of

    known, runs = contents(run, LEARNED), [run]
    recipe: Mapping[str, Any] = checkpoint.read_facts(run)["recipe"]
    named = {name: str(recipe.get(name, "")) for name in ("teacher", "weights", "continue_run")}
    if named["continue_run"]:
        named["continue_run"] = str(earlier_of(run, named["continue_run"]))
    for _, folder, learned, _ in learned_by(**named):
        known |= learned
        runs.append(folder)
    if not known:
        return Seen([], [])
    with screen.progress("looking at photos") as update:
        found = photos_room.examine(photos, update)
    own = contents(run, ("test",))
    rest = [path for path in found.facts if found.sha256[path] not in known | own]
    return Seen(
        [path for path, content in found.sha256.items() if content in known],
        _copies(found, rest, runs, known) if rest else [],
    )


def _copies(found: Findings, paths: list[str], runs: list[Path], known: set[str]) -> list[str]:
    """Those of the photos that are, or nearly, one whose file has a known hash: as pixels, then as near-duplicates."""
    from handlens import photos as photos_room
    from handlens.cli import screen
    from handlens.errors import counted

    learned: dict[str, tuple[Findings, str]] = {}  # by the hash of the file: what was seen of it, and its path there
    for there in _there(found, runs):
        learned |= {content: (there, path) for path, content in there.sha256.items() if path in there.facts}
    learned = {content: place for content, place in learned.items() if content in known}
    if lost := len(known) - len(learned):
        screen.note(
            f"{counted(lost, 'photo')} that {runs[0]}, or a run behind it, learned from {'is' if lost == 1 else 'are'} "
            "no longer where it was: copies saved anew, or nearly the same, are not known again"
        )
    pixels = {there.pixels[path] for there, path in learned.values()}
    again = {path for path in paths if found.pixels[path] in pixels}
    sides = [(f"0 {content}", *place) for content, place in learned.items()]
    sides += [(f"1 {path}", found, path) for path in paths if path not in again]
    both = photos_room.Findings(
        broken=[],
        sha256={},
        pixels={name: side.pixels[path] for name, side, path in sides},
        duplicates=[],
        facts={name: side.facts[path] for name, side, path in sides},
        class_of={name: side.class_of[path] for name, side, path in sides},
    )
    if learned and len(again) < len(paths):
        with screen.progress("comparing with what was learned", len(sides)) as update:
            update(0, len(sides))
            groups = both.near_duplicates()
        for group in groups:
            if any(name[0] == "0" for name in group):
                again |= {name[2:] for name in group if name[0] == "1"}
    return [path for path in paths if path in again]


def _there(found: Findings, runs: Iterable[Path]) -> Iterator[Findings]:
    """What can be seen of the photos of runs where these lie, and of photos that were looked at already."""
    from handlens import files
    from handlens import photos as photos_room
    from handlens.cli import screen
    from handlens.errors import HandlensError
    from handlens.photos.published import PUBLISHED

    yield found
    for place in dict.fromkeys(place for run in runs for place in _places(run)):
        if place in PUBLISHED and not (files.cache_folder() / "photos" / place).exists():
            continue  # looking must not download it
        with contextlib.suppress(HandlensError):
            with screen.progress("looking at the run's photos") as update:
                looked = photos_room.examine(photos_room.scan(place, keep_empty=True), update)
            yield looked


def _places(run: Path) -> Iterator[str]:
    """Where the photos of a run lay, and those of the runs that it continues."""
    from handlens import checkpoint
    from handlens.errors import HandlensError
    from handlens.train.start import earlier_of

    known = set[str]()
    while os.path.realpath(run) not in known:
        known.add(os.path.realpath(run))
        try:
            recipe = checkpoint.read_facts(run)["recipe"]
        except (HandlensError, OSError):
            return
        yield from (str(recipe[name]) for name in ("photos", "add") if recipe.get(name))
        run = earlier_of(run, recipe["continue_run"]) if recipe.get("continue_run") else run


def judged(run: Path, photos: Photos, split: str) -> tuple[int, str]:
    """How many of the photos a run knows already, and a sentence on what that means for its figures, or none."""
    from handlens import photos as photos_room
    from handlens.errors import counted

    known = seen(run, photos)
    if not any(known):
        return 0, ""
    found = photos_room.examine(photos)
    known = Seen(*([path for path in paths if path in found.facts] for paths in known))
    number = len(known.files) + len(known.copies)
    if not number:
        return 0, ""
    own = set(found.sha256.values())
    instead = ": --split test judges those that chose nothing" if contents(run, ("test",)) else ""
    if split in LEARNED and own <= contents(run, (split,)):
        chose = "by these validation photos its epoch was chosen, and its temperature and threshold where it has them"
        told = "the run was trained on these photos" if split == "train" else chose
        return number, f"{told}, so that the figures flatter{instead}"
    told = f"{number} of these {counted(len(found.facts), 'photo')} {'was' if number == 1 else 'were'} {known}"
    told += ": the figures flatter"
    if instead and contents(run) <= own:
        told += f"; they are the run's own photos{instead}"
    return number, told


def contents(run: Path, splits: tuple[str, ...] = (*LEARNED, "test")) -> set[str]:
    """The SHA-256 of the photos in these of a run's splits; none where it has no split, as a bundle."""
    from handlens import files

    if not (run / SPLIT_FILE).is_file():
        return set()
    stored = files.read_json(run / SPLIT_FILE)
    return {content for name in splits for content in stored.get(name, {}).values()}
