"""Random crops and changes: against torchvision's, within their bounds, each photo for itself, repeatable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms import InterpolationMode

from handlens.train import augment

CHANGES = {change.__name__.strip("_"): change for change in augment._CHANGES if change}
AT_ZERO = set(CHANGES) - {
    "solarize",
    "auto_contrast",
    "equalize",
}  # those that have a strength at which nothing changes


def photos(count: int = 4, height: int = 24, width: int = 32, seed: int = 0) -> Tensor:
    """Smooth colourful pictures on the grid of 256 levels: float (B, 3, H, W)."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 5, 6), generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def changed(name: str, images: Tensor, strength: float, sign: float = 1.0) -> Tensor:
    """One change of all photos as `trivial_augment` applies it."""
    ones = torch.ones(len(images), 1, 1, 1)
    return CHANGES[name](images, strength * ones, sign * ones).clamp(0, 1)


def test_there_are_the_fourteen_kinds_of_the_paper() -> None:
    assert len(augment._CHANGES) == 14
    assert augment._CHANGES.count(None) == 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_keeps_shape_type_and_range(name: str) -> None:
    images = photos()
    for strength in (0.0, 0.3, 1.0):
        for sign in (-1.0, 1.0):
            result = changed(name, images, strength, sign)
            assert result.shape == images.shape
            assert result.dtype == images.dtype
            assert torch.isfinite(result).all()
            assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("name", sorted(AT_ZERO))
def test_at_zero_strength_nothing_changes(name: str) -> None:
    levels = torch.arange(256).div(255).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for images in (photos(), levels):
        assert torch.allclose(changed(name, images, 0.0), images, atol=2e-6)


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"auto_contrast"}))
def test_at_full_strength_a_photo_changes(name: str) -> None:
    images = photos()
    assert (changed(name, images, 1.0) - images).abs().flatten(1).mean(1).min() > 0.005


@pytest.mark.parametrize("name", CHANGES)
def test_each_photo_is_changed_for_itself(name: str) -> None:
    images = photos(5)
    strengths, signs = column(0.0, 0.25, 0.5, 0.75, 1.0), column(1.0, -1.0, 1.0, -1.0, 1.0)
    together = CHANGES[name](images, strengths, signs)
    for i in range(5):
        alone = CHANGES[name](images[i : i + 1], strengths[i : i + 1], signs[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


FACTORS = [(strength, sign) for strength in (0.2, 0.7, 1.0) for sign in (-1.0, 1.0)]


@pytest.mark.parametrize(("strength", "sign"), FACTORS)
@pytest.mark.parametrize(
    ("name", "reference"),
    [("brightness", tv.adjust_brightness), ("colour", tv.adjust_saturation), ("contrast", tv.adjust_contrast)],
)
def test_light_and_colour_as_torchvision(
    name: str, reference: Callable[..., Tensor], strength: float, sign: float
) -> None:
    images = photos()
    expected = reference(images, 1 + 0.99 * strength * sign)
    assert torch.allclose(changed(name, images, strength, sign), expected, atol=1e-3)  # grey by rounded weights there


@pytest.mark.parametrize(("strength", "sign"), FACTORS)
def test_sharpness_as_torchvision_within_the_border(strength: float, sign: float) -> None:
    images = photos()
    expected = tv.adjust_sharpness(images, 1 + 0.99 * strength * sign)
    ours = changed("sharpness", images, strength, sign)
    assert torch.allclose(ours[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_posterize_as_torchvision(bits: int) -> None:
    images = torch.cat([photos(), torch.arange(256).div(255).view(1, 1, 8, 32).expand(1, 3, 8, 32).repeat(1, 1, 3, 1)])
    expected = tv.posterize((images * 255).round().to(torch.uint8), bits).float() / 255
    assert torch.allclose(changed("posterize", images, (8 - bits) / 6), expected, atol=1e-6)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.83, 1.0])
def test_solarize_as_torchvision(strength: float) -> None:
    images = photos()
    assert torch.allclose(changed("solarize", images, strength), tv.solarize(images, 1 - strength), atol=1e-6)


def test_auto_contrast_as_torchvision() -> None:
    images = torch.cat([0.2 + 0.5 * photos(), torch.full((1, 3, 24, 32), 0.4)])
    assert torch.allclose(changed("auto_contrast", images, 0.0), tv.autocontrast(images), atol=1e-5)
    assert torch.equal(changed("auto_contrast", images, 0.0)[-1], images[-1])


def test_equalize_as_torchvision() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.rand((3, 3, 96, 96), generator=random) ** 2 * 0.8 + 0.1  # dark, and no level has many pixels
    images = (values * 255).round() / 255
    expected = tv.equalize((images * 255).round().to(torch.uint8)).float() / 255
    ours = changed("equalize", images, 0.0)
    assert (ours - expected).abs().max() < 2.5 / 255
    histogram = torch.histc(ours[0, 0], 10, 0, 1) / ours[0, 0].numel()
    assert torch.allclose(histogram, torch.full((10,), 0.1), atol=0.02)


def test_equalize_leaves_a_channel_of_one_value() -> None:
    images = photos(1)
    images[:, 1] = 0.6
    ours = changed("equalize", images, 0.0)
    assert torch.equal(ours[:, 1], images[:, 1])
    assert not torch.equal(ours[:, 0], images[:, 0])


@pytest.mark.parametrize(("strength", "sign"), [(0.3, 1.0), (0.3, -1.0), (0.8, 1.0), (0.8, -1.0)])
@pytest.mark.parametrize("shape", [(48, 48), (40, 64)])
@pytest.mark.parametrize(
    ("name", "affine"),
    [
        ("rotate", lambda amount, size: {"angle": 135 * amount}),
        ("shear_x", lambda amount, size: {"shear": [math.degrees(math.atan(0.99 * amount)), 0.0]}),
        ("shear_y", lambda amount, size: {"shear": [0.0, math.degrees(math.atan(0.99 * amount))]}),
        ("translate_x", lambda amount, size: {"translate": [-size[1] / 7 * amount, 0.0]}),
        ("translate_y", lambda amount, size: {"translate": [0.0, -size[0] / 7 * amount]}),
    ],
)
def test_moves_as_torchvision(name: str, affine: Any, shape: tuple[int, int], strength: float, sign: float) -> None:
    images = photos(2, *shape)
    settings = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]} | affine(
        strength * sign, shape
    )
    centred = images - 0.5  # so that what is uncovered, 0 there, is grey
    expected = tv.affine(centred, interpolation=InterpolationMode.BILINEAR, **settings) + 0.5
    ours = changed(name, images, strength, sign)
    assert (ours - expected).abs().mean() < 2e-3
    backwards = changed(name, images, strength, -sign)
    assert (backwards - expected).abs().mean() > 0.02


