"""pixels.js gives the bytes that `Preprocess.fit` gives, from the same decoded pixels: run by node, compared whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.preprocess import Preprocess

Case = tuple[np.ndarray, Preprocess]
RESIZES = ("crop", "letterbox", "squash")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
SIZES = (
    *((1, 1), (3, 2), (31, 97), (64, 64), (67, 64), (50, 150)),
    *((36, 48), (48, 36), (240, 157), (333, 500), (641, 479)),
)
THIN = ((5, 700), (1000, 3), (1, 2000))

RUNNER = """
import { readFileSync, writeFileSync } from "node:fs";
import { fit } from "./pixels.js";
const cases = JSON.parse(readFileSync("cases.json", "utf8"));
const pixels = readFileSync("pixels.bin");
const out = cases.map(({ start, width, height, contract }) =>
  fit(new Uint8ClampedArray(pixels.buffer, pixels.byteOffset + start, 4 * width * height), width, height, contract));
writeFileSync("out.bin", Buffer.concat(out));
"""


@pytest.fixture
def in_node(node: Callable[[str], str], tmp_path: Path) -> Callable[[list[Case]], list[np.ndarray]]:
    """What pixels.js makes of each RGB photo (H, W, 3)."""

    def fit(cases: list[Case]) -> list[np.ndarray]:
        start, described = 0, []
        with (tmp_path / "pixels.bin").open("wb") as file:
            for photo, contract in cases:
                height, width = photo.shape[:2]
                described.append({"start": start, "width": width, "height": height, "contract": contract.to_dict()})
                start += file.write(np.dstack([photo, np.full((height, width), 255, np.uint8)]).tobytes())
        (tmp_path / "cases.json").write_text(json.dumps(described))
        node(RUNNER)
        out = np.fromfile(tmp_path / "out.bin", np.uint8)
        ends = np.cumsum([3 * contract.image_px**2 for _, contract in cases])
        assert len(out) == ends[-1]
        made = zip(np.split(out, ends[:-1]), cases, strict=True)
        return [part.reshape(contract.image_px, contract.image_px, 3) for part, (_, contract) in made]

    return fit


def photos(sizes: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Noise with hard edges: where a kernel overshoots and rounding shows."""
    random = np.random.default_rng(0)
    made = []
    for width, height in sizes:
        photo = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        photo[: height // 2, : width // 3] = 255
        photo[height // 2 :, width // 2 :] = 0
        made.append(photo)
    return made


def test_every_way_of_resizing_to_the_byte(in_node: Callable[[list[Case]], list[np.ndarray]]) -> None:
    ways = [
        Preprocess(image_px=px, resize_px=resize_px, resize=resize, interpolation=interpolation)  # type: ignore[arg-type]
        for resize, interpolation, (px, resize_px) in itertools.product(
            RESIZES, INTERPOLATIONS, ((32, 36), (64, 64), (33, 47))
        )
    ]
    cases = [(photo, way) for photo in photos(SIZES) for way in ways]
    cases += [(photo, way) for photo in photos(THIN) for way in ways if way.image_px == 32]
    for (photo, way), made in zip(cases, in_node(cases), strict=True):
        expected = way.fit(Image.fromarray(photo))
        assert np.array_equal(made, expected), (photo.shape, way, int(np.abs(made.astype(int) - expected).max()))


def test_a_real_photo_at_full_size(in_node: Callable[[list[Case]], list[np.ndarray]], shared: Path) -> None:
    found = sorted((shared / "data/flower_photos/tulips").glob("*.jpg"))[:3]
    decoded = [np.asarray(Image.open(path).convert("RGB")) for path in found]
    cases = [(photo, Preprocess(interpolation=name)) for photo in decoded for name in INTERPOLATIONS]  # type: ignore[arg-type]
    for (photo, way), made in zip(cases, in_node(cases), strict=True):
        assert np.array_equal(made, way.fit(Image.fromarray(photo))), way
