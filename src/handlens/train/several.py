"""Several trainings for one figure: seeds with a split each, or folds that each test other photos."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from handlens import checkpoint, files
from handlens import photos as photos_room
from handlens.errors import HandlensError, quoted
from handlens.evaluate.metrics import students, wilson
from handlens.photos.published import PUBLISHED
from handlens.train import job, learned
from handlens.train.recipe import Recipe
from handlens.train.watcher import Watcher, counter


class Training(NamedTuple):
    """One of them: the name of its folder, its photos (of a fold a CSV beside it) and its seed."""

    name: str
    photos: str
    seed: int


class Plan(NamedTuple):
    """What is trained in `folder` on `photos`: each of `trainings`, with the same fields of `Recipe` given."""

    folder: Path
    kind: Literal["folds", "repeats"]
    photos: str
    given: dict[str, Any]
    trainings: tuple[Training, ...]


def begin(
    photos: str,
    out: str | os.PathLike[str],
    given: Mapping[str, Any],
    *,
    repeats: int = 1,
    folds: int = 0,
    watcher: Watcher | None = None,
) -> Plan:
    """Make the folder `out` with a plan in it, which `read` gives back after an interruption.

    Plans `folds` trainings, near-duplicates on one side of each, or one for each of `repeats` seeds from the given one
    on. Raises HandlensError for what `fit` would refuse in each of them, as far as that can be told before.
    """
    watcher = watcher or Watcher()
    out, given = Path(out), job.settled({**given, "photos": photos} if photos else given, watcher)
    if os.path.lexists(out):
        hint = (
            f"go on with: handlens train --resume --out {quoted(out)}"
            if (out / files.PLAN).is_file()
            else "choose another --out"
        )
        raise HandlensError(f"{out} exists already", f"{hint}, or remove it")
    files.check_place(out)
    draft = job.checked(given, watcher)
    job.fetch(draft, watcher)
    source, first = given.pop("photos"), given.pop("seed", 0)
    cut: list[photos_room.Photos] = []
    if folds:
        cut = _cut(source, folds, first, watcher, draft)
        trainings = [Training(f"fold-{number}", f"fold-{number}.csv", first) for number in range(1, folds + 1)]
    else:
        found = photos_room.scan(source)
        if "test" not in (found.splits or ()):
            learned.check_unlearned(draft, found, "a test split of each seed's own", watcher)
        elif "validation" not in (found.splits or ()):
            alone = dataclasses.replace(draft, teacher="")  # which may have learned what chooses
            learned.check_unlearned(alone, found, "a validation split of each seed's own", watcher)
        trainings = [Training(f"seed-{seed}", source, seed) for seed in range(first, first + repeats)]
    kind: Literal["folds", "repeats"] = "folds" if folds else "repeats"
    plan = Plan(out, kind, source, given, tuple(trainings))
    with files.atomic_folder(out) as folder:  # without a plan it could neither be gone on with nor begun again
        files.make_own_folder(folder)
        for training, fold in zip(trainings, cut, strict=bool(cut)):
            _write(folder / training.photos, fold)
        _store(plan._replace(folder=folder))
    return plan


def read(out: str | os.PathLike[str]) -> Plan:
    """The plan that was begun in a folder; raises HandlensError where it cannot be read."""
    stored = files.read_json(Path(out, files.PLAN))
    try:
        trainings = tuple(Training(**one) for one in stored["trainings"])
        return Plan(Path(out), stored["kind"], stored["photos"], dict(stored["given"]), trainings)
    except (KeyError, TypeError) as error:
        raise HandlensError(f"{Path(out, files.PLAN)} is no plan of trainings ({error!r})", "begin anew") from None


def moved(plan: Plan, photos: str) -> Plan:
    """The plan with its photos at a new place, which is stored. Raises HandlensError for folds, and for no place."""
    if plan.kind == "folds":
        raise HandlensError(
            f"the folds in {plan.folder} name each photo by its place, which cannot be changed",
            f"put the photos back, and go on with: handlens train --resume --out {quoted(plan.folder)}",
        )
    photos = job.absolute(photos)
    plan = plan._replace(photos=photos, trainings=tuple(one._replace(photos=photos) for one in plan.trainings))
    _check_there(plan)
    _store(plan)
    return plan


def _store(plan: Plan) -> None:
    trainings = [one._asdict() for one in plan.trainings]
    stored = {"kind": plan.kind, "photos": plan.photos, "given": plan.given, "trainings": trainings}
    files.write_json(plan.folder / files.PLAN, stored)


def _check_there(plan: Plan) -> None:
    if plan.kind == "repeats" and plan.photos not in PUBLISHED and not os.path.exists(plan.photos):
        raise HandlensError(
            f"the photos of {plan.folder} are no longer in {plan.photos}",
            f"name where they are now: handlens train PHOTOS --resume --out {quoted(plan.folder)}",
        )


def train(plan: Plan, number: int, watcher: Watcher | None = None, device: str = "auto") -> dict[str, Any]:
    """Do training `number` of a plan, from 0 on, go on with it, or read what it gave: its row in `summary`."""
    one = plan.trainings[number]
    folder = plan.folder / one.name
    source = str(plan.folder / one.photos) if plan.kind == "folds" else one.photos  # the plan's may have been moved
    if job.is_finished(folder):
        metrics = checkpoint.read_facts(folder)["metrics"]
    else:
        _check_there(plan)
        begun = (folder / files.RECIPE).is_file()
        given: dict[str, Any] = {"resume": True} if begun else {**_timed(plan), "seed": one.seed}
        metrics = job.fit(source, out=folder, watcher=watcher, device=device, **given).metrics
    test = metrics.get("test") or {}
    return {
        "run": str(folder),
        "seed": one.seed,
        "test_is": metrics.get("test_is", ""),
        **{name: test.get(name) for name in ("num_photos", "effective_num_photos", "top1", "top1_ci95")},
    }


def _timed(plan: Plan) -> dict[str, Any]:
    """What a plan gives to each training; float32 where the first one found that to be the fastest.

    Where the processor lacks bfloat16, trying it takes long.
    """
    first = plan.folder / plan.trainings[0].name / files.RECIPE
    tried = plan.given.get("precision", "auto") == "auto" and first.is_file()
    return {**plan.given, "precision": "32-true"} if tried and Recipe.read(first).precision == "32-true" else plan.given


def summary(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of `train`, their mean and spread; of folds also all photos together with Wilson's 95 % interval.

    mean_ci95: of repeats, Student's 95 % interval of the mean, for other seeds with the same photos; None where there
    is no spread to tell it by.
    """
    judged = [row for row in runs if row["top1"] is not None]
    tops = [row["top1"] for row in judged]
    found: dict[str, Any] = {
        "runs": list(runs),
        "mean": statistics.mean(tops) if tops else None,
        "mean_ci95": list(students(tops)) if plan.kind == "repeats" and len(set(tops)) > 1 else None,
        "standard_deviation": statistics.stdev(tops) if len(tops) > 1 else None,
        "lowest": min(tops, default=None),
        "highest": max(tops, default=None),
    }
    if plan.kind == "folds" and tops:
        total = sum(row["num_photos"] for row in judged)
        right = sum(round(row["top1"] * row["num_photos"]) for row in judged)
        # Near-duplicates are in one fold; a fold judged by an earlier version does not tell of any.
        numbers = [(row["num_photos"], row.get("effective_num_photos") or row["num_photos"]) for row in judged]
        trials = total**2 / sum(number**2 / effective for number, effective in numbers)
        ends = list(wilson(right / total * trials, trials))
        found["all_photos"] = {"num_photos": total, "top1": right / total, "top1_ci95": ends}
    return found


