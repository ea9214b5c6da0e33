"""What the tests of costs may ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

Counted = TypeVar("Counted")


@pytest.fixture
def settled() -> Callable[[Callable[[], Counted]], Counted]:
    """Calls what counts living memory until it says the same twice.

    SlipCover reads the locals of running frames when it takes its probes out, and Python 3.11 then keeps what these
    variables held until the frame ends: maps that are gone otherwise, in a first count of a process now and then.
    """

    def count(call: Callable[[], Counted]) -> Counted:
        before = call()
        for _ in range(5):
            now = call()
            if now == before:
                return now
            before = now
        raise AssertionError(f"never twice the same: {before}")

    return count
