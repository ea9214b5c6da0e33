"""Whether one classifier is really better than another: McNemar's test on the photos that only one gets right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from handlens.errors import HandlensError, counted, missing_extra
from handlens.evaluate.metrics import Scores

SIGNIFICANT = 0.05
LEAST = 6  # photos that one gets right and the other does not: with five, p is 0.06 at best


def compare(first: Scores, second: Scores) -> dict[str, Any]:
    """Two classifiers' scores of the same photos -> JSON-ready figures and, as "verdict", a sentence.

    only_first, only_second: photos that only one of them gets right. p_value: McNemar's exact test, two-sided: how
    often equally good classifiers would differ as much; photos of one scene count in it as one, for the one that gets
    more of them right. difference: second's top-1 less first's, with a 95 % interval (see `interval`). Raises
    HandlensError when photos or labels are not the same.
    """
    try:
        from scipy.stats import binomtest
    except ImportError:
        raise missing_extra("evaluate", "scipy") from None
    if first.paths != second.paths or first.classes != second.classes or (first.labels != second.labels).any():
        raise HandlensError("two classifiers can be compared on the same photos and classes only")
    right = [scores.predicted == scores.labels for scores in (first, second)]
    ahead = right[1].astype(np.int64) - right[0]
    only_first, only_second = int((ahead < 0).sum()), int((ahead > 0).sum())
    scenes = np.arange(first.num_photos) if first.scenes is None else np.unique(first.scenes, return_inverse=True)[1]
    by_scene = np.bincount(scenes, ahead)
    for_first, for_second = int((by_scene < 0).sum()), int((by_scene > 0).sum())
    p_value = float(binomtest(for_second, for_first + for_second).pvalue) if for_first + for_second else 1.0
    part = first.effective_num_photos / first.num_photos
    low, high = interval(part * only_first, part * only_second, first.effective_num_photos)
    return {
        "num_photos": first.num_photos,
        "effective_num_photos": first.effective_num_photos,
        "first": {"top1": first.top1, "top1_ci95": list(first.top1_ci95)},
        "second": {"top1": second.top1, "top1_ci95": list(second.top1_ci95)},
        "only_first": only_first,
        "only_second": only_second,
        "difference": (only_second - only_first) / first.num_photos,
        "difference_ci95": [low, high],
        "p_value": p_value,
        "repetition": first.repetition,
        "verdict": _verdict(len(by_scene), for_first, for_second, p_value, (low, high)),
    }


def interval(only_first: float, only_second: float, num_photos: float) -> tuple[float, float]:
    """95 % interval of second's share of right answers less first's, within [-1, 1], by Bonett and Price (2012).

    That is the normal approximation with one more photo that only first gets right and one that only second does, so
    that it has width also where the two answer all photos alike.
    """
    total = num_photos + 2
    middle = (only_second - only_first) / total
    half = 1.96 * math.sqrt(((only_first + only_second + 2) / total - middle**2) / total)
    return max(-1.0, middle - half), min(1.0, middle + half)


def _verdict(
    num_photos: int, only_first: int, only_second: int, p_value: float, difference_ci95: tuple[float, float]
) -> str:
    counts = f"of the photos that only one gets right, B has {only_second} and A {only_first}"
    chance = f"p = {p_value:.2g}, McNemar's exact test"
    least = f"{LEAST} photos that only one gets right, all by the same one, are the least that can show a difference"
    if num_photos < LEAST:
        verb = "is" if num_photos == 1 else "are"
        return f"{counted(num_photos, 'photo')} {verb} too few to tell: {least}"
    if p_value < SIGNIFICANT:
        better = "better" if only_second > only_first else "worse"
        return f"B is really {better} than A: {counts} ({chance})"
    least = f"; {least}: {100 * LEAST / num_photos:.3g} points with {num_photos} photos"
    if not only_first + only_second:
        return f"A and B get the same photos right{least}"
    low, high = difference_ci95
    close = "; the interval is approximate, and the test decides" if low > 0 or high < 0 else ""
    return f"these photos do not show that either is better: {counts} ({chance}){close}{least}"
