"""Figures of a classifier on labelled photos, with their uncertainty."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from handlens.errors import HandlensError, missing_extra, not_finite
from handlens.evaluate import calibration

_ROUNDED = 5e-3  # what an INT8 file's probabilities are off by: a step is 1/256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a classifier said of labelled photos, and every figure that follows from it.

    probabilities: (N, K), a row a photo; labels: (N,) indices into the K `classes`; paths: the N photos' paths.
    left_out: photos that could not be read, as (path, reason); they count nowhere.
    logits: (N, K) behind the probabilities, where they are known: what there would be without calibration.
    scenes: (N,) the same number for photos that are one again, exactly or nearly; by default each is another.
    Raises HandlensError without photos, when the shapes disagree, and for probabilities that are not finite.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    logits: np.ndarray | None = None
    scenes: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.paths), len(self.classes))
        if not self.paths:
            raise HandlensError("there is no photo to evaluate on", "give a folder with photos that can be read")
        for what in ("probabilities", "labels", "logits", "scenes"):
            values = getattr(self, what)
            if values is not None and values.shape != (expected[:1] if what in ("labels", "scenes") else expected):
                raise HandlensError(
                    f"{what} of shape {values.shape} for {expected[0]} photos and {expected[1]} classes",
                    "the classifier's classes must be those of the photos",
                )
        if not np.isfinite(self.probabilities).all():
            raise not_finite("probabilities")

    def reordered(self, order: Sequence[int]) -> Scores:
        """The same with class `order[i]` at place i."""
        places = np.argsort(order)
        return dataclasses.replace(
            self,
            probabilities=self.probabilities[:, order],
            labels=places[self.labels],
            classes=tuple(self.classes[index] for index in order),
            logits=None if self.logits is None else self.logits[:, order],
        )

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """(N,) index of the most probable class; the first of equals."""
        return self.probabilities.argmax(1)

    @functools.cached_property
    def confidence(self) -> np.ndarray:
        """(N,) probability of the predicted class."""
        return self.probabilities.max(1)

    @property
    def num_photos(self) -> int:
        """N, without those left out."""
        return len(self.paths)

    @functools.cached_property
    def effective_num_photos(self) -> float:
        """How many different photos would tell as much as these, 1 to N, see `effective`."""
        return effective(self.scenes) if self.scenes is not None else float(self.num_photos)

    @property
    def repetition(self) -> str:
        """A sentence on photos that show again what others do, or "" where there are none."""
        if self.scenes is None or not (again := self.num_photos - len(np.unique(self.scenes))):
            return ""
        return (
            f"{again} of the {self.num_photos} photos show again, or nearly, what another one does: the intervals are "
            f"those of {self.effective_num_photos:.0f} different ones"
        )

    def ci95(self, hits: np.ndarray, among: np.ndarray | None = None) -> tuple[float, float]:
        """Wilson's 95 % interval of the share of `hits`, bool (N,), `among` some photos, bool (N,), by default all.

        Photos of one scene are taken to be hit or missed together, so that they tell no more than their
        `effective_num_photos`. Raises ZeroDivisionError where there is none.
        """
        among = np.ones(self.num_photos, bool) if among is None else among
        number = int(among.sum())
        trials = number if self.scenes is None else effective(self.scenes[among])
        return wilson(int((hits & among).sum()) * (trials / number), trials)

    @property
    def top1(self) -> float:
        """Fraction of photos whose most probable class is theirs."""
        return float((self.predicted == self.labels).mean())

    @property
    def top1_ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `top1`."""
        return self.ci95(self.predicted == self.labels)

    @functools.cached_property
    def _in_top5(self) -> np.ndarray:
        best = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :5]
        hits: np.ndarray = (best == self.labels[:, None]).any(1)
        return hits

    @property
    def top5(self) -> float | None:
        """Fraction of photos whose class is among the five most probable; None for five classes or fewer."""
        return float(self._in_top5.mean()) if len(self.classes) > 5 else None

    @property
    def top5_ci95(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of `top5`; None for five classes or fewer."""
        return self.ci95(self._in_top5) if len(self.classes) > 5 else None

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; a probability below 1e-12 counts as that."""
        own = self.probabilities[np.arange(self.num_photos), self.labels].astype(np.float64)
        return float(-np.log(np.maximum(own, 1e-12)).mean())

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) counts of photos: row their class, column the predicted one."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts

    @functools.cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """For each class in order: name, precision, recall, f1 and support (photos of it).

        precision_ci95 and recall_ci95 are Wilson's 95 % intervals. A figure that nothing defines is None: recall of a
        class without photos, precision of one never predicted, F1 where both are so.
        """
        counts = np.stack([np.diag(self.confusion), self.confusion.sum(0), self.confusion.sum(1)], 1).tolist()
        return [
            {
                "name": name,
                "precision": right / given if given else None,
                "recall": right / support if support else None,
                "f1": 2 * right / (given + support) if given or support else None,
                "support": support,
                "precision_ci95": list(self.ci95(self.labels == k, self.predicted == k)) if given else None,
                "recall_ci95": list(self.ci95(self.predicted == k, self.labels == k)) if support else None,
            }
            for k, (name, (right, given, support)) in enumerate(zip(self.classes, counts, strict=True))
        ]

    def confusions(self, most: int = 5) -> list[dict[str, Any]]:
        """The pairs that are mixed up most: photos of one class that were taken for another, the most first.

        Each has class, taken_for, num_photos, and share of the class's photos with Wilson's 95 % interval.
        """
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [(row, column) for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True)]
        return [
            {
                "class": self.classes[row],
                "taken_for": self.classes[column],
                "num_photos": int(wrong[row, column]),
                "share": float(wrong[row, column] / self.confusion[row].sum()),
                "share_ci95": list(self.ci95(self.predicted == column, self.labels == row)),
            }
            for row, column in pairs
            if wrong[row, column]
        ]

    @functools.cached_property
    def calibration(self) -> dict[str, Any]:
        """`calibration.summary` as it is, and "before" (temperature 1) where the logits show that it was calibrated."""
        found = calibration.summary(self.probabilities, self.labels)
        if self.logits is None:
            return found
        before = calibration.softmax(self.logits)
        if not np.allclose(before, self.probabilities, rtol=0, atol=_ROUNDED):
            found["before"] = calibration.summary(before, self.labels)
        return found

    def mistakes(self) -> np.ndarray:
        """Indices of the wrongly classified photos, those that the classifier was surest of first."""
        wrong = np.flatnonzero(self.predicted != self.labels)
        ordered: np.ndarray = wrong[np.argsort(-self.confidence[wrong], kind="stable")]
        return ordered

    def to_dict(self) -> dict[str, Any]:
        """Every figure as JSON-ready values; accuracies are fractions, `per_class` is keyed by the class's name."""
        return {
            "top1": self.top1,
            "top1_ci95": list(self.top1_ci95),
            "top5": self.top5,
            "top5_ci95": list(self.top5_ci95) if self.top5_ci95 else None,
            "loss": self.loss,
            "num_photos": self.num_photos,
            "effective_num_photos": self.effective_num_photos,
            "classes": list(self.classes),
            "per_class": {
                line["name"]: {key: value for key, value in line.items() if key != "name"} for line in self.per_class
            },
            "confusion": self.confusion.tolist(),
            "confusions": self.confusions(),
            "calibration": self.calibration,
            "left_out": [{"photo": path, "error": reason} for path, reason in self.left_out],
        }


def effective(scenes: np.ndarray) -> float:
    """Kish's (1965) effective number of photos, (N,) the same number for those of one scene: N where all differ."""
    counts = np.unique(scenes, return_counts=True)[1]
    return float(counts.sum() ** 2 / (counts**2).sum())


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, both ends within [0, 1]; a trial may succeed in part, unlike in scipy's."""
    z = statistics.NormalDist().inv_cdf(0.975)

    def low(hits: float) -> float:
        spread = z * math.sqrt(z * z + 4 * hits * (1 - hits / trials))
        return float((2 * hits + z * z - spread) / (2 * (trials + z * z)))

    return low(successes), 1 - low(trials - successes)


def students(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two shares or more, both ends within [0, 1]."""
    try:
        from scipy.stats import t
    except ImportError:
        raise missing_extra("evaluate", "scipy") from None
    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return max(0.0, mean - half), min(1.0, mean + half)
