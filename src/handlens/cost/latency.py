"""How long one call takes, measured. Knows nothing of networks: any callable of any runtime."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SLOWER = 1.1  # times as long: less may be chance


class Latency(NamedTuple):
    """Milliseconds of one call: the median of `runs`, and between what a tenth of them are below and above.

    threads: how many the callable was told to use, as its caller says.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int


def measure(call: Callable[[], object], threads: int, runs: int = 50, longest_s: float = 10.0) -> Latency:
    """Time `call()` `runs` times one after another, after a tenth as many (at least two) that do not count.

    Either ends when it has taken `longest_s` seconds, these after one call at least, those after three. What the call
    returns is dropped after its time is taken. Errors of the call pass through.
    """
    end = time.perf_counter() + longest_s
    for _ in range(max(2, runs // 10)):
        call()
        if time.perf_counter() > end:
            break
    taken_ms: list[float] = []
    end = time.perf_counter() + longest_s
    while len(taken_ms) < max(3, runs) and (len(taken_ms) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        result = call()
        taken_ms.append(1000 * (time.perf_counter() - start))
        del result
    tenths = statistics.quantiles(taken_ms, n=10, method="inclusive")
    return Latency(statistics.median(taken_ms), tenths[0], tenths[-1], len(taken_ms), threads)


def processor() -> str:
    """The processor's name, as its system tells it."""
    name = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                name = value.strip()
    except OSError:  # not Linux
        if platform.system() == "Darwin":
            import subprocess  # only there

            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return name or platform.processor() or platform.machine()
