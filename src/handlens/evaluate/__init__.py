"""How good is it: figures with their uncertainty for anything that maps photos to probabilities, and a report."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from handlens import photos as photos_room
from handlens.errors import need
from handlens.evaluate.metrics import Scores
from handlens.photos import Photos
from handlens.preprocess import Preprocess

__all__ = ["Scores", "check_installed", "score"]


def check_installed(report: bool = False) -> None:
    """Raise NotHereError unless what computes the figures is installed, and with `report` what draws and writes it."""
    need("evaluate", {"scipy": "scipy"})
    if report:
        need("evaluate", {"matplotlib": "matplotlib", "jinja2": "jinja2"})


def score(
    predict: Callable[[np.ndarray], np.ndarray | tuple[np.ndarray, np.ndarray]],
    photos: Photos,
    preprocess: Preprocess,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Run `predict` over labelled photos and compare.

    predict: uint8 RGB (B, image_px, image_px, 3) -> probabilities (B, K) over `photos.classes`, in that order; or, as
    `run.Classifier.infer` gives them, (probabilities, logits).
    Photos that cannot be read are left out and listed in the result. `progress` is called with (done, total).
    Raises HandlensError when no photo is left, or when the probabilities do not fit the classes.
    """
    findings = photos_room.examine(photos)
    photos = photos.without([path for path, _ in findings.broken])
    rows, labels, done = [np.empty((0, len(photos.classes)), np.float32)], [np.empty(0, np.int64)], 0
    logits: list[np.ndarray] = []
    for images, batch_labels in photos_room.batches(photos, preprocess, batch_size) if len(photos) else ():
        answer = predict(images)
        probabilities, *behind = answer if isinstance(answer, tuple) else (answer,)
        rows.append(np.asarray(probabilities, dtype=np.float32))
        logits += [np.asarray(values, dtype=np.float32) for values in behind]
        labels.append(batch_labels)
        done += len(images)
        if progress:
            progress(done, len(photos))
    return Scores(
        probabilities=np.concatenate(rows[1:] or rows),
        labels=np.concatenate(labels),
        classes=photos.classes,
        paths=photos.paths,
        left_out=tuple(findings.broken),
        logits=np.concatenate(logits) if logits else None,
        scenes=findings.scenes(photos.paths),
    )
