"""Telling what is none of the classes, on scores whose distributions are known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens import bundle, photos
from handlens.errors import HandlensError
from handlens.evaluate import Scores, unknown
from handlens.evaluate.calibration import softmax
from handlens.evaluate.unknown import Rejection
from handlens.photos import drawn
from handlens.preprocess import Preprocess


def answers(count: int, strength: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits with one class ahead by about `strength`, and their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, 4)).astype(np.float32)
    logits[np.arange(count), rng.integers(4, size=count)] += strength
    return softmax(logits), logits


def scores(count: int, strength: float) -> Scores:
    probabilities, logits = answers(count, strength)
    return Scores(
        probabilities=probabilities,
        labels=logits.argmax(1),
        classes=("a", "b", "c", "d"),
        paths=tuple(map(str, range(count))),
        logits=logits,
    )


def test_a_bundle_knows_the_same_scores() -> None:
    assert bundle.SCORES == unknown.KINDS


def test_the_scores_by_hand() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [800.0, 0.0, 0.0]], np.float32)
    energy = Rejection(kind="energy", threshold=0).scores(softmax(logits), logits)
    assert energy == pytest.approx([np.log(np.exp([1, 2, 3]).sum()), 800])
    most = Rejection(kind="max-softmax", threshold=0).scores(softmax(logits), logits)
    assert most == pytest.approx([np.exp(3) / np.exp([1, 2, 3]).sum(), 1])


@pytest.mark.parametrize("count", [19, 20, 39, 100, 293])
def test_the_threshold_lets_95_percent_of_such_photos_pass(count: int) -> None:
    rng = np.random.default_rng(count)
    passed = [np.mean(rng.random(200) >= unknown.threshold_of(rng.random(count))) for _ in range(2000)]
    assert 0.945 < np.mean(passed) < 0.95 + 1 / count + 0.005


@pytest.mark.parametrize("count", [10, 19, 20, 39, 40, 293])
def test_no_photo_lies_on_the_threshold(count: int) -> None:
    """What another runtime's rounding does to its score must not decide."""
    known = np.random.default_rng(count).random(count)
    threshold = unknown.threshold_of(known)
    assert np.abs(known - threshold).min() > 1e-6
    assert (known >= threshold).mean() >= 0.95
    assert unknown.threshold_of(np.ones(count)) == 1


@pytest.mark.parametrize("count", [1, 2, 38, 39, 50, 58])
def test_a_validation_photo_that_is_unlike_all_others_does_not_void_the_threshold(count: int) -> None:
    """From 39 photos on one may be below it, by however much."""
    known = np.random.default_rng(0).normal(8, 1, count)
    known[0] = -10
    threshold = unknown.threshold_of(known)
    assert threshold == pytest.approx(np.sort(known)[int(count > 38)], abs=0.02)
    assert (known >= threshold).sum() == count - (count > 38)


def test_without_unknown_photos_the_default_score() -> None:
    probabilities, logits = answers(200, 4)
    found = unknown.fit(probabilities, logits)
    assert found.kind == unknown.DEFAULT
    assert (found.scores(probabilities, logits) >= found.threshold).mean() >= 0.95


def test_with_unknown_photos_score_and_threshold_follow_them() -> None:
    known, flat = answers(200, 4), answers(200, 0, seed=1)
    found = unknown.fit(*known, flat)
    own, other = found.scores(*known), found.scores(*flat)
    best = min((own < t).mean() + (other >= t).mean() for t in np.concatenate([own, other]))
    assert (own < found.threshold).mean() + (other >= found.threshold).mean() == pytest.approx(best, abs=0.006)
    assert (own >= found.threshold).mean() >= 0.9
    shifted = known[0], known[1] - 100  # energies say the contrary now, probabilities are the same
    assert unknown.fit(*shifted, flat).kind == "max-softmax"
    alike = unknown.fit(*known, known)  # nothing to be told apart: most of the known ones pass all the same
    assert (alike.scores(*known) >= alike.threshold).mean() >= 0.9


def test_too_few_photos_and_logits_that_are_not_finite() -> None:
    probabilities, logits = answers(18, 4)
    with pytest.raises(HandlensError, match=r"18 validation photos are too few .* 19 are needed"):
        unknown.fit(probabilities, logits)
    probabilities, logits = answers(30, 4)
    logits[3, 1] = np.nan
    with pytest.raises(HandlensError, match="not finite"):
        unknown.fit(probabilities, logits)


def test_auroc_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    known, other = rng.integers(0, 9, 70).astype(float), rng.integers(-3, 6, 50).astype(float)
    pairs = (known[:, None] > other).mean() + 0.5 * (known[:, None] == other).mean()
    assert unknown.auroc(known, other) == pytest.approx(pairs)
    assert unknown.auroc(known, known - 100) == 1


