"""Batches in order, decoded ahead, by threads that end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handlens.errors import PhotoError
from handlens.photos import batches, in_threads, scan
from handlens.preprocess import Preprocess

Make = Callable[..., Path]
SMALL = Preprocess(image_px=4, resize_px=5)


def our_threads() -> int:
    return sum(thread.name.startswith("handlens") for thread in threading.enumerate())


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
@pytest.mark.parametrize("threads", [1, 3, None])
def test_in_order_with_a_short_last_batch(make_folder: Make, batch_size: int, threads: int | None) -> None:
    photos = scan(make_folder({"a": 6, "b": 8})).select(np.random.default_rng(0).permutation(14))
    found = list(batches(photos, SMALL, batch_size, threads=threads))
    assert [len(labels) for _, labels in found] == [min(batch_size, 14 - i) for i in range(0, 14, batch_size)]
    images, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert (labels == photos.labels).all()
    assert labels.dtype == np.int64
    assert images.dtype == np.uint8
    assert images.shape == (14, 4, 4, 3)
    for i in range(14):
        assert (images[i] == SMALL.load(photos.path(i))).all()
    assert our_threads() == 0


def test_no_photos_no_batches(make_folder: Make) -> None:
    assert list(batches(scan(make_folder({"a": 1})).select([]), SMALL, 4)) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(iter(batches(scan(make_folder({"a": 1})), SMALL, 0)))


def test_a_broken_photo_is_named_and_never_replaced(make_folder: Make) -> None:
    root = make_folder({"a": 9})
    (root / "a" / "005.png").write_bytes(b"text")
    found = batches(scan(root), SMALL, 2)
    assert len(next(found)[0]) == len(next(found)[0]) == 2
    with pytest.raises(PhotoError, match=r"005\.png is not a photo"):
        next(found)
    assert our_threads() == 0


def test_abandoned_batches_leave_no_threads(make_folder: Make) -> None:
    photos = scan(make_folder({"a": 20}))
    for images, _ in batches(photos, SMALL, 2, threads=2):
        assert len(images) == 2
        break
    gc.collect()
    assert our_threads() == 0
    started = batches(photos, SMALL, 2)
    next(started)
    assert our_threads() > 0
    del started
    gc.collect()
    assert our_threads() == 0


def test_decoding_runs_ahead_but_not_away() -> None:
    begun: list[int] = []
    results = in_threads(lambda i: (begun.append(i), i * i)[1], range(100), ahead=6, threads=2)
    assert next(results) == 0
    deadline = time.monotonic() + 5
    while len(begun) < 7 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert sorted(begun) == list(range(7))  # the one that was taken and six ahead
    assert list(results) == [i * i for i in range(1, 100)]


def test_threads_work_side_by_side() -> None:
    together = threading.Barrier(3, timeout=5)
    assert list(in_threads(lambda i: together.wait() >= 0, range(3), ahead=3, threads=3)) == [True] * 3


def test_an_error_is_raised_in_its_place_and_drops_the_rest() -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise PhotoError("two")
        time.sleep(0.01)
        return i

    results = in_threads(work, range(50), ahead=40, threads=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(PhotoError, match="two"):
        next(results)
    assert len(begun) < 10
    assert our_threads() == 0
