"""The end of a run: its checkpoint written, judged through the code that will use it, and reported on."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from handlens import __version__, checkpoint, evaluate, files, run
from handlens.checkpoint import Checkpoint
from handlens.errors import counted
from handlens.evaluate import Scores, calibration, report, sections, unknown
from handlens.evaluate.unknown import Rejection
from handlens.photos import Photos, batches, examine
from handlens.run import Classifier
from handlens.train import confidence, logs, mistakes, modes
from handlens.train.data import Data
from handlens.train.recipe import Recipe
from handlens.train.watcher import Watcher, counter

_TRIED = 4  # photos
_SAME = 1e-2  # of the largest logit


def _score(
    classifier: Classifier,
    trained: modes.Trained,
    photos: Photos,
    temperature: float,
    count: Callable[[int, int], None],
) -> Scores:
    """What the saved run says of photos; a head's from their features, if these give for some what the run says."""
    if trained.logits:
        logits = trained.logits(photos)
        images, _ = next(batches(photos.select(range(min(len(photos), _TRIED))), classifier.preprocess, _TRIED))
        expected = classifier.infer(images)[1]
        if np.abs(logits[: len(expected)] - expected).max() <= _SAME * max(1.0, float(np.abs(expected).max())):
            probabilities = calibration.softmax(logits, temperature).astype(np.float32)
            return Scores(
                probabilities=probabilities, labels=photos.labels, classes=photos.classes, paths=photos.paths,
                logits=logits, scenes=examine(photos).scenes(photos.paths),
            )  # fmt: skip
    return evaluate.score(classifier.infer, photos, classifier.preprocess, progress=count)


def judge(
    trained: modes.Trained,
    recipe: Recipe,
    data: Data,
    folder: Path,
    metrics: dict[str, Any],
    watcher: Watcher,
) -> None:
    """Write the log and the checkpoint, score it through the code that will use it, and write the report."""
    net, preprocess = trained.begun.net, trained.begun.preprocess
    kept = Checkpoint(
        net=net,
        name=recipe.net,
        arguments=trained.begun.arguments,
        classes=data.classes,
        preprocess=preprocess,
        recipe=dataclasses.asdict(recipe),
        metrics=metrics,
    )
    logs.write_csv(folder / "log.csv", trained.log, watcher.note)
    checkpoint.save(folder, kept)
    picture = logs.curves(trained.log, metrics["kept_epoch"])
    with files.atomic(folder / files.CURVES) as file:
        file.write(picture)
    counting, classifier = counter(watcher, "judging on validation photos"), run.load(folder)
    found = confidence.fit(
        classifier, data.splits["validation"], lambda photos: _score(classifier, trained, photos, 1.0, counting),
        recipe.unknown, watcher.count,
    )  # fmt: skip
    for line in found.notes:
        watcher.note(line)
    metrics["notes"] = [*metrics["notes"], *found.notes]
    kept = dataclasses.replace(kept, calibration=found.calibration, rejection=found.rejection)
    checkpoint.save(folder, kept)
    if found.chose:
        files.write_json(folder / files.UNKNOWN, {"chose": found.chose})
    if found.validation:
        metrics["validation"] = found.validation.to_dict()
    photos = data.splits["test"]
    if len(photos):
        counting = counter(watcher, "judging on test photos")
        temperature = found.calibration["temperature"] if found.calibration else 1.0
        scores = _score(run.load(folder), trained, photos, temperature, counting)
        metrics["test"] = scores.to_dict()
        if found.rejection:
            metrics["unknown"] = unknown.judge(Rejection(**found.rejection), scores, found.outside)
        report.write(
            folder / "report.html",
            scores,
            photos,
            title=f"{recipe.net} on {len(data.classes)} classes of photos",
            split=f"{counted(len(photos), 'test photo')}, {data.test_is}, which chose nothing in the training",
            facts={
                "Recipe": dataclasses.asdict(recipe),
                "Training": {name: metrics[name] for name in ("epochs", "kept_epoch", "seconds", "device")},
                "Pixels": preprocess.to_dict(),
                "Versions": versions(),
            },
            pictures={"Training": picture},
            saliency=mistakes.looks(net, preprocess, watcher.note) if len(scores.mistakes()) else None,
            nearest=trained.nearest,
            sections=[
                *([sections.unknown(metrics["unknown"])] if "unknown" in metrics else []),
                *([sections.notes(metrics["notes"])] if metrics["notes"] else []),
                sections.not_measured(),
            ],
        )
    metrics["judged"] = True
    checkpoint.save(folder, kept)


def versions() -> dict[str, str]:
    """The versions that a figure depends on, but of what is in no package of that name."""
    found = {"python": platform.python_version(), "handlens": __version__}
    for name in ("torch", "numpy", "pillow", "lightning-fabric"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
