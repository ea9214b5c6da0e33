"""Temperatures and calibration errors of answers whose true probabilities are known."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from handlens.errors import HandlensError
from handlens.evaluate import calibration, figures
from handlens.evaluate.calibration import softmax


def drawn(count: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, `sharpness` times too large, and labels drawn by the right ones' probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits)])
    return (logits * sharpness).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(sharpness: float) -> None:
    logits, labels = drawn(4000, sharpness)
    found = calibration.fit(logits, labels)
    assert found.temperature == pytest.approx(sharpness, rel=0.06)
    assert found.loss_after <= found.loss_before + 1e-9
    assert found.num_photos == 4000
    other, their_labels = drawn(4000, sharpness, seed=1)
    after = calibration.ece(softmax(other, found.temperature), their_labels)
    assert after < 0.025
    if sharpness != 1:
        assert after < 0.5 * calibration.ece(softmax(other), their_labels)


def test_without_a_mistake_nothing_becomes_certain() -> None:
    logits = np.eye(3, dtype=np.float32)[np.arange(60) % 3] * 2
    found = calibration.fit(logits, np.arange(60) % 3)
    assert 0.2 < found.temperature < 1
    assert softmax(logits, found.temperature).max() < 0.995


def test_too_few_photos_say_how_many_are_needed() -> None:
    logits, labels = drawn(calibration.FEWEST - 1, 1)
    with pytest.raises(HandlensError, match=r"49 validation photos are too few .* 50 are needed"):
        calibration.fit(logits, labels)
    assert calibration.fit(*drawn(calibration.FEWEST, 1)).temperature > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite(value: float) -> None:
    logits, labels = drawn(60, 1)
    logits[7, 2] = value
    with pytest.raises(HandlensError, match="logits that are not finite"):
        calibration.fit(logits, labels)


def test_the_figures_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    # bins of a tenth: 0.5 to 0.6 holds 0.6 (right) and 0.55 (wrong), 0.8 to 0.9 both 0.9 (one right)
    low, high = calibration.reliability(probabilities, labels, bins=10)
    assert (low.low, low.high, low.num_photos) == (0.5, 0.6, 2)
    assert (low.confidence, low.accuracy) == pytest.approx((0.575, 0.5))
    assert (high.confidence, high.accuracy) == pytest.approx((0.9, 0.5))
    assert calibration.ece(probabilities, labels, bins=10) == pytest.approx(0.5 * 0.075 + 0.5 * 0.4)
    assert calibration.brier(probabilities, labels) == pytest.approx((0.02 + 1.62 + 0.32 + 0.605) / 4)


def test_the_interval_and_what_chance_gives() -> None:
    logits, labels = drawn(300, 1)
    found = calibration.summary(softmax(logits), labels)
    assert found == json.loads(json.dumps(found))
    low, high = found["ece_ci95"]
    assert 0 <= low < found["ece"] <= high < 0.2
    assert found["ece"] < found["ece_by_chance"]  # its probabilities are the true ones
    wrong = calibration.summary(softmax(3 * logits), labels)
    assert wrong["ece"] > wrong["ece_by_chance"]
    assert wrong["ece_ci95"][0] < wrong["ece"] < wrong["ece_ci95"][1]
    assert sum(line["num_photos"] for line in found["bins"]) == 300


@pytest.mark.parametrize(("count", "gap"), [(55, 0.1), (292, 0.0), (292, 0.1), (2934, 0.0), (2934, 0.1)])
def test_the_interval_holds_the_true_error(count: int, gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 90 % of draws at least, of answers like the flower runs': those below 95 % are right less often by `gap`."""
    monkeypatch.setattr(calibration, "DRAWS", 200)
    held, wide = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        sure = np.where(rng.random(count) < 0.8, rng.uniform(0.95, 0.999, count), rng.uniform(0.35, 0.95, count))
        right = sure - gap * (sure < 0.95)
        probabilities = np.stack([sure, *[(1 - sure) / 4] * 4], 1)
        labels = np.where(rng.random(count) < right, 0, 1)
        low, high = calibration.ece_ci95(calibration.reliability(probabilities, labels))
        held += low <= np.abs(sure - right).mean() <= high
        wide.append(high - low)
    assert held >= 90
    assert np.mean(wide) < 1.2 / np.sqrt(count)


def test_without_a_mistake_the_interval_allows_for_some() -> None:
    held = calibration.reliability(np.tile([1.0, 0.0], (20, 1)), np.zeros(20, np.int64))
    low, high = calibration.ece_ci95(held)
    assert low == 0 and high == pytest.approx(0.161, abs=1e-3)  # as Wilson's of 20 of 20


def test_the_picture() -> None:
    logits, labels = drawn(300, 3)
    sides = {
        name: (calibration.reliability(softmax(logits, t), labels), calibration.ece(softmax(logits, t), labels))
        for name, t in (("before", 1.0), ("after", 3.0))
    }
    image = Image.open(io.BytesIO(figures.reliability(sides)))
    assert image.width > 1.8 * image.height
