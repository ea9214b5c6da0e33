"""The pictures are made, without warnings, for any names and for odd cases."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from handlens.explain import figures
from handlens.explain.gates import statistics
from handlens.explain.kernels import DepthwiseKernels
from handlens.explain.layers import Maps

RANDOM = np.random.default_rng(0)


def a_layer(name: str, dead: int) -> DepthwiseKernels:
    weight = RANDOM.uniform(0.5, 2, 40)
    weight[:dead] = 0
    return DepthwiseKernels(
        layer=name, threshold=0.01, weight=weight, spread=None, dead=np.arange(dead), silent=np.arange(dead, 2 * dead)
    )


def some_gates(moving: bool) -> bytes:
    labels = np.array([0, 0, 1, 1])
    table = RANDOM.uniform(0, 1, (4, 60)) if moving else np.zeros((4, 60))
    return figures.gates([statistics(f"features.{n}.block.2", table, labels, 2) for n in (4, 5)], ["$a_", "b"])


CASES: dict[str, Callable[[], bytes]] = {
    "kernels": lambda: figures.kernels(RANDOM.normal(size=(7, 3, 3, 3))),
    "kernels, all zero": lambda: figures.kernels(np.zeros((1, 3, 3, 3))),
    "maps": lambda: figures.feature_maps(Maps("features.3", RANDOM.normal(size=(1, 70, 6, 6)))),
    "one map": lambda: figures.feature_maps(Maps("", np.zeros((1, 1, 2, 2)))),
    "stages": lambda: figures.stages(
        np.zeros((8, 8, 3), np.uint8), [Maps("a", np.zeros((1, 3, 4, 4))), Maps("", RANDOM.normal(size=(1, 9, 2, 2)))]
    ),
    "one stage": lambda: figures.stages(np.zeros((8, 8, 3), np.uint8), [Maps("", np.zeros((1, 3, 4, 4)))]),
    "gates": lambda: some_gates(True),
    "gates that do not move": lambda: some_gates(False),
    "dead kernels": lambda: figures.depthwise([a_layer("features.1.0", 3), a_layer("features.2.0", 0)]),
    "positions": lambda: figures.positions(RANDOM.uniform(-1, 1, (4, 4, 4, 4))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_picture(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(io.BytesIO(CASES[case]()))
    assert image.format == "PNG"
    assert min(image.size) > 60
    assert np.asarray(image.convert("L")).std() > 0.1


def test_similarity_maps_lie_in_the_places_of_their_patches() -> None:
    maps = np.zeros((2, 2, 2, 2))
    maps[0, 1] = 1  # the map of the patch at the top right
    pixels = np.asarray(Image.open(io.BytesIO(figures.positions(maps))).convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 240) & (pixels[..., 1] > 220) & (pixels[..., 2] < 60)
    rows, columns = np.nonzero(yellow[:, : int(pixels.shape[1] * 0.8)])  # without the colour bar
    height, width = pixels.shape[:2]
    assert rows.mean() < 0.4 * height
    assert columns.mean() > 0.45 * width
