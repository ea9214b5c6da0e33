"""The yardstick: right where pixels tell the class, at chance where they do not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from handlens.errors import HandlensError
from handlens.evaluate.baseline import linear_baseline


def images_of(labels: np.ndarray, shift: int, image_px: int = 40) -> np.ndarray:
    """Noise around grey, brighter in the left half by `shift` for class 1."""
    images = np.random.default_rng(0).normal(128, 30, (len(labels), image_px, image_px, 3))
    images[labels == 1, :, : image_px // 2] += shift
    return np.clip(images, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("shift", "low", "high"), [(40, 0.99, 1.0), (0, 0.3, 0.7)])
def test_it_sees_a_linear_difference_and_nothing_else(shift: int, low: float, high: float) -> None:
    labels = np.arange(120) % 2
    images = images_of(labels, shift)
    assert low <= linear_baseline(images[:60], labels[:60], images[60:], labels[60:]) <= high


def test_images_may_have_any_size() -> None:
    labels = np.arange(40) % 2
    train, test = images_of(labels, 60, 40), images_of(labels, 60, 24)
    assert linear_baseline(train, labels, [*test[:20], *train[20:]], labels) > 0.95


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    labels = np.arange(4) % 2
    images = images_of(labels, 60)
    with pytest.raises(HandlensError, match=r"handlens\[evaluate\]"):
        linear_baseline(images, labels, images, labels)