def test_separation_by_hand() -> None:
    found = unknown.separation(np.arange(100.0), np.arange(-90.0, 10), threshold=8)
    assert found["true_accept"] == 0.92
    assert found["false_accept"] == 0.02  # 8 and 9
    assert found["false_accept_at_95"] == pytest.approx(0.06)  # from 4 on


def test_what_is_judged() -> None:
    rejection = Rejection(kind="max-softmax", threshold=0.9)
    found = unknown.judge(rejection, scores(100, 4))
    assert found["num_photos"] == 100 and "auroc" not in found
    assert found["true_accept_ci95"][0] < found["true_accept"] < found["true_accept_ci95"][1]
    found = unknown.judge(rejection, scores(100, 4), answers(60, 0, seed=1))
    assert found["num_outside"] == 60
    assert found["auroc"] > 0.9
    assert found["false_accept_ci95"][0] <= found["false_accept"] < 0.2


def test_photos_that_are_nearly_the_same_are_in_one_half(tmp_path: Path) -> None:
    """Else the half that judges would hold what has chosen."""
    for index in range(20):
        photo = drawn.picture("daisy", index)[0]
        photo.save(tmp_path / f"{index}.png")
        photo.resize((80, 80)).save(tmp_path / f"{index}-small.png")
    found = unknown.answers(lambda images: (images.mean((1, 2)),) * 2, Preprocess(image_px=8, resize_px=8), tmp_path)
    sha256 = unknown.look(tmp_path).sha256
    halves = [{path for path, content in sha256.items() if content in found.half(second).contents} for second in (0, 1)]
    assert all(len({path.partition("-")[0].removesuffix(".png") for path in half}) == 10 for half in halves)
    assert all(len(half) == 20 for half in halves)
    (tmp_path / "same").mkdir()
    for level in (0, 5, 9):
        drawn.picture("daisy", 3)[0].save(tmp_path / "same" / f"{level}.png", compress_level=level)
    with pytest.raises(HandlensError, match="photos that are all nearly the same, which cannot be cut in two halves"):
        unknown.check_halves(tmp_path / "same")


def test_a_copy_of_a_photo_of_the_classes_is_none_of_the_unknown(tmp_path: Path) -> None:
    """Saved in another file, with the same pixels."""
    for index in range(3):
        (tmp_path / "unknown").mkdir(exist_ok=True)
        drawn.picture("daisy", index)[0].save(tmp_path / "unknown" / f"{index}.png", compress_level=9)
    (tmp_path / "photos" / "daisy").mkdir(parents=True)
    drawn.picture("daisy", 1)[0].save(tmp_path / "photos" / "daisy" / "1.png", compress_level=0)
    seen = photos.examine(photos.scan(tmp_path / "photos", keep_empty=True))
    unknown.check_halves(tmp_path / "unknown", known={*seen.sha256.values()})
    with pytest.raises(HandlensError, match=r"has 1 photo that is also among those of the classes \(1.png\)"):
        unknown.check_halves(tmp_path / "unknown", known={*seen.sha256.values(), *seen.pixels.values()})


def test_photos_below_a_folder(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/c/2.png", "3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (len(name) * 9, 0, 0)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    for thumbnail in (".thumbnails/1.jpg", "a/@eaDir/1.jpg"):
        (tmp_path / thumbnail).parent.mkdir()
        Image.new("RGB", (10, 10), (1, 2, len(thumbnail))).save(tmp_path / thumbnail)
    shutil.copy(tmp_path / "3.jpg", tmp_path / "b" / "again.jpg")
    contract = Preprocess(image_px=8, resize_px=8)

    def infer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = images.mean((1, 2))
        return softmax(logits), logits

    found = unknown.answers(infer, contract, tmp_path)
    assert found.probabilities.shape == found.logits.shape == (3, 3)
    assert len(set(found.contents)) == 3
    assert found.left_out == [
        ("broken.jpg", "is not a photo that can be read"),
        ("b/again.jpg", "is a copy of 3.jpg"),
    ]
    one, two = found.half(False).logits, found.half(True).logits
    assert sorted(found.half(False).contents + found.half(True).contents) == sorted(found.contents)
    assert len(one) == 2 and len(two) == 1
    assert np.array_equal(np.sort(np.concatenate([one, two])[:, 0]), np.sort(found.logits[:, 0]))
    (tmp_path / "empty").mkdir()
    for folder, sentence in (("empty", "no photo that can be read"), ("nope", "there is no folder")):
        with pytest.raises(HandlensError, match=sentence):
            unknown.answers(infer, contract, tmp_path / folder)
