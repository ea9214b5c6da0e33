"""Which photos a run knows already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlens.photos import Photos

SPLIT_FILE = "split.json"  # of a run's folder
LEARNED = ("train", "validation")


def seen(run: Path, photos: Photos) -> list[str]:
    """Those of the photos, by content, that the run, or one that it learned from, was trained on or chosen by."""
    from handlens import checkpoint
    from handlens import photos as photos_room
    from handlens.train.start import learned_by

    known = contents(run, LEARNED)
    recipe: Mapping[str, Any] = checkpoint.read_facts(run)["recipe"]
    named = (str(recipe.get(name, "")) for name in ("teacher", "weights", "continue_run"))
    for _, _, learned, _ in learned_by(*named):
        known |= learned
    return [path for path, content in photos_room.examine(photos).sha256.items() if content in known] if known else []


def are_the_runs_own(run: Path, photos: Photos) -> bool:
    """Whether all photos of the run's split are among these by content, so that `--split` finds them here."""
    from handlens import photos as photos_room

    own = contents(run)
    return bool(contents(run, ("test",))) and own <= set(photos_room.examine(photos).sha256.values())


def contents(run: Path, splits: tuple[str, ...] = (*LEARNED, "test")) -> set[str]:
    """The SHA-256 of the photos in these of a run's splits; none where it has no split, as a bundle."""
    from handlens import files

    if not (run / SPLIT_FILE).is_file():
        return set()
    stored = files.read_json(run / SPLIT_FILE)
    return {content for name in splits for content in stored.get(name, {}).values()}
