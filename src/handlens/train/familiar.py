"""What the photos of a run's classes look like to its frozen network: centres of their features, class by class."""

from __future__ import annotations

import numpy as np
import torch

from handlens.evaluate import unknown
from handlens.nets.familiar import Familiar

CENTRES_A_CLASS, CENTRES = 16, 80  # at most, in all but with more classes; by benchmarks/unknown.py


def fit(
    depth: int, train: np.ndarray, labels: np.ndarray, validation: np.ndarray, logits: np.ndarray
) -> Familiar | None:
    """Centres of the training photos' features, and the energy that goes with how near a photo is to one.

    depth: the module of the classifier that reads the features.  train: (N, F), with labels (N,).  validation: (M, F),
    with the network's logits (M, K). The energy and the cosine with the nearest centre are put on one scale by their
    means and deviations on the validation photos. None where these are fewer than `evaluate.unknown.FEWEST`.
    """
    if len(validation) < unknown.FEWEST:
        return None
    middles = centres(train, labels)
    cosine = (_unit(validation) @ middles.T).max(1)
    energy = unknown.Rejection(kind="energy", threshold=0.0).scores(logits, logits)
    slope = float(energy.std() / max(float(cosine.std()), 1e-6))
    return Familiar(
        depth=depth,
        centres=torch.from_numpy(middles),
        slope=slope,
        offset=float(energy.mean() - slope * cosine.mean()),
    )


def centres(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Unit vectors (C, F) in whose directions the vectors (N, F) of each class lie: by k-means, of unit vectors."""
    from scipy.cluster.vq import kmeans2  # scikit-learn's takes as long to import as a run's ten epochs

    classes = np.unique(labels)
    each = max(1, min(CENTRES_A_CLASS, CENTRES // len(classes)))
    unit = _unit(vectors)
    found = []
    for label in classes:
        own = unit[labels == label]
        distinct = len({row.tobytes() for row in own + 0.0})  # the same photo may be there several times; -0 is 0
        # In float32 vectors closer than a thousandth have distances of nothing but rounding.
        found.append(kmeans2(own.astype(np.float64), min(each, distinct), iter=20, minit="++", seed=0)[0])
    return _unit(np.concatenate(found))


def _unit(vectors: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return unit.astype(np.float32)
