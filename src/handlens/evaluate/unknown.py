"""None of these: a score of how much a photo is like the classes, and the threshold below which it is none of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from handlens import photos as photos_room
from handlens.errors import HandlensError, counted, not_finite, not_one_of
from handlens.evaluate.metrics import Scores, wilson
from handlens.photos import Photos
from handlens.photos.scan import check_names, photos_below
from handlens.preprocess import Preprocess

TRUE_ACCEPT = 0.95  # the share of photos of the classes that a threshold lets pass
FEWEST = 19  # validation photos: with fewer, the lowest score of them is no 5 % quantile

Kind = Literal["max-softmax", "energy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEFAULT: Kind = "energy"  # by benchmarks/unknown.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """Which score decides, and from where on a photo counts as one of the classes.

    kind:      "max-softmax": the largest probability (Hendrycks and Gimpel 2017);
               "energy": log(sum(exp(logits))), without the sign of Liu et al. 2020, so that high means known.
    threshold: a photo whose score is below it is unknown.
    """

    kind: Kind
    threshold: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise not_one_of("the score of unknown photos", self.kind, KINDS)
        if not np.isfinite(self.threshold):
            raise HandlensError(f"the threshold of unknown photos is {self.threshold}, expected a finite number")

    def scores(self, probabilities: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """(B, K) and (B, K), as a classifier's `infer` gives them -> float64 (B,), higher: more like the classes."""
        if self.kind == "max-softmax":
            return probabilities.max(1).astype(np.float64)
        logits = logits.astype(np.float64)
        largest = logits.max(1)
        sums: np.ndarray = largest + np.log(np.exp(logits - largest[:, None]).sum(1))
        return sums

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dataclasses.asdict(self)


def fit(
    probabilities: np.ndarray,
    logits: np.ndarray,
    outside: tuple[np.ndarray, np.ndarray] | None = None,
) -> Rejection:
    """The score and threshold for a classifier with these (N, K) answers to validation photos.

    Without `outside` photos: the default score, and the threshold that 95 % of the validation photos pass. With the
    (probabilities, logits) of some: the score with the largest area under the curve, and the threshold with the fewest
    mistakes on both sides, each side's share counted alike, among those that 90 % of the validation photos pass.
    Raises HandlensError for fewer than `FEWEST` validation photos, or logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise not_finite("logits")
    if len(logits) < FEWEST:
        raise HandlensError(
            f"{counted(len(logits), 'validation photo')} {'is' if len(logits) == 1 else 'are'} too few to tell what is "
            f"none of the classes, {FEWEST} are needed",
            "until then no answer is called unknown",
        )
    if outside is None:
        chosen = Rejection(kind=DEFAULT, threshold=0.0)
        return dataclasses.replace(chosen, threshold=threshold_of(chosen.scores(probabilities, logits)))
    best: tuple[float, Rejection] | None = None
    for kind in sorted(KINDS, key=lambda kind: kind != DEFAULT):  # of equals the default
        scorer = Rejection(kind=kind, threshold=0.0)
        known, unknown = scorer.scores(probabilities, logits), scorer.scores(*outside)
        area = auroc(known, unknown)
        if best is None or area > best[0]:
            best = area, dataclasses.replace(scorer, threshold=_between(known, unknown))
    assert best is not None
    return best[1]


def threshold_of(known: np.ndarray, true_accept: float = TRUE_ACCEPT) -> float:
    """A score that at least a share `true_accept` of photos like the (N,) `known` ones reaches (conformal).

    It lies a hair below a photo's score, not on it: another runtime's may differ in the last digit.
    """
    rank = int((1 - true_accept) * (len(known) + 1) + 1e-9)
    ordered = np.sort(known)
    passing = ordered[max(0, rank - 1)]
    below = [1e-3 * (ordered[-1] - passing), *(passing - ordered[ordered < passing][-1:]) / 2]
    return float(passing - min(below))


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """How probable it is that a known photo has a higher score than an unknown one; equal scores count half."""
    both = np.concatenate([known, unknown])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # from 1, equals share theirs
    wins = ranks[: len(known)].sum() - len(known) * (len(known) + 1) / 2
    return float(wins / (len(known) * len(unknown)))


def separation(known: np.ndarray, unknown: np.ndarray, threshold: float) -> dict[str, float]:
    """How well scores tell `known` photos from `unknown` ones, as JSON-ready values.

    false_accept_at_95: the share of unknown photos that pass where 95 % of these known ones do; true_accept and
    false_accept: the shares that pass the `threshold`, which other photos have chosen.
    """
    at_95 = np.quantile(known, 1 - TRUE_ACCEPT, method="lower")
    return {
        "auroc": auroc(known, unknown),
        "false_accept_at_95": float((unknown >= at_95).mean()),
        "true_accept": float((known >= threshold).mean()),
        "false_accept": float((unknown >= threshold).mean()),
    }


def judge(
    rejection: Rejection, known: Scores, outside: tuple[np.ndarray, np.ndarray] | None = None, caution: str = ""
) -> dict[str, Any]:
    """How a rejection does on scored photos of the classes, and on (probabilities, logits) of others, JSON-ready.

    true_accept: the share of the known photos that pass, with Wilson's 95 % interval; with `outside` also what
    `separation` gives, and the interval of false_accept. caution: why the figures flatter, where they do. Raises
    HandlensError where the known photos have no logits.
    """
    if known.logits is None:
        raise HandlensError("scores without logits say nothing of unknown photos")
    own = rejection.scores(known.probabilities, known.logits)
    passed = own >= rejection.threshold
    found: dict[str, Any] = {
        **rejection.to_dict(),
        "caution": caution,
        "num_photos": len(own),
        "true_accept": float(passed.mean()),
        "true_accept_ci95": list(known.ci95(passed)),
    }
    if outside is not None:
        other = rejection.scores(*outside)
        found |= separation(own, other, rejection.threshold)
        found |= {
            "num_outside": len(other),
            "false_accept_ci95": list(wilson(int((other >= rejection.threshold).sum()), len(other))),
        }
    return found


class Outside(NamedTuple):
    """A classifier's answers to photos of none of its classes.

    probabilities, logits: (N, K).  contents: the SHA-256 of each photo.  groups: one for photos that are nearly the
    same.  left_out: (path, reason) of those that cannot be read, and of those that are another one's copy.
    """

    probabilities: np.ndarray
    logits: np.ndarray
    contents: list[str]
    groups: list[str]
    left_out: list[tuple[str, str]]

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities, logits)."""
        return self.probabilities, self.logits

    def select(self, indices: Sequence[int] | np.ndarray) -> Outside:
        """The answers to these photos, or to those where a mask (N,) is True."""
        given = np.asarray(indices)
        chosen = np.flatnonzero(given) if given.dtype == bool else given.astype(np.int64)
        contents, groups = ([each[index] for index in chosen] for each in (self.contents, self.groups))
        return self._replace(
            probabilities=self.probabilities[chosen], logits=self.logits[chosen], contents=contents, groups=groups
        )

    def half(self, second: bool) -> Outside:
        """The half that chooses a threshold, or the one that judges it: by content, groups whole."""
        chosen = set(sorted(set(self.groups))[int(second) :: 2])
        return self.select([index for index, group in enumerate(self.groups) if group in chosen])


