"""Photos that wait together go into the network together; each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from handlens.run import Answer, Guess
from handlens.serve.batching import SIZES, Batcher, best_size


class Network:
    """Answers a photo with the value of its first pixel, when it may."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may = threading.Event()
        self.may.set()

    def __call__(self, photos: np.ndarray, top: int) -> list[Answer]:
        self.sizes.append(len(photos))
        assert self.may.wait(10)
        if photos.max() == 255:
            raise RuntimeError("no such photo")
        return [Answer([Guess(str(photo.flat[0]), 1.0)] * top, None, False) for photo in photos]


def photo(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def run(scenario: Callable[..., Any], network: Network, most: int = 4, wait_s: float = 0.0) -> Any:
    async def begin() -> Any:
        with ThreadPoolExecutor(1) as thread:
            return await scenario(Batcher(network, thread, most, wait_s))

    return asyncio.run(begin())


def test_those_that_wait_go_together_and_keep_their_answers() -> None:
    network = Network()
    network.may.clear()

    async def scenario(batcher: Batcher) -> list[Answer]:
        tasks = [asyncio.create_task(batcher.answer(photo(value), 1 + value % 3)) for value in range(10)]
        await asyncio.sleep(0.05)
        network.may.set()
        return await asyncio.gather(*tasks)

    answers = run(scenario, network)
    assert network.sizes == [1, 4, 4, 1]  # the first found an idle network
    assert [answer.guesses[0].name for answer in answers] == [str(value) for value in range(10)]
    assert [len(answer.guesses) for answer in answers] == [1 + value % 3 for value in range(10)]


def test_a_photo_alone_does_not_wait() -> None:
    async def scenario(batcher: Batcher) -> float:
        begun = time.perf_counter()
        await batcher.answer(photo(1), 1)
        return time.perf_counter() - begun

    assert run(scenario, Network(), wait_s=5.0) < 2


def test_one_on_the_way_is_waited_for_but_not_long() -> None:
    network = Network()

    async def scenario(batcher: Batcher) -> float:
        begun = time.perf_counter()
        with batcher.coming():
            first = asyncio.create_task(batcher.answer(photo(1), 1))
            await asyncio.sleep(0.02)
        await asyncio.gather(first, batcher.answer(photo(2), 1))  # went together, as soon as the second was there
        with batcher.coming():
            await batcher.answer(photo(3), 1)  # the other never comes
        return time.perf_counter() - begun

    assert 0.3 < run(scenario, network, wait_s=0.3) < 3
    assert network.sizes == [2, 1]


def test_one_whose_request_is_over_takes_no_place() -> None:
    network = Network()
    network.may.clear()

    async def scenario(batcher: Batcher) -> list[Answer]:
        tasks = [asyncio.create_task(batcher.answer(photo(value), 1)) for value in range(4)]
        await asyncio.sleep(0.05)
        tasks[0].cancel()  # in the network already
        tasks[2].cancel()  # waiting
        await asyncio.sleep(0)
        network.may.set()
        return await asyncio.gather(tasks[1], tasks[3])

    assert [answer.guesses[0].name for answer in run(scenario, network)] == ["1", "3"]
    assert network.sizes == [1, 2]


def test_an_error_goes_to_those_whom_it_concerns_and_work_goes_on() -> None:
    network = Network()

    async def scenario(batcher: Batcher) -> Answer:
        with pytest.raises(RuntimeError, match="no such photo"):
            await batcher.answer(photo(255), 1)
        return await batcher.answer(photo(7), 1)

    assert run(scenario, network).guesses[0].name == "7"


@pytest.mark.parametrize(("per_call_s", "per_photo_s", "expected"), [(0.008, 0.0, SIZES[-1]), (0.0, 0.002, 1)])
def test_batches_are_as_large_as_they_pay(per_call_s: float, per_photo_s: float, expected: int) -> None:
    def network(photos: np.ndarray, top: int) -> list[Answer]:
        end = time.perf_counter() + per_call_s + per_photo_s * len(photos) ** 1.5
        while time.perf_counter() < end:
            pass
        return []

    assert best_size(network, 2) == expected
