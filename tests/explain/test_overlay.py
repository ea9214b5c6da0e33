"""Maps come back to the place of the photo that the network saw."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from handlens.explain.overlay import beside, focus, overlay, place, seen_box
from handlens.preprocess import Preprocess

CONTRACTS = {
    "crop": Preprocess(image_px=64, resize_px=72),
    "letterbox": Preprocess(image_px=64, resize="letterbox"),
    "squash": Preprocess(image_px=64, resize="squash"),
}


@pytest.mark.parametrize("size", [(180, 120), (121, 200), (64, 64), (50, 31)])
@pytest.mark.parametrize("kind", CONTRACTS)
@pytest.mark.parametrize("at", [(0.4, 0.45), (0.6, 0.35)])
def test_a_mark_on_the_photo_is_found_again(kind: str, size: tuple[int, int], at: tuple[float, float]) -> None:
    contract = CONTRACTS[kind]
    width, height = size
    down, across = np.mgrid[:height, :width] + 0.5
    x, y = at[0] * width, at[1] * height
    mark = np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * (0.06 * min(size)) ** 2))
    photo = np.repeat(np.uint8(255 * mark)[..., None], 3, 2)
    seen = contract.fit(Image.fromarray(photo))[..., 0] / 255.0  # what a network would be given
    if kind == "letterbox":
        seen = np.where(seen == seen[0, 0], 0, seen)  # the grey bars
    placed = place(seen, seen_box(contract, width, height), width, height)
    assert placed.shape == (height, width)
    found = focus(placed)
    assert found is not None
    assert abs(found[0] * width - x) < 0.02 * width
    assert abs(found[1] * height - y) < 0.02 * height
    row, column = np.unravel_index(np.nanargmax(placed), placed.shape)
    assert abs(column + 0.5 - x) < 3 * width / 64 + 1
    assert abs(row + 0.5 - y) < 3 * height / 64 + 1


def test_what_is_cut_off_is_not_seen() -> None:
    placed = place(np.ones((7, 7)), seen_box(CONTRACTS["crop"], 144, 72), 144, 72)
    assert seen_box(CONTRACTS["crop"], 144, 72) == (40, 4, 104, 68)
    assert np.isnan(placed[:, :40]).all()
    assert np.isnan(placed[:, 104:]).all()
    assert np.isnan(placed[:4]).all()
    assert (placed[4:68, 40:104] == 1).all()


def test_the_bars_of_a_letterbox_lie_outside_of_the_photo() -> None:
    left, top, right, bottom = seen_box(CONTRACTS["letterbox"], 128, 64)
    assert (left, top, right, bottom) == (0, -32, 128, 96)
    heat = np.zeros((4, 4))
    heat[0] = 1  # over the upper bar alone
    placed = place(heat, (left, top, right, bottom), 128, 64)
    assert not np.isnan(placed).any()
    assert placed[0].max() <= 0.51
    assert placed[17:].max() == 0


def test_between_cells_it_is_linear() -> None:
    placed = place(np.array([[0.0, 1.0]]), (0, 0, 8, 1), 8, 1)
    np.testing.assert_allclose(placed[0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_colours() -> None:
    photo = np.full((2, 3, 3), (200, 100, 50), np.uint8)
    heat = np.array([[0, 1, np.nan], [0, 0.5, np.nan]], np.float32)
    shown = overlay(photo, heat).astype(int)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert (shown[0, 0] == grey).all()
    assert shown[0, 1, 0] > shown[0, 1, 1] + 30  # red
    assert shown[1, 1].tolist() != shown[0, 1].tolist()
    assert (np.abs(shown[:, 2] - 0.3 * grey) <= 1).all()


def test_the_picture_holds_both() -> None:
    photo = np.zeros((50, 100, 3), np.uint8)
    image = Image.open(io.BytesIO(beside(photo, np.ones((50, 100)), longest_px=200)))
    assert image.size == (408, 100)
    left, right = np.asarray(image)[:, :200], np.asarray(image)[:, 208:]
    assert left.max() == 0
    assert right[..., 0].min() > 50


def test_the_focus_of_nothing_is_nowhere() -> None:
    assert focus(np.array([[0, np.nan]])) is None
    assert focus(np.array([[0.0, 1.0]])) == (0.75, 0.5)


def test_the_report_loads_no_torch() -> None:
    code = "import handlens.evaluate.report, handlens.explain.figures, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
