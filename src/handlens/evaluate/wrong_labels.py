"""Labels that are probably wrong: what a classifier that has not seen a photo says against its label."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from handlens.errors import HandlensError, need
from handlens.evaluate.metrics import effective


class Suspect(NamedTuple):
    """A photo (its number), the class it probably is, and the probabilities of that and of its own label."""

    photo: int
    probably: int
    probability: float
    own_probability: float


FOLDS = 5


class TooFewError(HandlensError):
    """There are not two classes with as many different photos as there are folds."""


def check_installed() -> None:
    """Raise NotHereError unless what finds suspected labels is installed."""
    need("train", {"torch": "torch"})
    need("evaluate", {"scikit-learn": "sklearn"})
    need("labels", {"cleanlab": "cleanlab"})


def check(counts: np.ndarray) -> np.ndarray:
    """Which classes can be judged, bool (K,): those with a photo for each fold, by their `counts` of different photos.

    Raises TooFewError where there are not two.
    """
    enough = counts >= FOLDS
    if enough.sum() < 2:
        raise TooFewError(
            f"suspected labels need two classes with at least {FOLDS} different whole photos each",
            "add photos",
        )
    return np.asarray(enough)


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Probabilities float64 (N, K) of each photo by a linear classifier that was fitted to the other folds.

    features: float (N, F), such as a network's embedding. labels: int (N,), from 0 to K - 1, each with `FOLDS` photos
    or more. groups: int (N,), the same for photos that must be in one fold, as near-duplicates; by default none.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    groups = np.arange(len(labels)) if groups is None else groups
    check(np.array([len(np.unique(groups[labels == k])) for k in range(labels.max(initial=0) + 1)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fold that lacks a class, or a fit that stops early, is good enough here
        _, first, of = np.unique(groups, return_index=True, return_inverse=True)  # a photo stands for its group
        cuts = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(first, labels[first])
        splits = [[np.flatnonzero(np.isin(of, side)) for side in cut] for cut in cuts]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / len(labels), max_iter=200))
        return np.asarray(cross_val_predict(model, features, labels, cv=splits, method="predict_proba"))


def tells(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> bool:
    """Whether probabilities (N, K) tell the classes apart: else what they say against a label is worth nothing.

    They do where the mean of the classes' recalls, by labels (N,), is more than the 1 / K of one that always says the
    same, by more than chance gives in 97.5 % of cases; photos of one of the `groups` (N,) count once in that.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    right = probabilities.argmax(1) == labels
    classes = [labels == k for k in range(probabilities.shape[1])]
    recalls = np.array([right[own].mean() for own in classes])
    variances = recalls * (1 - recalls) / [effective(groups[own]) for own in classes]
    error = float(np.sqrt(variances.sum())) / len(classes)
    return bool(recalls.mean() - 1.96 * error > 1 / len(classes))


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> list[Suspect]:
    """Photos whose label is probably wrong, the most probable first, by confident learning (Northcutt et al. 2021).

    probabilities: (N, K) of photos that the classifier was not fitted to, as `out_of_fold` gives them.
    """
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_label_issues(
            labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="both", n_jobs=1
        )
    best = probabilities.argmax(1)
    return [
        Suspect(int(i), int(best[i]), float(probabilities[i, best[i]]), float(probabilities[i, labels[i]]))
        for i in found
        if best[i] != labels[i]
    ]
