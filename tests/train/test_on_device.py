"""Photos that lie on the device: the same crops as of photos in main memory. Run on the CPU, as if it were a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from PIL import Image

from handlens import nets
from handlens import photos as photos_room
from handlens.preprocess import Normalisation, Preprocess
from handlens.train import loop, on_device
from handlens.train.loop import Batches
from handlens.train.on_device import OnDevice, resampling, sent
from handlens.train.pixels import Fixed, Pixels
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


@pytest.mark.parametrize(("length", "px"), [(40, 24), (21, 24), (30, 30), (5, 24), (1, 3)])
def test_resampling_is_bilinear_with_antialiasing(length: int, px: int) -> None:
    lines = torch.rand(1, 40)
    weights = resampling(torch.tensor([[length]]), 40, px)[0]
    part = lines[None, None, :, :length].repeat(1, 1, 2, 1)
    expected = F.interpolate(part, (2, px), mode="bilinear", antialias=True)[0, 0, :1]
    torch.testing.assert_close(lines @ weights.T, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalisation", ["fixed", "z-score"])
def test_a_batch_is_made_without_a_look_at_what_is_on_the_device(pixels: Pixels, normalisation: Normalisation) -> None:
    """A meta device has no values to wait for, and refuses to compute with another device's."""
    meta = torch.device("meta")
    contract = dataclasses.replace(CONTRACT, normalisation=normalisation)
    recipe = dataclasses.replace(PLAIN, augment="trivial", mixup_alpha=0.2, cutmix_alpha=1.0)
    photos = sent(pixels, meta, 2**30)
    assert photos is not None
    make = OnDevice(photos, pixels, recipe, contract, meta)
    for seed in range(4):  # mixup and CutMix
        images, targets = make.make(np.arange(8).repeat(8), [seed])
        assert images.device == targets.device == meta
        assert (images.shape, targets.shape) == ((64, 3, 48, 48), (64, 2))


def test_photos_lie_one_after_the_other(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "_AT_ONCE", 3)
    photos = sent(pixels, CPU, 2**30)
    assert photos is not None
    for photo, start, (height, width) in zip(pixels.get(range(8)), photos.starts, photos.sizes, strict=True):
        there = photos.values[start : start + height * width]
        assert np.array_equal(there.reshape(height, width, 3), photo)
    assert len(photos.values) == start + height * width


def test_a_panorama_does_not_make_the_batch_wide(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(on_device, "resampling", lambda *call: sizes.append(call[1]) or resampling(*call))
    assert max(photo.shape[1] for photo in pixels.get(range(8))) > 250
    both(pixels, PLAIN)[1].crops(np.arange(8), np.random.default_rng(0))
    assert max(sizes) <= 75  # 4 / 3 of the shorter side


def test_photos_that_do_not_fit_stay_where_they_are(pixels: Pixels) -> None:
    needed = sum(photo.nbytes for photo in pixels.get(range(len(pixels))))
    assert sent(pixels, CPU, needed) is not None
    assert sent(pixels, CPU, needed - 1) is None


def test_only_a_card_with_room_gets_the_photos(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    needed = sum(photo.nbytes for photo in pixels.get(range(len(pixels))))
    assert type(on_device.batches(pixels, PLAIN, CONTRACT, CPU, notes.append)) is Batches
    assert notes == []
    # With no card here, what would go there stays on the CPU.
    monkeypatch.setattr(on_device, "sent", lambda pixels, device, budget_bytes: sent(pixels, CPU, budget_bytes))
    monkeypatch.setattr(on_device, "OnDevice", lambda *_: "there")
    monkeypatch.setattr(on_device, "Batches", lambda *_: "here")
    for free_bytes, expected in ((needed * 2.51, "there"), (needed * 2.49, "here")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free_bytes: (int(free), 2**40))
        assert on_device.batches(pixels, PLAIN, CONTRACT, torch.device("cuda"), notes.append) == expected
    assert notes == ["photos are cut on the processor: they take more than 40% of the card's free memory, 0 MB"]


def test_a_run_gives_nearly_the_same_figures(pixels: Pixels, tmp_path: Path) -> None:
    recipe = dataclasses.replace(PLAIN, mode="scratch", batch_size=3, epochs=2, image_px=48, augment="trivial")
    found = []
    for number, make in enumerate(both(pixels, recipe)):
        torch.manual_seed(0)
        net = loop.prepare(nets.create("mobilenet_v3_small", 2, width=0.35), recipe)
        fabric, folder = Fabric(accelerator="cpu", devices=1), tmp_path / f"run{number}"
        folder.mkdir()
        found.append(loop.fit(net, make, Fixed(pixels.photos, CONTRACT, 64), recipe, CONTRACT, folder, fabric)[1])
    for usual, there in zip(*found, strict=True):
        assert there["train_loss"] == pytest.approx(usual["train_loss"], rel=0.02)
