"""The ranges that calibration photos give, against what is known of the numbers put in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from handlens.compress import observe

random = np.random.default_rng(0)
BELL = random.normal(0, 1, 200_000).astype(np.float32)


def batches(values: np.ndarray, name: str = "x") -> observe.Ranges:
    def run() -> Iterator[dict[str, np.ndarray]]:
        for part in np.array_split(values, 7):
            yield {name: part}

    return observe.Ranges(run)


def test_minmax_is_all_that_was_seen_with_zero_inside() -> None:
    assert batches(np.array([2.0, 5.0, 3.0] * 7, np.float32)).by("minmax") == {"x": (0.0, 5.0)}
    assert batches(np.array([-2.0, -1.0] * 7, np.float32)).by("minmax") == {"x": (-2.0, 0.0)}


def test_percentile_leaves_outliers_out() -> None:
    values = np.concatenate([BELL, [1000.0, -1000.0]]).astype(np.float32)
    assert batches(values).by("minmax")["x"] == (-1000.0, 1000.0)
    # the histogram's bins are 2000 / 2048 wide here
    low, high = batches(values).by("percentile")["x"]
    assert -6 < low < -3 and 3 < high < 6


def error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(np.square(values - (low + np.clip(np.round((values - low) / step), 0, 255) * step)).mean())


def test_mse_has_less_error_than_any_share_of_the_range() -> None:
    tails = random.standard_t(3, 200_000).astype(np.float32)
    found = batches(tails)
    extremes, chosen = found.by("minmax")["x"], found.by("mse")["x"]
    assert chosen[1] < extremes[1]
    tried = [error(tails, extremes[0] * share, extremes[1] * share) for share in np.linspace(0.2, 1, 30)]
    assert error(tails, *chosen) <= 1.1 * min(tried)


def test_entropy_is_not_led_by_the_zeros_of_a_relu() -> None:
    """Half of the values are zero, which is a level whatever the range is: the rest of a bell is to be kept."""
    low, high = batches(np.maximum(BELL, 0)).by("entropy")["x"]
    assert low == 0 and (high < BELL).mean() < 1e-4


@pytest.mark.parametrize("observer", observe.OBSERVERS)
def test_every_observer_keeps_zero_and_stays_inside(observer: observe.Observer) -> None:
    for values in (BELL, np.abs(BELL), np.minimum(np.maximum(BELL, 0), 1)):
        found = batches(values)
        low, high = found.by(observer)["x"]
        extremes = found.by("minmax")["x"]
        assert extremes[0] <= low <= 0 <= high <= extremes[1] and high > low


@pytest.mark.parametrize("observer", observe.OBSERVERS)
def test_a_tensor_that_is_always_zero(observer: observe.Observer) -> None:
    assert batches(np.zeros(70, np.float32)).by(observer) == {"x": (0.0, 0.0)}


def test_the_photos_are_run_twice_however_many_observers_look() -> None:
    runs = 0

    def run() -> Iterator[dict[str, np.ndarray]]:
        nonlocal runs
        runs += 1
        yield {"x": BELL}

    found = observe.Ranges(run)
    for observer in (*observe.OBSERVERS, *observe.OBSERVERS):
        found.by(observer)
    assert runs == 2
