"""Near-duplicates are found however they were changed, and other photos are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from handlens.photos import drawn, examine, near, scan


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [drawn.picture(name, index)[0] for name in drawn.CLASSES for index in range(6)]


def recompressed(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=30)
    return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda photo: photo.resize((61, 75)),
    "recompressed": recompressed,
    "mirrored": ImageOps.mirror,
    "cropped": lambda photo: photo.crop((9, 2, 126, 123)),
    "darker": lambda photo: ImageEnhance.Brightness(photo).enhance(0.6),
    "mirrored, cropped, darker": lambda photo: ImageEnhance.Brightness(
        ImageOps.mirror(photo).crop((4, 4, 124, 124))
    ).enhance(0.8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_is_found_and_nothing_else(pictures: list[Image.Image], change: str) -> None:
    copies = [CHANGES[change](photo.convert("RGB")).convert("RGB") for photo in pictures]
    found = near.alike(np.stack([near.thumbnail(photo) for photo in [*pictures, *copies]]))
    count = len(pictures)
    wanted = {(i, i + count) for i in range(count)}
    pairs = {tuple(group) for group in found.groups}
    assert len(wanted & pairs) >= count - 1
    assert pairs <= wanted


def test_different_pictures_and_blank_ones_make_no_pairs(pictures: list[Image.Image]) -> None:
    thumbs = np.stack([near.thumbnail(photo) for photo in pictures])
    blank = np.random.default_rng(0).integers(100, 103, (20, 32, 32), dtype=np.uint8)
    for few in (np.concatenate([thumbs, blank]), thumbs[:1], blank, thumbs[:0]):
        assert near.alike(few).groups == []


def test_thousands_of_like_photos_are_looked_at_without_all_their_pairs() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(128, 50, (8, 8)).repeat(4, 0).repeat(4, 1)
    thumbs = np.clip(one + rng.normal(0, 3, (600, 32, 32)), 0, 255).astype(np.uint8)
    codes = near._candidates(thumbs)[0]
    assert len(codes) <= 600 * 2 * 16  # of 180,000 pairs
    assert near.alike(thumbs) == ([], list(range(600)))


def test_copies_stand_out_among_photos_of_a_fixed_camera(pictures: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    photos = []
    for number in range(80):
        photo = pictures[0].convert("RGB")
        left, top = rng.integers(0, 100, 2).tolist()
        draw = ImageDraw.Draw(photo)
        (draw.ellipse if number % 2 else draw.rectangle)((left, top, left + 26, top + 26), fill=(255, 240, 30))
        photos.append(ImageEnhance.Brightness(photo).enhance(rng.uniform(0.8, 1.2)))
    classes = np.arange(80) % 2
    thumbs = np.stack([near.thumbnail(photo) for photo in photos])
    groups, by_nature = near.alike(thumbs, classes)
    assert groups == [] and len(by_nature) > 40
    changes = [lambda photo: photo.resize((61, 75)), recompressed, ImageOps.mirror]
    copies = np.stack([near.thumbnail(changes[k % 3](photos[k]).convert("RGB")) for k in range(12)])
    groups, _ = near.alike(np.concatenate([thumbs, copies]), np.concatenate([classes, classes[:12]]))
    assert sum([k, 80 + k] in groups for k in range(12)) >= 10 and len(groups) <= 13


@pytest.mark.parametrize("frames", [5, 12])
def test_a_series_is_one_group_unless_it_is_most_of_its_class(pictures: list[Image.Image], frames: int) -> None:
    scenes = [pictures[k].convert("RGB") for k in range(20)]
    thumbs = np.stack(
        [near.thumbnail(scene.crop((k // 2, k, 116 + k // 2, 116 + k))) for scene in scenes for k in range(frames)]
    )
    wanted = [list(range(start, start + frames)) for start in range(0, len(thumbs), frames)]
    assert near.alike(thumbs).groups == wanted
    of_scene = np.arange(len(thumbs)) // frames
    assert all(len(group) <= 6 + frames // 10 for group in near.alike(thumbs, of_scene).groups)


def saved_anew(photo: Image.Image) -> np.ndarray:
    """The thumbnails of a photo saved at ten qualities."""
    thumbs = []
    for quality in range(50, 100, 5):
        photo.save(file := io.BytesIO(), "JPEG", quality=quality)
        thumbs.append(near.thumbnail(Image.open(file)))
    return np.stack(thumbs)


def test_all_of_a_group_may_be_one_photo_again(pictures: list[Image.Image]) -> None:
    copies = saved_anew(pictures[0].convert("RGB"))
    moved = [near.thumbnail(pictures[0].convert("RGB").crop((k, 3, 116 + k, 119))) for k in range(3, 12)]
    for few in (copies, np.concatenate([moved, copies])[::-1]):
        assert list(range(10)) in near.copies(few)


def test_what_moves_or_is_another_digit_is_not_saved_anew(pictures: list[Image.Image]) -> None:
    photo = pictures[0].convert("RGB")
    thumbs = [near.thumbnail(photo.crop((k, 0, 116 + k, 116))) for k in range(12)]
    for k in range(0, 100, 4):
        ImageDraw.Draw(seen := photo.copy()).ellipse((k, k, k + 8, k + 8), fill=(255, 240, 30))
        thumbs.append(near.thumbnail(seen))
    digits = [
        Image.fromarray((digit * 15.9).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        for digit in pytest.importorskip("sklearn.datasets").load_digits().images[:600]
    ]
    for other in (thumbs, [near.thumbnail(digit) for digit in digits]):
        assert near._saved_anew(np.stack(other)) == []


def test_a_long_search_tells_how_far_it_is() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(128, 50, (8, 8)).repeat(4, 0).repeat(4, 1)
    thumbs = np.clip(one + rng.normal(0, 3, (400, 32, 32)), 0, 255).astype(np.uint8)
    told: list[tuple[int, int]] = []
    near.alike(thumbs[:20], progress=lambda done, total: told.append((done, total)))
    assert told == []
    near.alike(thumbs, progress=lambda done, total: told.append((done, total)))
    assert len(told) > 1 and told == sorted(told) and told[-1][0] == told[-1][1]


def test_work_grows_with_the_photos_and_not_with_their_square() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8000, 8, 8), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    assert len(near._candidates(noise)[0]) < 8000  # of 32 million pairs


def test_groups_are_joined_through_others() -> None:
    assert near.joined([(5, 3), (1, 2), (3, 9), (4, 4)]) == [[1, 2], [3, 5, 9]]
    assert near.joined([]) == []


def test_copies_of_copies_in_a_folder(tmp_path: Path, pictures: list[Image.Image]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for number, photo in enumerate(pictures[:4]):
        photo.save(tmp_path / "a" / f"{number}.png")
    pictures[0].save(tmp_path / "b" / "same.png")
    pictures[0].resize((70, 70)).save(tmp_path / "b" / "small.png")
    pictures[1].save(tmp_path / "b" / "same-too.png")
    findings = examine(scan(tmp_path))
    assert sorted(map(sorted, findings.duplicates)) == [["a/0.png", "b/same.png"], ["a/1.png", "b/same-too.png"]]
    assert [sorted(group) for group in findings.near_duplicates()] == [["a/0.png", "b/same.png", "b/small.png"]]


def test_the_same_photos_are_searched_once(
    tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6, 12):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        pictures[number].save(tmp_path / "ab"[number % 2] / f"{number}.png")
    found = examine(scan(tmp_path)).near_duplicates()
    monkeypatch.setattr(near, "alike", lambda *_: pytest.fail("searched again"))
    assert examine(scan(tmp_path)).near_duplicates() == found
