"""The training photos that a photo is most like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handlens.evaluate.nearest import Nearest, words
from handlens.photos import Photos


def photos(root: str, *names: str) -> Photos:
    return Photos(Path(root), names, np.arange(len(names)) % 2, ("rose", "tulip"))


def test_the_nearest_by_direction_not_by_length() -> None:
    train = photos("train", "a", "b", "c", "d")
    features = np.array([[1, 0], [0, 5], [9, 1], [1, 1]], np.float32)
    nearest = Nearest(train, features, lambda asked: np.array([[100, 0], [0, 0.1]], np.float32)[: len(asked)])
    assert nearest.of(photos("test", "x", "y")) == [[0, 2, 3], [1, 3, 2]]
    assert nearest.of(photos("test", "x"), most=1) == [[0]]
    assert nearest.of(photos("test")) == []


def test_a_training_photo_is_not_named_as_like_itself() -> None:
    train = photos("train", "a", "b")
    nearest = Nearest(train, np.eye(2, dtype=np.float32), lambda asked: np.array([[1, 0]], np.float32))
    assert nearest.of(photos("train", "a")) == [[1]]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["rose"] * 3, ": 3 of 3 are rose. Is the label tulip right?"),
        (["tulip"] * 3, ": 3 of 3 are tulip, as it is labelled."),
        (["rose", "tulip", "rose"], ": 2 of 3 are rose, 1 of 3 is tulip."),
        (["daisy", "rose", "daisy"], ": 2 of 3 are daisy, 1 of 3 is rose; none is tulip."),
    ],
)
def test_in_words(names: list[str], said: str) -> None:
    assert words(names, guess="rose", truth="tulip") == f"Looks most like these training photos{said}"
    assert words([], "rose", "tulip") == ""