def test_what_a_move_uncovers_is_grey() -> None:
    ours = changed("translate_x", torch.zeros(1, 3, 28, 28), 1.0)
    assert torch.allclose(ours[..., -4:], torch.tensor(0.5))
    assert torch.allclose(ours[..., :23], torch.tensor(0.0), atol=1e-5)


def test_trivial_augment_changes_each_photo_in_one_way() -> None:
    images = ((0.2 + 0.5 * photos(1)) * 255).round().div(255).expand(400, -1, -1, -1)
    before = images.clone()
    result = augment.trivial_augment(images, np.random.default_rng(0))
    assert result.shape == images.shape
    assert 0 <= result.min() <= result.max() <= 1
    unchanged = (result == images).flatten(1).all(1).float().mean().item()
    assert 1 / 14 - 0.05 < unchanged < 1 / 14 + 0.05  # the identity is one of fourteen kinds
    assert torch.equal(images, before)


def test_trivial_augment_changes_a_photo_as_in_a_batch_of_others() -> None:
    one, other = photos(8), photos(8, seed=1)
    other[3] = one[3]
    results = [augment.trivial_augment(images, np.random.default_rng(5)) for images in (one, other)]
    assert torch.allclose(results[0][3], results[1][3], atol=1e-6)
    assert not torch.allclose(results[0][4], results[1][4], atol=1e-3)


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("min_area", [0.05, 0.35, 0.9])
@pytest.mark.parametrize("size", [(60, 80), (80, 60), (50, 50), (41, 40), (3, 4), (1, 1)])
def test_a_crop_lies_in_the_photo(size: tuple[int, int], min_area: float) -> None:
    rng = np.random.default_rng(0)
    height, width = size
    shares, ratios = [], []
    for _ in range(300):
        top, left, h, w = augment.crop_box(height, width, min_area, rng)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h > 0 < w
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / (h - 0.5) >= 3 / 4
        shares.append(h * w / (height * width))
        ratios.append(w / h)
    if min(size) < 40:
        return
    rounding = 1.5 / min(size)
    assert min(shares) > min_area - 2 * rounding or min(shares) > min(size) / max(size) - 0.01  # or the centre square
    if min_area < 0.5:
        assert min(shares) < min_area + 0.1
        assert max(shares) > 0.9
        assert max(ratios) > 1.2 > 0.85 > min(ratios)


def test_crops_come_from_everywhere() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([augment.crop_box(100, 100, 0.1, rng) for _ in range(300)])
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (boxes[:, :2].min(0) < 3).all()
    assert (ends.max(0) > 97).all()


def test_a_very_long_photo_gives_its_centre_square() -> None:
    photo = pixels(10, 3000)
    rng = np.random.default_rng(0)
    assert augment.crop_box(10, 3000, 0.35, rng) == (0, 1495, 10, 10)
    crop = augment.random_crops([photo], 10, 0.35, rng)
    assert np.array_equal(crop[0].permute(1, 2, 0).numpy(), photo[:, 1495:1505])
    assert augment.crop_box(3000, 10, 0.35, rng) == (1495, 0, 10, 10)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (41, 41)])
