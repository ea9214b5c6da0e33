"""What the runs that one learns from have learned: none of its test photos, or its figures would flatter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from handlens import checkpoint, files
from handlens.errors import HandlensError
from handlens.nets import weights
from handlens.train.recipe import Recipe
from handlens.train.start import SPLIT, Data, contents_of, earlier_of


def check_unseen(recipe: Recipe, data: Data) -> None:
    """That no run which this one learns from, as a teacher or by its weights, was trained on its test photos.

    Raises HandlensError with how many they are: such a test would flatter.
    """
    for what, folder, learned, seed in learned_by(recipe.teacher, recipe.weights):
        test = [data.sha256[photo] for photo in data.splits["test"].paths]
        if known := sum(content in learned for content in test):
            cut = data.test_is.startswith("cut")
            raise HandlensError(
                f"the run {folder} ({what}) was trained on {known} of the {len(test)} test photos of this one, whose "
                "figures would flatter",
                "train both on the same split"
                + (f": --seed {seed} made that one's" if cut and seed != recipe.seed else ""),
            )


def check_unlearned(recipe: Recipe, contents: Iterable[str], what_for: str) -> None:
    """That no run which this one learns from has learned or was chosen by photos with these hashes of their content.

    Raises HandlensError: `what_for` cannot be had with it.
    """
    wanted = set(contents)
    for what, folder, learned, _ in learned_by(recipe.teacher, recipe.weights):
        if known := len(wanted & learned):
            raise HandlensError(
                f"the run {folder} ({what}) was trained on {known} of these photos, and {what_for} needs weights that "
                "have not seen them",
                "give --weights imagenet" if what == "weights" else "leave out --teacher",
            )


def learned_by(teacher: str, weights: str, continue_run: str = "") -> Iterator[tuple[str, Path, set[str], Any]]:
    """What has been learned by the runs that one learns from, and by those that these have learned from.

    Gives (whether by "teacher" or "weights", folder, hashes of its training and validation photos, seed of its split)
    of each that is still there. Of a run that is continued, whose split is kept, these are those behind it. What cannot
    be read is passed over, but of the runs that are given.
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
            stored = files.read_json(folder / SPLIT) if (folder / SPLIT).is_file() else None
        except (HandlensError, OSError):
            if (what, folder) in given:
                raise
            stored = None
        if stored and what != "continue_run":
            yield what, folder, contents_of(stored, ("train", "validation")), stored.get("seed")
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
