"""What is told before a training begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handlens import photos
from handlens.train import plan


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([10, 10, 5], [1, 1, 1], []),
        ([10, 10, 4], [1, 1, 1], ["learned from no more than 4 photos each: 'c'; add photos, or remove them"]),
        ([1, 10, 4], [1, 1, 1], ["learned from no more than 4 photos each: 'a', 'c'; add photos, or remove them"]),
        ([10, 10, 5], [2, 0, 1], ["no test photo says how well 'b' will be told: add photos"]),
        ([10, 10, 5], [0, 0, 0], []),  # which is told at the end
    ],
)
def test_classes_of_hardly_any_photo_are_named(train: list[int], test: list[int], expected: list[str]) -> None:
    def some(counts: list[int]) -> photos.Photos:
        paths = tuple(str(number) for number in range(sum(counts)))
        return photos.Photos(Path(), paths, np.repeat([0, 1, 2], counts), ("a", "b", "c"))

    assert plan.few({"train": some(train), "validation": some(test), "test": some(test)}) == expected


@pytest.mark.parametrize(("counts", "times"), [([12, 68], "5.67"), ([1, 40], "10"), ([10, 100], "10")])
def test_it_is_told_how_much_rare_classes_count(counts: list[int], times: str) -> None:
    assert f"count up to {times} times as much" in plan.why_weights(counts)
