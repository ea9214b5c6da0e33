"""Scoring photos with any function from pixels to probabilities."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens import evaluate, photos
from handlens.errors import HandlensError
from handlens.preprocess import Preprocess

PIXELS = Preprocess(image_px=16, resize_px=18)
CLASSES = ("blue sky", "花朵", "🌿 leaf")
CHANNELS = [2, 0, 1]  # of the classes' colours


def by_colour(images: np.ndarray) -> np.ndarray:
    mean = images.mean((1, 2))[:, CHANNELS]
    return mean / mean.sum(1, keepdims=True)


def test_every_photo_is_scored_in_order(tiny_photos: Path) -> None:
    found = photos.scan(tiny_photos)
    seen: list[tuple[int, int]] = []
    scores = evaluate.score(by_colour, found, PIXELS, 5, lambda done, total: seen.append((done, total)))
    assert scores.classes == CLASSES
    assert scores.paths == found.paths
    assert scores.top1 == 1
    assert scores.num_photos == 36
    assert scores.left_out == ()
    assert seen[-1] == (36, 36)


def test_wrong_answers_are_wrong(tiny_photos: Path) -> None:
    scores = evaluate.score(lambda images: by_colour(images)[:, [1, 0, 2]], photos.scan(tiny_photos), PIXELS)
    assert scores.top1 == pytest.approx(1 / 3)
    assert scores.confusion.tolist() == [[0, 12, 0], [12, 0, 0], [0, 0, 12]]


def test_broken_photos_are_left_out_and_listed(tiny_photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(tiny_photos, root)
    whole = (root / "花朵" / "00.jpg").read_bytes()
    (root / "花朵" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "blue sky" / "05.jpg").write_bytes(b"no photo")
    scores = evaluate.score(by_colour, photos.scan(root), PIXELS)
    assert sorted(path for path, _ in scores.left_out) == ["blue sky/05.jpg", "花朵/00.jpg"]
    assert all(reason for _, reason in scores.left_out)
    assert scores.num_photos == 34
    assert scores.top1 == 1
    assert not set(scores.paths) & {"blue sky/05.jpg", "花朵/00.jpg"}
    assert {line["photo"] for line in scores.to_dict()["left_out"]} == {"blue sky/05.jpg", "花朵/00.jpg"}


def test_nothing_but_broken_photos(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(b"no photo")
    with pytest.raises(HandlensError, match="no photo to evaluate on"):
        evaluate.score(by_colour, photos.scan(tmp_path), PIXELS)


def test_a_classifier_of_other_classes(tiny_photos: Path) -> None:
    found = photos.scan(tiny_photos)
    with pytest.raises(HandlensError, match="2\\) for 36 photos and 3 classes"):
        evaluate.score(lambda images: by_colour(images)[:, :2], found, PIXELS)
    with pytest.raises(HandlensError, match=r"probabilities of shape .*2\) for 36 photos and 3 classes"):
        evaluate.score(lambda images: (by_colour(images)[:, :2],) * 2, found, PIXELS)
    with pytest.raises(HandlensError, match=r"logits of shape .*2\) for 36 photos and 3 classes"):
        evaluate.score(lambda images: (by_colour(images), by_colour(images)[:, :2]), found, PIXELS)


def test_copies_and_photos_saved_anew_tell_no_more_than_their_original(tmp_path: Path) -> None:
    for k, name in enumerate(CLASSES[:2]):
        (tmp_path / name).mkdir()
        for number in range(3):
            coarse = np.random.default_rng(10 * k + number).integers(0, 256, (12, 12, 3), np.uint8)
            photo = Image.fromarray(coarse).resize((120, 120))
            photo.save(tmp_path / name / f"{number}.png")
            photo.resize((80, 80)).save(tmp_path / name / f"{number} small.jpg", quality=80)
            shutil.copy(tmp_path / name / f"{number}.png", tmp_path / name / f"{number} again.png")
    scores = evaluate.score(lambda images: np.full((len(images), 2), 0.5), photos.scan(tmp_path), PIXELS)
    assert (scores.num_photos, scores.effective_num_photos) == (18, 6)
