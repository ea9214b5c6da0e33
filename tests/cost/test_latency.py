"""Timing any callable."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from handlens.cost import Latency, front, measure
from handlens.cost import latency as room


def test_time_is_about_right() -> None:
    taken = measure(lambda: time.sleep(0.004), threads=1, runs=9)
    assert 4.0 <= taken.p10_ms <= taken.median_ms <= taken.p90_ms
    assert taken.median_ms < 40
    assert (taken.runs, taken.threads) == (9, 1)


def test_median_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten timed runs of 1 to 10 ms after two that do not count."""
    clock = [0.0]
    waits = iter([500.0, 500.0, *range(1, 11)])

    def call() -> None:
        clock[0] += next(waits) / 1000

    monkeypatch.setattr(room.time, "perf_counter", lambda: clock[0])
    assert measure(call, threads=2, runs=10) == pytest.approx(Latency(5.5, 1.9, 9.1, 10, 2))


def test_a_slow_call_is_run_three_times() -> None:
    calls = []
    taken = measure(lambda: calls.append(time.sleep(0.02)), threads=1, runs=50, longest_s=0.01)
    assert taken.runs == 3 and len(calls) == 4


def test_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 // 0, threads=1)


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("processor\t: 0\nFeatures\t: asimd\n\nModel\t\t: Raspberry Pi 4 Model B\n", "Raspberry Pi 4 Model B"),
        ("processor\t: 0\nFeatures\t: asimd\n", "aarch64"),
    ],
)
def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch, told: str, name: str) -> None:
    monkeypatch.setattr(room.Path, "read_text", lambda *_, **__: told)
    monkeypatch.setattr(room.platform, "processor", lambda: "")
    monkeypatch.setattr(room.platform, "machine", lambda: "aarch64")
    assert room.processor() == name


def test_it_loads_no_torch() -> None:
    code = "import sys; from handlens.cost import measure, front; measure(int, 1); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize(
    ("costs", "values", "kept"),
    [
        ([], [], []),
        ([3, 1, 2], [9, 5, 7], [1, 2, 0]),
        ([3, 1, 2], [5, 7, 9], [1, 2]),
        ([1, 1, 1], [5, 7, 6], [1]),
        ([2, 1, 3], [5, 5, 5], [1]),
        ([1, 1], [5, 5], [0]),
    ],
)
def test_front(costs: list[float], values: list[float], kept: list[int]) -> None:
    assert front(costs, values) == kept
