"""What a linear model makes of the bare pixels: the yardstick below any network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from PIL import Image

from handlens.errors import missing_extra

_PIXELS = 32
_INVERSE_PENALTY = (
    1e-3  # scikit-learn's C: the best of 1e-4 .. 1 on the drawn flowers, so that the yardstick is a fair one
)


def linear_baseline(
    train_images: Iterable[np.ndarray],
    train_labels: np.ndarray,
    test_images: Iterable[np.ndarray],
    test_labels: np.ndarray,
) -> float:
    """The test accuracy, 0 to 1, of a multinomial logistic regression on pixels.

    Images are uint8 (height, width, 3), of any size; each is reduced to 32 x 32 and its pixels are standardised with
    the training images' mean and deviation. The penalty is fixed: nothing is chosen on the test images. Raises
    HandlensError when scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise missing_extra("evaluate", "scikit-learn") from None
    train, test = _small(train_images), _small(test_images)
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    model = LogisticRegression(C=_INVERSE_PENALTY, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are plenty for a yardstick
        model.fit((train - mean) / deviation, train_labels)
    return float(model.score((test - mean) / deviation, test_labels))


def _small(images: Iterable[np.ndarray]) -> np.ndarray:
    """Images as rows of 32 x 32 x 3 numbers in 0..1."""
    side = (_PIXELS, _PIXELS)
    rows = [np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BOX)).ravel() for image in images]
    return np.stack(rows).astype(np.float32) / 255
