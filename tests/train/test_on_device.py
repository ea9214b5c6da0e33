"""Photos that lie on the device: the same crops as of photos in main memory. Run on the CPU, as if it were a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from handlens import photos as photos_room
from handlens.preprocess import Preprocess
from handlens.train import on_device
from handlens.train.loop import Batches
from handlens.train.on_device import OnDevice, resampling, sent
from handlens.train.pixels import Pixels
from handlens.train.recipe import Recipe

CPU = torch.device("cpu")
CONTRACT = Preprocess(image_px=48, resize_px=56)
PLAIN = Recipe(net="mobilenet_v2", photos="x", augment="light", crop_min_area=0.3, flip=True)


@pytest.fixture
def pixels(tmp_path: Path) -> Iterator[Pixels]:
    """Photos of four sizes, portrait and landscape, smooth as photos are."""
    rng = np.random.default_rng(0)
    for number, size in enumerate([(64, 80), (120, 70), (56, 56), (300, 61)] * 2):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    found = Pixels(photos_room.scan(tmp_path), CONTRACT, 64)
    yield found
    found.close()


def both(pixels: Pixels, recipe: Recipe) -> tuple[Batches, OnDevice]:
    photos = sent(pixels, CPU, 2**30)
    assert photos is not None
    return Batches(pixels, recipe, CONTRACT, CPU), OnDevice(photos, pixels, recipe, CONTRACT, CPU)


@pytest.mark.parametrize("changes", [{}, {"crop_min_area": 0.05}, {"augment": "none"}, {"flip": False}])
def test_the_same_crops_as_from_main_memory(pixels: Pixels, changes: dict[str, object]) -> None:
    usual, there = both(pixels, dataclasses.replace(PLAIN, **changes))
    indices = np.array([3, 0, 7, 5, 1, 2, 6, 4])
    expected = usual.crops(indices, np.random.default_rng(5)) * 255
    got = there.crops(indices, np.random.default_rng(5)) * 255
    assert got.shape == (8, 3, 48, 48)
    assert (got - expected).abs().max() <= 1.001
    assert (got - expected).abs().mean() < 0.2


def test_a_whole_batch_is_the_same_to_rounding_with_what_comes_after(pixels: Pixels) -> None:
    recipe = dataclasses.replace(PLAIN, mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1)
    usual, there = both(pixels, recipe)
    for seed in range(3):
        (images, targets), (same, same_targets) = (side.make(np.arange(8), [seed, 0]) for side in (usual, there))
        assert torch.equal(targets, same_targets)
        assert (images - same).abs().max() < 1.01 / 255 / min(CONTRACT.std)
        assert same.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("start", "length", "px"), [(0, 40, 24), (7, 21, 24), (10, 30, 30), (3, 5, 24)])
def test_resampling_is_bilinear_with_antialiasing(start: int, length: int, px: int) -> None:
    lines = torch.rand(1, 40)
    weights = resampling(torch.tensor([float(start)]), torch.tensor([float(length)]), 40, px)[0]
    part = lines[:, start : start + length]
    expected = F.interpolate(part[None, None].repeat(1, 1, 2, 1), (2, px), mode="bilinear", antialias=True)[0, 0, :1]
    torch.testing.assert_close(lines @ weights.T, expected, rtol=1e-5, atol=1e-6)


def test_photos_that_do_not_fit_stay_where_they_are(pixels: Pixels) -> None:
    needed = sum(photo.nbytes for photo in pixels.get(range(len(pixels))))
    assert sent(pixels, CPU, needed) is not None
    assert sent(pixels, CPU, needed - 1) is None


def test_without_a_card_batches_are_made_as_usual(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(on_device.batches(pixels, PLAIN, CONTRACT, CPU)) is Batches
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**40))
    pretended = torch.device("cuda")
    monkeypatch.setattr(on_device, "Batches", lambda *_: "usual")
    assert on_device.batches(pixels, PLAIN, CONTRACT, pretended) == "usual"
