"""What a trained classifier's confidence is worth: its temperature, and the score of photos of none of its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from handlens.errors import HandlensError
from handlens.evaluate import Scores, calibration, unknown
from handlens.photos import Photos
from handlens.run import Classifier


@dataclasses.dataclass(frozen=True)
class Confidence:
    """What validation photos settle, as a checkpoint keeps it, and a sentence on what they were too few for.

    validation: their scores, with the calibrated probabilities; None without such photos. outside: the calibrated
    (probabilities, logits) of the half of the unknown photos that chose nothing; None without. chose: the SHA-256 of
    those in the other half.
    """

    calibration: dict[str, Any] | None
    rejection: dict[str, Any] | None
    validation: Scores | None
    outside: tuple[np.ndarray, np.ndarray] | None
    notes: tuple[str, ...]
    chose: tuple[str, ...] = ()


def fit(
    classifier: Classifier,
    validation: Photos,
    score: Callable[[Photos], Scores],
    outside: str = "",
    count: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Confidence:
    """Fit the temperature of a classifier that has none yet, then its rejection.

    score: what the classifier says of photos, logits included. outside: a folder of photos of none of the classes, or
    "". count: called with (what is done, done, total).
    Raises HandlensError when the network's answers are not finite, or `outside` holds fewer than two photos.
    """
    notes = []
    num_classes = len(classifier.classes)
    labels, logits, scores = np.empty(0, np.int64), np.empty((0, num_classes), np.float32), None
    if len(validation):
        scores = score(validation)
        assert scores.logits is not None
        labels, logits = scores.labels, scores.logits
    calibrated, temperature = None, 1.0
    try:
        calibrated = calibration.fit(logits, labels)
        temperature = calibrated.temperature
    except HandlensError as error:
        notes.append(str(error))
    if scores:
        scores = dataclasses.replace(scores, probabilities=calibration.softmax(logits, temperature).astype(np.float32))
    unused = outside and len(logits) < unknown.FEWEST  # nothing can be chosen by them
    found = _outside(classifier, outside, temperature, count, notes) if outside and not unused else None
    choosing, judging = (found.half(False), found.half(True)) if found else (None, None)
    rejection = None
    try:
        pair = choosing.pair if choosing else None
        rejection = unknown.fit(calibration.softmax(logits, temperature), logits, pair).to_dict()
    except HandlensError as error:
        notes.append(f"{error}; the photos in {outside} were not used" if unused else str(error))
    return Confidence(
        calibrated.to_dict() if calibrated else None,
        rejection,
        scores,
        judging.pair if judging else None,
        tuple(notes),
        tuple(choosing.contents) if choosing else (),
    )


def _outside(
    classifier: Classifier,
    outside: str,
    temperature: float,
    count: Callable[[str, int, int], None],
    notes: list[str],
) -> unknown.Outside:
    """The answers to the photos in a folder, with calibrated probabilities."""
    unknown.check_halves(outside)
    found = unknown.answers(
        classifier.infer,
        classifier.preprocess,
        outside,
        lambda done, total: count("judging unknown photos", done, total),
    )
    notes.extend(f"left out of the unknown photos: {path} {reason}" for path, reason in found.left_out)
    return found._replace(probabilities=calibration.softmax(found.logits, temperature))
