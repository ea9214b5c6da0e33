"""Sets of classes that hold the right one as often as is promised (split conformal prediction, Vovk et al. 2005)."""

from __future__ import annotations

from typing import Any

import numpy as np

from handlens.errors import HandlensError, counted
from handlens.evaluate.metrics import Scores


def check(coverage: float, num_validation: int | None = None) -> None:
    """Raise HandlensError for a coverage outside 0 to 1, or one that so few validation photos cannot promise."""
    if not 0 < coverage < 1:
        raise HandlensError(f"coverage is {coverage}, expected a share above 0 and below 1", "--coverage 0.95")
    if num_validation is not None and _rank(coverage, num_validation) < 1:
        needed = int(np.ceil(1 / (1 - coverage) - 1e-9)) - 1
        raise HandlensError(
            f"{counted(num_validation, 'validation photo')} cannot promise a coverage of {coverage:g}, {needed} are "
            "needed",
            "use more photos, or a lower --coverage",
        )


def _rank(coverage: float, num_validation: int) -> int:
    """So many of the right classes may be left out, and one."""
    return int((1 - coverage) * (num_validation + 1) + 1e-9)


def threshold(validation: Scores, coverage: float) -> float:
    """The probability from which on a class is in a photo's set, so that a share `coverage` of sets hold the right one.

    That holds for photos like the validation photos, on average over such sets of photos, whatever the network is, but
    only where they chose nothing of it. A run's own chose its epoch and its temperature, so that its sets may hold the
    right class a little less often than is promised: `judge` tells how often they do. Raises HandlensError for a
    coverage outside 0 to 1, or one that so few photos cannot promise.
    """
    check(coverage, validation.num_photos)
    own = np.sort(validation.probabilities[np.arange(validation.num_photos), validation.labels])
    return float(own[_rank(coverage, validation.num_photos) - 1])


def judge(validation: Scores, scores: Scores, coverage: float) -> dict[str, Any]:
    """Whether sets fitted on validation photos keep their promise on the scored ones, as JSON-ready values.

    coverage: how many sets hold the right class, with Wilson's 95 % interval; mean_size, sizes (photos by the number of
    classes in the set); empty sets count as misses.
    """
    least = threshold(validation, coverage)
    sets = scores.probabilities >= least
    held = sets[np.arange(scores.num_photos), scores.labels]
    sizes = sets.sum(1)
    return {
        "promised": coverage,
        "threshold": least,
        "num_validation": validation.num_photos,
        "num_photos": scores.num_photos,
        "coverage": float(held.mean()),
        "coverage_ci95": list(scores.ci95(held)),
        "mean_size": float(sizes.mean()),
        "sizes": {str(size): int((sizes == size).sum()) for size in np.unique(sizes).tolist()},
    }


def sets(scores: Scores, least: float) -> list[dict[str, Any]]:
    """Each scored photo with the classes that have a probability of at least `least`, the most probable first."""
    order = np.argsort(-scores.probabilities, axis=1, kind="stable")
    return [
        {"photo": path, "classes": [scores.classes[index] for index in best if own[index] >= least]}
        for path, best, own in zip(scores.paths, order, scores.probabilities, strict=True)
    ]
