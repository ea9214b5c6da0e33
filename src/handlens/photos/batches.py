"""Photos as arrays: decoded ahead by threads, handed out in order."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from handlens import cores
from handlens.photos.scan import Photos
from handlens.preprocess import Preprocess

Item = TypeVar("Item")
Result = TypeVar("Result")


def batches(
    photos: Photos, preprocess: Preprocess, batch_size: int, threads: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images, labels) of the photos in their order: uint8 (B, image_px, image_px, 3) and int64 (B,).

    The last batch may be shorter. At most two batches are decoded ahead, by `threads` threads (default: one a core),
    which end with the iterator, also when it is abandoned. A photo that cannot be read raises PhotoError naming it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    decoded = in_threads(
        lambda i: preprocess.load(photos.path(i)), range(len(photos)), ahead=2 * batch_size, threads=threads
    )
    for start in range(0, len(photos), batch_size):
        labels = photos.labels[start : start + batch_size]
        yield np.stack(list(itertools.islice(decoded, len(labels)))), labels.copy()


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int, threads: int | None = None
) -> Generator[Result, None, None]:
    """Yield `function(item)` of each item in order, computed by threads up to `ahead` items before they are asked for.

    An exception of the function is raised where its result would have been; then, and when the generator is closed or
    abandoned, what has not begun is dropped and the threads end.
    """
    pool = ThreadPoolExecutor(threads or cores.available(), thread_name_prefix="handlens")
    waiting: collections.deque[Future[Result]] = collections.deque()
    todo = iter(items)
    try:
        waiting.extend(pool.submit(function, item) for item in itertools.islice(todo, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(todo, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
