"""Photos of several requests through one network: those that wait together go in together, when that pays."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np

from handlens.run import Answer

Answers = Callable[[np.ndarray, int], list[Answer]]  # uint8 (B, px, px, 3) and how many guesses -> one answer a photo
SIZES = (1, 2, 4, 8, 16)
MEASURED_S = 1.0  # of measuring, after the first call
PAYS = 0.95  # a larger batch is taken if a photo takes less than this part of its time in the smaller one


class _Waiting(NamedTuple):
    photo: np.ndarray
    top: int
    answer: asyncio.Future[Answer]


class Batcher:
    """A queue before one network. All but the network runs in the event loop's thread.

    answers: called in `thread`, one call at a time.  most: photos at once.
    wait_s:  how long a photo waits at most for others, and only while some are on the way: see `coming`.
    watch:   called with the size of each batch.
    """

    def __init__(
        self, answers: Answers, thread: Executor, most: int, wait_s: float, watch: Callable[[int], None] | None = None
    ) -> None:
        self._answers = answers
        self._thread = thread
        self._most = most
        self._wait_s = wait_s
        self._watch = watch
        self._queue: deque[_Waiting] = deque()
        self._on_the_way = 0
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Around the decoding of a photo: those that are ready may wait a moment for it."""
        self._on_the_way += 1
        try:
            yield
        finally:
            self._on_the_way -= 1

    async def answer(self, photo: np.ndarray, top: int) -> Answer:
        """What the network says of uint8 (px, px, 3)."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(photo, top, future))
        self._look()
        return await future

    def _look(self) -> None:
        """Begin a batch, or see to it that one begins soon."""
        if self._busy or not self._queue:
            return
        if len(self._queue) >= self._most or not self._on_the_way or not self._wait_s:
            self._begin()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._most:
            waiting = self._queue.popleft()
            if not waiting.answer.done():  # else its request was given up
                batch.append(waiting)
        if not batch:
            return
        self._busy = True
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._answers, np.stack([w.photo for w in batch]), max(w.top for w in batch)
        )
        work.add_done_callback(lambda done: self._finish(batch, done))
        if self._watch:
            self._watch(len(batch))

    def _finish(self, batch: list[_Waiting], done: asyncio.Future[list[Answer]]) -> None:
        self._busy = False
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        for index, waiting in enumerate(batch):
            if waiting.answer.done():
                continue
            if error is not None:
                waiting.answer.set_exception(error)
            else:
                answer = done.result()[index]
                waiting.answer.set_result(answer._replace(guesses=answer.guesses[: waiting.top]))
        self._look()


def best_size(answers: Answers, image_px: int) -> int:
    """How many photos at once give the most photos a second here, by trying: 1 where more do not pay."""
    photos = np.random.default_rng(0).integers(0, 256, (SIZES[-1], image_px, image_px, 3), dtype=np.uint8)
    answers(photos[:1], 1)  # the first call is slower in every runtime
    best, best_s, begun = 1, float("inf"), time.perf_counter()
    for size in SIZES:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            answers(photos[:size], 1)
            seconds.append(time.perf_counter() - start)
            if time.perf_counter() - begun > MEASURED_S:
                break
        if min(seconds) / size < PAYS * best_s:
            best, best_s = size, min(seconds) / size
        if time.perf_counter() - begun > MEASURED_S:
            break
    return best
