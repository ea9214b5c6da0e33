"""Labels that are probably wrong: what a classifier that has not seen a photo says against its label."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from handlens.errors import HandlensError, need


class Suspect(NamedTuple):
    """A photo (its number), the class it probably is, and the probabilities of that and of its own label."""

    photo: int
    probably: int
    probability: float
    own_probability: float


class TooFewError(HandlensError):
    """There are not two classes with two photos each."""


def check_installed() -> None:
    """Raise NotHereError unless what finds suspected labels is installed."""
    need("train", {"torch": "torch"})
    need("evaluate", {"scikit-learn": "sklearn"})
    need("labels", {"cleanlab": "cleanlab"})


def check(counts: np.ndarray) -> None:
    """Raise TooFewError unless there are two classes or more, with two photos each or more, by their `counts`."""
    if len(counts) < 2 or counts.min() < 2:
        raise TooFewError(
            "suspected labels need two classes with at least two whole photos each", "add photos or leave --labels out"
        )


def out_of_fold(features: np.ndarray, labels: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Probabilities float64 (N, K) of each photo by a linear classifier that was fitted to the other folds.

    features: float (N, F), such as a network's embedding. labels: int (N,), each of 0 to K - 1 at least twice.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(labels)
    check(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fold that lacks a class, or a fit that stops early, is good enough here
        splitter = StratifiedKFold(min(folds, int(counts.min())), shuffle=True, random_state=seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / len(labels), max_iter=200))
        return np.asarray(cross_val_predict(model, features, labels, cv=splitter, method="predict_proba"))


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