def _cut(source: str, count: int, seed: int, watcher: Watcher, draft: Recipe) -> list[photos_room.Photos]:
    found = photos_room.scan(source)
    if found.splits and "test" in found.splits:
        raise HandlensError(f"{source} names its own test photos, which --folds would train on", "try --repeats")
    findings = photos_room.examine(found, counter(watcher, "looking at photos"))
    learned.check_unlearned(draft, found, "a test of each photo", watcher)
    for path, reason in findings.broken:
        watcher.note(f"left out {path}: {reason}")
    found = photos_room.usable(found, findings)
    if odd := [path for path in found.paths if re.search(r"[\x00-\x1f\x7f-\x9f]", path)]:
        raise HandlensError(
            f"the name of {odd[0]!r} has a control character, which the CSV of a fold cannot hold", "rename it"
        )
    photos_room.check_trainable(found, findings.duplicates)
    groups = [*findings.duplicates, *findings.near_duplicates(counter(watcher, "looking for copies"))]
    return photos_room.folds(found, findings.sha256, count, seed, groups)


def _write(path: Path, fold: photos_room.Photos) -> None:
    """A CSV of path, label and split, all quoted: names may begin or end with spaces."""
    assert fold.splits is not None
    with files.atomic(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["path", "label", "split"])
        for index, split in enumerate(fold.splits):
            writer.writerow([os.path.abspath(fold.path(index)), fold.classes[fold.labels[index]], split])