class Others(NamedTuple):
    """Photos of none of the classes, each content once.

    sha256, pixels: by path, of the file and of its pixels.  groups: by path, the least SHA-256 of the photos that are
    nearly the same.  left_out: (path, reason) of those that cannot be read, and of copies.
    """

    photos: Photos
    sha256: dict[str, str]
    pixels: dict[str, str]
    groups: dict[str, str]
    left_out: list[tuple[str, str]]


def look(folder: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Others:
    """Find the photos anywhere below a folder. Raises HandlensError when none of them can be read."""
    root = Path(folder)
    if not root.is_dir():
        what = f"{folder} is a file, expected a folder" if root.exists() else f"there is no folder {folder}"
        raise HandlensError(what, "name a folder of photos of none of the classes")
    paths = photos_below(root)
    check_names(root, paths)
    found = Photos(root, tuple(paths), np.zeros(len(paths), np.int64), ("unknown",))
    findings = photos_room.examine(found, progress)
    first: dict[str, str] = {}
    whole = found.without([path for path, _ in findings.broken]).paths
    copies = [(path, other) for path in whole if (other := first.setdefault(findings.sha256[path], path)) != path]
    left_out = [*findings.broken, *((path, f"is a copy of {other}") for path, other in copies)]
    found = found.without([path for path, _ in left_out])
    if not len(found):
        raise HandlensError(f"{folder} has no photo that can be read", "name a folder of photos of other things")
    groups = {path: findings.sha256[path] for path in found.paths}
    for alike in (*findings.duplicates, *findings.near_duplicates()):
        groups |= dict.fromkeys(alike, min(findings.sha256[path] for path in alike))
    return Others(found, findings.sha256, findings.pixels, groups, left_out)


def check_halves(
    folder: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    known: Collection[str] = (),
) -> None:
    """Raises HandlensError unless the photos in a folder can be cut into two halves, one to choose, one to judge.

    Also where one of them is among the photos of the classes, whose SHA-256, or their pixels', are `known`.
    """
    found = look(folder, progress)
    if len({found.groups[path] for path in found.photos.paths}) < 2:
        one = "one photo that can be read" if len(found.photos) == 1 else "photos that are all nearly the same"
        raise HandlensError(f"{folder} has {one}, which cannot be cut in two halves", "give some tens")
    check_apart(folder, found, known)


def check_apart(folder: str | os.PathLike[str], found: Others, known: Collection[str]) -> None:
    """Raise HandlensError where one of the photos found in a folder is among those of the classes.

    known: the SHA-256 of these, or of their pixels.
    """
    if same := [path for path in found.photos.paths if not {found.sha256[path], found.pixels[path]}.isdisjoint(known)]:
        raise HandlensError(
            f"{folder} has {counted(len(same), 'photo')} that {'are' if len(same) > 1 else 'is'} also among those of "
            f"the classes ({same[0]})",
            "name a folder of photos of none of the classes",
        )


def answers(
    infer: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    preprocess: Preprocess,
    folder: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
) -> Outside:
    """A classifier's answers to all photos below a folder, each content once.

    Raises HandlensError when there is none that can.
    """
    others = look(folder)
    found = others.photos
    pairs = []
    for images, _ in photos_room.batches(found, preprocess, 32):
        pairs.append(infer(images))
        if progress:
            progress(sum(len(logits) for _, logits in pairs), len(found))
    probabilities, logits = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    contents, groups = ([by[path] for path in found.paths] for by in (others.sha256, others.groups))
    return Outside(probabilities, logits, contents, groups, others.left_out)


def _between(known: np.ndarray, unknown: np.ndarray) -> float:
    """The threshold with the least sum of the shares of known photos below it and unknown ones above it."""
    scores = np.unique(np.concatenate([known, unknown]))
    tried = np.concatenate([scores[:1], (scores[:-1] + scores[1:]) / 2])  # halfway between neighbours
    refused = np.searchsorted(np.sort(known), tried, side="left") / len(known)
    accepted = 1 - np.searchsorted(np.sort(unknown), tried, side="left") / len(unknown)
    wrong = np.where(refused <= 0.1, refused + accepted, np.inf)
    return float(tried[wrong.argmin()])
