"""Photos harmed and cut, and what a classifier that can be seen through makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.evaluate import robustness, sections
from handlens.evaluate.metrics import wilson
from handlens.photos import Photos
from handlens.preprocess import Preprocess

CONTRACT = Preprocess(image_px=32, resize_px=32)


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Photos of 16:9: class 0 red in the middle third, class 1 red at both ends; the rest is blue."""
    for index in range(4):
        pixels = np.zeros((72, 128, 3), np.uint8) + np.array([30, 30, 220], np.uint8)
        place = slice(43, 85) if index < 2 else np.r_[0:20, 108:128]
        pixels[:, place] = [230, 30, 30]
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return Photos(tmp_path, tuple(f"{i}.png" for i in range(4)), np.array([0, 0, 1, 1]), ("middle", "ends"))


def red(images: np.ndarray) -> np.ndarray:
    """Class 0 where the middle is redder than the ends."""
    redness = images[..., 0].astype(float) - images[..., 2]
    score = (redness[:, :, 12:20].mean((1, 2)) - redness[:, :, [0, 1, -2, -1]].mean((1, 2))) / 50
    probability = 1 / (1 + np.exp(-score))
    return np.stack([probability, 1 - probability], 1)


def test_what_each_rule_costs(photos: Photos) -> None:
    seen: list[tuple[int, int]] = []
    found = robustness.measure(
        red, photos, CONTRACT, batch_size=3, progress=lambda done, total: seen.append((done, total))
    )
    assert found == json.loads(json.dumps(found))
    assert found["resize"] == "crop"
    wide = found["shapes"]["16:9"]  # these photos' own; a square crop does not see the ends
    assert [wide[rule]["top1"] for rule in ("crop", "letterbox", "squash")] == [0.5, 1.0, 1.0]
    assert {line["top1"] for line in found["shapes"]["square"].values()} == {0.5}
    assert set(found["shapes"]) == set(robustness.SHAPES)
    assert set(wide) == set(robustness.RULES)
    assert seen[-1] == (seen[-1][1], seen[-1][1])
    assert found["harmed"]["turned, by EXIF"] == found["harmed"]["as they are"]
    assert wide["squash"]["top1_ci95"] == list(wilson(2, 2))  # there are two different photos, twice each
    harms, shapes = sections.robustness(found)
    assert [row[0] for row in harms.rows] == list(robustness.HARMS)
    assert "crop (in use)" in shapes.header


def test_the_harms_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    grid = (np.indices((120, 200)).sum(0) // 5 % 2 * 160 + 40).astype(np.uint8)
    photo = Image.fromarray(np.stack([grid, grid // 2, grid // 3], 2))

    def changed(name: str) -> np.ndarray:
        return np.asarray(robustness.HARMS[name](photo, np.random.default_rng(1))).astype(float)

    plain = np.asarray(photo).astype(float)
    assert (changed("as they are") == plain).all()
    assert changed("blurred").std() < 0.97 * plain.std()
    assert changed("noisy").std() > plain.std()
    assert 0.5 < changed("dark").mean() / plain.mean() < 0.56  # a quarter of the light
    assert 1 < np.abs(changed("JPEG 30") - plain).mean() < 40
    turned = changed("turned, by EXIF")
    assert turned.shape == plain.shape
    assert np.abs(turned - plain).mean() < 4  # stored as JPEG, turned twice
    assert changed("off-centre crop").shape == (84, 140, 3)
    cuts = [np.asarray(robustness.off_centre(photo, rng)) for _ in range(9)]
    assert len({cut.tobytes() for cut in cuts}) > 3


@pytest.mark.parametrize(("shape", "size"), [("square", (120, 120)), ("portrait 3:4", (90, 120)), ("16:9", (200, 112))])
def test_shapes(shape: str, size: tuple[int, int]) -> None:
    photo = Image.new("RGB", (200, 120))
    assert robustness._to_shape(*robustness.SHAPES[shape])(photo, np.random.default_rng(0)).size == size
