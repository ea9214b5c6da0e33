"""Confidence that means something: one temperature for all logits (Guo et al. 2017), and how far off it leaves them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from handlens.errors import HandlensError, counted, missing_extra, not_finite

BINS = 15  # of equal width, as Guo et al. 2017 have them
FEWEST = 50  # photos; with fewer, the fitted temperature was no better than none on other photos (docs/confidence.md)
BOUNDS = (0.05, 20.0)
DRAWS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What logits are divided by before the softmax, and what that changes on the photos it was fitted on.

    temperature: above 1 the network was too sure of itself, below 1 not sure enough; 1.0 where it was not fitted.
    loss_before, loss_after: mean cross-entropy in nats on the `num_photos` validation photos.
    """

    temperature: float
    num_photos: int
    loss_before: float
    loss_after: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dataclasses.asdict(self)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N, K) logits -> float64 (N, K) probabilities."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(1, keepdims=True)
    return probabilities


def fit(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """The temperature with the least cross-entropy on (N, K) validation logits and their (N,) labels.

    As in Platt's scaling, a label counts as right with probability 1 - 1 / (N + 2) only: without a mistake among the
    photos, any answer could be called certain. Raises HandlensError for fewer than `FEWEST` photos and for logits that
    are not finite.
    """
    try:
        from scipy.optimize import minimize_scalar
    except ImportError:
        raise missing_extra("evaluate", "scipy") from None
    count, num_classes = logits.shape
    if not np.isfinite(logits).all():
        raise not_finite("logits")
    if count < FEWEST:
        raise HandlensError(
            f"{counted(count, 'validation photo')} {'is' if count == 1 else 'are'} too few to calibrate probabilities "
            f"with, {FEWEST} are needed",
            "until then they are uncalibrated (temperature 1)",
        )
    doubt = 1 / (count + 2)
    rows = np.arange(count)

    def loss(log_temperature: float, doubt: float = doubt) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        logs = scaled - scaled.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        return float(-((1 - doubt) * logs[rows, labels] + doubt / num_classes * logs.sum(1)).mean())

    best = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-5})
    return Calibration(
        temperature=float(np.exp(best.x)),
        num_photos=count,
        loss_before=loss(0.0, 0.0),
        loss_after=loss(float(best.x), 0.0),
    )


@dataclasses.dataclass(frozen=True)
class Bin:
    """Photos whose answer has a probability above `low` and at most `high`: how sure, how often right, how many."""

    low: float
    high: float
    confidence: float
    accuracy: float
    num_photos: int


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The bins of equal width that hold a photo, by the probability of the answer."""
    confidence, right = _answers(probabilities, labels)
    place = _place(confidence, bins)
    return [
        Bin(i / bins, (i + 1) / bins, float(confidence[own].mean()), float(right[own].mean()), int(own.sum()))
        for i in range(bins)
        if (own := place == i).any()
    ]


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: how far accuracy is from confidence, by bin, weighted by the photos in each."""
    confidence, right = _answers(probabilities, labels)
    return _error(confidence, right, bins)


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Brier's score, 0 to 2: squared distance from the right answer, over all classes (Brier 1950)."""
    wanted = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - wanted) ** 2).sum(1).mean())


def ece_ci95(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[float, float]:
    """95 % interval of `ece`: percentiles over 1,000 bootstrap draws of the photos, with a fixed seed.

    Drawing photos again adds noise to each bin, which `ece` counts as error: the draws' mean lies above the figure that
    they are drawn around, and the interval is moved down by as much.
    """
    confidence, right = _answers(probabilities, labels)
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(labels), size=len(labels)) for _ in range(DRAWS))
    errors = [_error(confidence[own], right[own], bins) for own in drawn]
    low, high = np.quantile(errors, [0.025, 0.975]) - (np.mean(errors) - _error(confidence, right, bins))
    return max(0.0, float(low)), max(0.0, float(high))


def ece_by_chance(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """What `ece` stays below, 19 times of 20, where every probability is exactly right, on as many photos.

    Answers are drawn that are right as often as they say (Bröcker and Smith 2007). An `ece` below this gives no reason
    to doubt the probabilities; few photos cannot show less.
    """
    confidence, _ = _answers(probabilities, labels)
    rng = np.random.default_rng(0)
    errors = [_error(confidence, rng.random(len(confidence)) < confidence, bins) for _ in range(DRAWS)]
    return float(np.quantile(errors, 0.95))


def summary(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`ece` with its interval and what chance gives, `brier`, and the bins, as JSON-ready values."""
    return {
        "ece": ece(probabilities, labels),
        "ece_ci95": list(ece_ci95(probabilities, labels)),
        "ece_by_chance": ece_by_chance(probabilities, labels),
        "brier": brier(probabilities, labels),
        "bins": [dataclasses.asdict(found) for found in reliability(probabilities, labels)],
    }


def _answers(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return probabilities.max(1).astype(np.float64), (probabilities.argmax(1) == labels).astype(np.float64)


def _place(confidence: np.ndarray, bins: int) -> np.ndarray:
    place: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return place


def _error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    gaps = np.bincount(_place(confidence, bins), right - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))