def test_without_augmentation_a_photo_of_any_shape_gives_its_centre_square(size: tuple[int, int]) -> None:
    side, rng = min(size), np.random.default_rng(0)
    expected = ((size[0] - side) // 2, (size[1] - side) // 2, side, side)
    assert {augment.crop_box(*size, 1.0, rng) for _ in range(50)} == {expected}
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn


def test_crops_of_the_whole_photo_are_the_photo() -> None:
    """With a smallest area of 1, augment "none" shows a square photo as it is."""
    photo = pixels(40, 40)
    crop = augment.random_crops([photo], 40, 1.0, np.random.default_rng(0))
    assert np.array_equal(crop[0].permute(1, 2, 0).numpy(), photo)


def test_crops_of_photos_of_many_sizes_make_a_batch() -> None:
    sizes = [(30, 40), (200, 90), (5, 5), (64, 64)]
    batch = augment.random_crops([pixels(*size) for size in sizes], 32, 0.35, np.random.default_rng(0))
    assert batch.shape == (4, 3, 32, 32)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_a_large_crop_is_smoothed_when_it_shrinks() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    batch = augment.random_crops([stripes], 32, 0.99, np.random.default_rng(0))
    assert batch[..., 2:-2, 2:-2].float().std() < 8  # grey, not stripes of another width


def test_flip_mirrors_half_of_the_photos() -> None:
    images = photos(200)
    result = augment.flip(images, np.random.default_rng(0))
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 0.4 < mirrored.float().mean() < 0.6
    assert augment.flip((images * 255).to(torch.uint8), np.random.default_rng(0)).dtype == torch.uint8


def plain_batch(count: int = 6, px: int = 20) -> tuple[Tensor, Tensor]:
    """Photo i is all (i + 1) / count and of class i: shares of photos can be read off the pixels."""
    shades = torch.arange(1, count + 1) / count
    return shades.view(-1, 1, 1, 1).expand(-1, 3, px, px).clone(), torch.eye(count)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.2, 0.0), (0.0, 1.0), (0.0, 0.3), (1.0, 1.0)])
def test_targets_are_mixed_as_the_pixels_are(mixup: float, cutmix: float) -> None:
    images, targets = plain_batch()
    shades = torch.arange(1, 7) / 6
    shares = []
    for seed in range(40):
        mixed, mixed_targets = augment.mix(images, targets, mixup, cutmix, np.random.default_rng(seed))
        assert mixed.shape == images.shape
        assert torch.allclose(mixed_targets.sum(1), torch.ones(6))
        assert (mixed_targets >= 0).all()
        assert torch.allclose(mixed.mean((1, 2, 3)), mixed_targets @ shades, atol=1e-5)
        shares += mixed_targets.diagonal().tolist()
    assert min(shares) < 0.3
    assert max(shares) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(images, plain_batch()[0])


def test_mixup_blends_and_cutmix_pastes_a_box() -> None:
    images, targets = plain_batch()
    seeds = [seed for seed in range(40) if np.random.default_rng(seed).permutation(6)[0] != 0]
    for seed in seeds:
        blended, _ = augment.mix(images, targets, 1.0, 0.0, np.random.default_rng(seed))
        assert len(blended[0].unique()) == 1
        pasted, share = augment.mix(images, targets, 0.0, 1.0, np.random.default_rng(seed))
        assert set(pasted.unique().tolist()) <= set(images.unique().tolist())
        other = (pasted[0, 0] != images[0, 0, 0, 0]).nonzero()
        if len(other):
            height, width = (other.amax(0) - other.amin(0) + 1).tolist()
            assert height * width == len(other)  # a box, and it lies in the photo
            assert 1 - share[0, 0].item() == pytest.approx(len(other) / 400, abs=1e-6)


def test_both_kinds_of_mixing_take_turns() -> None:
    images, targets = plain_batch()
    kinds = set()
    for seed in range(20):
        mixed, _ = augment.mix(images, targets, 1.0, 1.0, np.random.default_rng(seed))
        kinds.add(set(mixed.unique().tolist()) <= set(images.unique().tolist()))
    assert kinds == {True, False}


def test_nothing_is_mixed_with_alphas_of_zero_or_one_photo() -> None:
    images, targets = plain_batch()
    rng = np.random.default_rng(0)
    for result in (augment.mix(images, targets, 0.0, 0.0, rng), augment.mix(images[:1], targets[:1], 1.0, 1.0, rng)):
        assert torch.equal(result[0], images[: len(result[0])])
        assert torch.equal(result[1], targets[: len(result[1])])


def test_the_same_seed_makes_the_same_batch() -> None:
    def batch(seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        crops = augment.random_crops([pixels(40, 50)] * 8, 24, 0.35, rng)
        images = augment.trivial_augment(augment.flip(crops.float() / 255, rng), rng)
        return augment.mix(images, torch.eye(8), 1.0, 1.0, rng)

    first, second, other = batch(3), batch(3), batch(4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("alphas", [(0.1, 0.0), (0.0, 0.1)])
def test_a_small_alpha_mixes_most_photos_hardly_at_all(alphas: tuple[float, float]) -> None:
    rng, images, targets = np.random.default_rng(0), torch.zeros(2, 3, 64, 64), torch.eye(2)
    mixed = [float(augment.mix(images, targets, *alphas, rng)[1].max()) for _ in range(400)]
    assert np.mean(mixed) > 0.95  # of even shares, 0.88: half of the draws mix a photo with itself
