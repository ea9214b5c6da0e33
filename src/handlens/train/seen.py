"""Which photos a run knows already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from handlens import checkpoint, files
from handlens import photos as photos_room
from handlens.errors import counted
from handlens.photos import Photos
from handlens.photos.split import contents
from handlens.train.data import earlier_of
from handlens.train.learned import LEARNED, Progress, copies, learned_by, places


class Seen(NamedTuple):
    """Paths of photos that a run knows: the very files, and the same photos in other files, or nearly the same."""

    files: list[str]
    copies: list[str]

    def __str__(self) -> str:
        if not self.copies:
            return "trained on or chosen by"
        nearly = len(self.copies)
        return f"trained on or chosen by, {nearly if self.files else 'all'} of them saved anew or nearly the same"


def seen(run: Path, photos: Photos, progress: Progress, note: Callable[[str], None]) -> Seen:
    """Those of the photos that the run, or one that it learned from, was trained on or chosen by.

    Where the photos of these runs still lie where they were, what was saved anew or is nearly the same is found too;
    a note says where they do not. Photos of the run's own test split are compared with those only that the runs behind
    it have learned: its split kept them apart from its own.
    progress: shows a bar of that work in a `with`, which gives what is called with (done, total).
    """
    own, test = (contents(run / files.SPLIT, names) for names in (LEARNED, ("test",)))
    known, runs = own, [run]
    recipe: Mapping[str, Any] = checkpoint.read_facts(run)["recipe"]
    named = {name: str(recipe.get(name, "")) for name in ("teacher", "weights", "continue_run")}
    if named["continue_run"]:
        named["continue_run"] = str(earlier_of(run, named["continue_run"]))
    for _, folder, learned in learned_by(**named):
        known = known | learned
        runs.append(folder)
    if not known:
        return Seen([], [])
    with progress("looking at photos") as update:
        found = photos_room.examine(photos, update)
    rest = [path for path in found.facts if found.sha256[path] not in known]
    others = [path for path in rest if found.sha256[path] not in test]
    tested = [path for path in rest if found.sha256[path] in test]
    behind = known - own if tested else set[str]()
    where = places(found, runs, known if others else behind, progress, note)
    of_behind = {content: place for content, place in where.items() if content in behind}
    return Seen(
        [path for path, content in found.sha256.items() if content in known],
        [*copies(found, others, where, progress), *copies(found, tested, of_behind, progress)],
    )


def judged(run: Path, photos: Photos, split: str, progress: Progress, note: Callable[[str], None]) -> tuple[int, str]:
    """How many of the photos a run knows already, and a sentence on what that means for its figures, or none.

    split: the one of the run's that these were named as, if any. progress, note: as of `seen`.
    """
    known = seen(run, photos, progress, note)
    if not any(known):
        return 0, ""
    found = photos_room.examine(photos)
    known = Seen(*([path for path in paths if path in found.facts] for paths in known))
    number = len(known.files) + len(known.copies)
    if not number:
        return 0, ""
    own, stored = set(found.sha256.values()), run / files.SPLIT
    instead = ": --split test judges those that chose nothing" if contents(stored, ("test",)) else ""
    if split in LEARNED and own <= contents(stored, (split,)):
        chose = "by these validation photos its epoch was chosen, and its temperature and threshold where it has them"
        told = "the run was trained on these photos" if split == "train" else chose
        return number, f"{told}, so that the figures flatter{instead}"
    told = f"{number} of these {counted(len(found.facts), 'photo')} {'was' if number == 1 else 'were'} {known}"
    told += ": the figures flatter"
    seen_of_test = {found.sha256[path] for paths in known for path in paths} & contents(stored, ("test",))
    if instead and contents(stored) <= own and not seen_of_test:
        told += f"; they are the run's own photos{instead}"
    return number, told
