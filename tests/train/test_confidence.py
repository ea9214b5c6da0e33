"""What validation photos settle at the end of a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import handlens
from handlens import checkpoint, evaluate, files
from handlens import photos as photos_room
from handlens.errors import HandlensError
from handlens.evaluate import calibration, unknown
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.run import Classifier
from handlens.train import Watcher, confidence
from handlens.train.job import fit

COLOURS = np.array([(40, 80, 220), (220, 60, 60), (40, 180, 60)], np.float64)


@pytest.fixture
def validation(tiny_photos: Path) -> Photos:
    return photos_room.scan(tiny_photos)


def classifier(photos: Photos, sharpness: float = 1.0) -> Classifier:
    """Knows the tiny photos by their colour; its logits are `sharpness` times as large."""

    def infer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colours = images.astype(np.float64).mean((1, 2))[:, None]
        logits = (-sharpness * ((colours - COLOURS) ** 2).sum(2) / 8000).astype(np.float32)
        return calibration.softmax(logits).astype(np.float32), logits

    return Classifier(classes=photos.classes, preprocess=Preprocess(image_px=32, resize_px=36), infer=infer)


def settled(knower: Classifier, photos: Photos, outside: str = "") -> confidence.Confidence:
    return confidence.fit(knower, photos, lambda some: evaluate.score(knower.infer, some, knower.preprocess), outside)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    folder = tmp_path / "others"
    folder.mkdir()
    for index in range(10):
        Image.new("RGB", (40, 40), (120 + index, 125, 110)).save(folder / f"{index}.png")
    return folder


def test_too_few_validation_photos_are_said_and_nothing_is_fitted(validation: Photos) -> None:
    few = validation.select(range(0, 36, 6))
    found = settled(classifier(validation), few)
    assert (found.calibration, found.rejection) == (None, None)
    assert [f"6 validation photos are too few to {what}" in note for what, note in zip(
        ("calibrate", "tell what is none of the classes"), found.notes, strict=True)] == [True, True]  # fmt: skip
    assert found.validation is not None and found.validation.top1 == 1.0
    none = settled(classifier(validation), validation.select([]))
    assert none.validation is None
    assert "0 validation photos" in none.notes[0]


def test_temperature_and_rejection(validation: Photos, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FEWEST", 36)
    plain = settled(classifier(validation), validation)
    assert plain.calibration is not None and plain.rejection is not None and plain.validation is not None
    assert plain.notes == () and plain.outside is None
    sharper = settled(classifier(validation, 3.0), validation)
    assert sharper.calibration is not None
    assert sharper.calibration["temperature"] == pytest.approx(3 * plain.calibration["temperature"], rel=1e-2)
    assert sharper.validation is not None and sharper.validation.logits is not None
    assert sharper.validation.probabilities == pytest.approx(plain.validation.probabilities, abs=1e-3)

    taught = settled(classifier(validation), validation, str(others))
    assert taught.outside is not None and len(taught.outside[0]) == 5  # the half that chose nothing
    rejection = unknown.Rejection(**taught.rejection)
    assert (rejection.scores(*taught.outside) < rejection.threshold).all()


def test_unknown_photos_that_are_not_there(validation: Photos, tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="there is no folder"):
        settled(classifier(validation), validation, str(tmp_path / "nope"))
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(HandlensError, match="one photo that can be read, which cannot be cut in two halves"):
        settled(classifier(validation), validation, str(tmp_path))


def test_logits_that_are_not_finite_are_one_sentence(validation: Photos) -> None:
    def infer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.full((len(images), 3), np.nan, np.float32)
        return rows, rows

    broken = Classifier(classes=validation.classes, preprocess=Preprocess(image_px=32, resize_px=36), infer=infer)
    with pytest.raises(HandlensError, match="not finite"):
        settled(broken, validation)


def test_a_run_carries_its_temperature_and_threshold(
    tiny_photos: Path,
    others: Path,
    tmp_path: Path,
    weight_file: Path,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "FEWEST", 3)
    monkeypatch.setattr(unknown, "FEWEST", 3)
    run = fit(tiny_photos, out=tmp_path / "run", net="mobilenet_v3_small", weights=str(weight_file), mode="head",
              unknown=str(others), **quick)  # fmt: skip
    stored = checkpoint.load(run.folder)
    assert stored.calibration is not None and stored.calibration["num_photos"] == 3
    assert stored.net.temperature == stored.calibration["temperature"] != 1
    loaded = handlens.load(run.folder)
    probabilities, logits = loaded.infer(loaded.preprocess.load(tiny_photos / "花朵" / "00.jpg")[None])
    assert probabilities == pytest.approx(calibration.softmax(logits, stored.net.temperature), abs=1e-6)
    assert loaded.rejection is not None and loaded.rejection.to_dict() == stored.rejection
    judged = json.loads(json.dumps(run.metrics["unknown"]))
    assert (judged["num_photos"], judged["num_outside"]) == (3, 5)
    chose = json.loads((run.folder / "unknown.json").read_text("utf-8"))["chose"]
    assert len(chose) == 5 and set(chose) <= {files.sha256_of(path) for path in others.iterdir()}
    assert "None of the classes" in (run.folder / "report.html").read_text("utf-8")
    assert "before" in run.metrics["test"]["calibration"]


@pytest.mark.parametrize(("names", "sentence"), [
    (None, "there is no folder"),
    ([], "has no photo that can be read"),
    (["a.txt"], "has no photo that can be read"),
    (["a.png"], "one photo that can be read, which cannot be cut in two halves"),
    (["a.png", "b.png"], "one photo that can be read"),  # copies
])  # fmt: skip
def test_too_few_photos_of_other_things_are_told_before_the_training(
    names: list[str] | None, sentence: str, tiny_photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "others"
    if names is not None:
        folder.mkdir()
        for name in names:
            Image.new("RGB", (40, 40)).save(folder / name, format="png")
    with pytest.raises(HandlensError, match=sentence):
        handlens.fit(tiny_photos, out=tmp_path / "run", weights="none", epochs=1, unknown=str(folder))
    assert not (tmp_path / "run").exists()


def test_photos_of_other_things_that_went_are_told_before_a_run_goes_on(
    tiny_photos: Path, others: Path, tmp_path: Path, quick: dict[str, Any]
) -> None:
    class Stops(Watcher):
        def epoch(self, log: list[dict[str, float]]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_photos, out=tmp_path / "run", weights="none", unknown=str(others), watcher=Stops(), **quick)
    others.rename(tmp_path / "elsewhere")
    with pytest.raises(HandlensError, match=r"begun with unknown .*others, which is no longer there"):
        fit(out=tmp_path / "run", resume=True, watcher=Stops())
    (tmp_path / "elsewhere").rename(others)
    assert "test" in fit(out=tmp_path / "run", resume=True).metrics


def test_photos_of_other_things_need_validation_photos(validation: Photos, others: Path) -> None:
    found = settled(classifier(validation), validation.select(range(0, 36, 6)), str(others))
    assert found.outside is None and found.rejection is None
    assert f"the photos in {others} were not used" in found.notes[1]


def test_photos_of_the_classes_are_no_others(tiny_photos: Path, others: Path, tmp_path: Path) -> None:
    shutil.copy(next((tiny_photos / "花朵").iterdir()), others / "flower.jpg")
    with pytest.raises(HandlensError, match=r"1 photo that is also among those of the classes \(flower.jpg\)"):
        handlens.fit(tiny_photos, out=tmp_path / "run", weights="none", epochs=1, unknown=str(others))
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder_of_photos(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n", "utf-8")
    with pytest.raises(HandlensError, match=r"a.csv is a file, expected a folder"):
        unknown.check_halves(tmp_path / "a.csv")
