"""Confidence that means something: one temperature for all logits (Guo et al. 2017), and how far off it leaves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from handlens.errors import HandlensError, counted, missing_extra, not_finite

BINS = 15  # of equal width, as Guo et al. 2017 have them
FEWEST = 50  # photos; by 30 or 20, the temperature was worse than none in some draws, never by 50 (docs/confidence.md)
BOUNDS = (0.05, 20.0)
DRAWS = 1000
TAIL = 0.025  # of draws, on each side of a 95 % interval
_ROUNDED = 1e-9


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


def ece_ci95(held: Sequence[Bin]) -> tuple[float, float]:
    """95 % interval of the true calibration error, around `ece`, by the bins that hold a photo.

    Chance in each bin counts as error, so that what is seen lies above the truth, by most where that is little: the
    bootstrap's quantiles lie higher still. So each bin's true accuracy is taken to be off by a common factor times what
    was seen, and those factors are kept with which as much as was seen, and as little, is drawn in 2.5 % of 1,000 draws
    (with a fixed seed). The upper end is no less than what is seen, and than what Wilson's interval allows accuracy and
    confidence to be apart on the whole: without a mistake, no factor would make a probability of 100 % wrong.
    """
    from handlens.evaluate.metrics import wilson

    counts = np.array([one.num_photos for one in held])
    said, right = (counts * [getattr(one, name) for one in held] for name in ("confidence", "accuracy"))
    total = int(counts.sum())
    seen = float(np.abs(right - said).sum() / total)

    def accuracy(factor: float) -> np.ndarray:
        return np.clip((said + factor * (right - said)) / counts, 0, 1)

    def truth(factor: float) -> float:
        return float(np.abs(accuracy(factor) * counts - said).sum() / total)

    def drawn(factor: float) -> np.ndarray:
        rights = np.random.default_rng(0).binomial(counts, accuracy(factor), (DRAWS, len(counts)))
        return np.abs(rights - said).sum(1) / total

    def too_small(factor: float) -> bool:
        return bool((drawn(factor) >= seen - _ROUNDED).mean() < TAIL)

    def too_large(factor: float) -> bool:
        return bool((drawn(factor) <= seen + _ROUNDED).mean() < TAIL)

    low = truth(_edge(too_small, 0.0, 1.0)) if too_small(0.0) else 0.0
    top = 1.0
    while not too_large(top) and truth(2 * top) > truth(top):  # until no accuracy can be further off
        top *= 2
    high = truth(_edge(too_large, top, 0.0) if too_large(top) else top)
    apart = [abs(end - said.sum() / total) for end in wilson(round(right.sum()), total)]
    return low, max(high, seen, *apart)


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `holds` ends, between a place where it does and one where it does not."""
    for _ in range(12):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return outside


def ece_by_chance(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """What `ece` stays below, 19 times of 20, where every probability is exactly right, on as many photos.

    Answers are drawn that are right as often as they say (Bröcker and Smith 2007). An `ece` below this gives no reason
    to doubt the probabilities; few photos cannot show less.
    """
    confidence, _ = _answers(probabilities, labels)
    rng = np.random.default_rng(0)
    errors = [_error(confidence, rng.random(len(confidence)) < confidence, BINS) for _ in range(DRAWS)]
    return float(np.quantile(errors, 0.95))


def summary(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`ece` with its interval and what chance gives, `brier`, and the bins, as JSON-ready values."""
    held = reliability(probabilities, labels)
    return {
        "ece": ece(probabilities, labels),
        "ece_ci95": list(ece_ci95(held)),
        "ece_by_chance": ece_by_chance(probabilities, labels),
        "brier": brier(probabilities, labels),
        "bins": [dataclasses.asdict(found) for found in held],
    }


def _answers(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return probabilities.max(1).astype(np.float64), (probabilities.argmax(1) == labels).astype(np.float64)


def _place(confidence: np.ndarray, bins: int) -> np.ndarray:
    place: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return place


def _error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    gaps = np.bincount(_place(confidence, bins), right - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))
