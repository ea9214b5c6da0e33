"""The training photos that a photo is most like, to the network: they often explain its mistake."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from handlens.photos import Photos

MOST = 3


@dataclasses.dataclass(frozen=True)
class Nearest:
    """Training photos and how the network sees them.

    features: float (N, F), a row for each of `photos`. embed: the same for any photos, all of which can be read.
    """

    photos: Photos
    features: np.ndarray
    embed: Callable[[Photos], np.ndarray]

    def of(self, photos: Photos, most: int = MOST) -> list[list[int]]:
        """For each photo the indices of the training photos that are most like it, by cosine, the nearest first.

        A photo is not named as being like itself.
        """
        if not len(photos):
            return []
        likeness = _unit(self.embed(photos)) @ _unit(self.features).T
        own = {self.photos.path(index).resolve(): index for index in range(len(self.photos))}
        for row in range(len(photos)):
            if (index := own.get(photos.path(row).resolve())) is not None:
                likeness[row, index] = -np.inf
        order = np.argsort(-likeness, axis=1, kind="stable")[:, :most]
        return [[int(i) for i in line if likeness[row, i] > -np.inf] for row, line in enumerate(order)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def words(names: Sequence[str], guess: str, truth: str) -> str:
    """What the classes of the nearest training photos say about a photo of `truth` that was taken for `guess`."""
    if not names:
        return ""
    counts = collections.Counter(names).most_common()
    shares = ", ".join(f"{count} of {len(names)} {'is' if count == 1 else 'are'} {name}" for name, count in counts)
    said = f"Looks most like these training photos: {shares}"
    if counts[0][0] == guess and len(counts) == 1:
        return f"{said}. Is the label {truth} right?"
    if truth not in names:
        return f"{said}; none is {truth}."
    return f"{said}, as it is labelled." if len(counts) == 1 else f"{said}."
