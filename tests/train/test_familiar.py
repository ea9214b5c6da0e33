"""What a training learns of how its photos look, and that it goes along."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import handlens
from handlens import checkpoint, files
from handlens.errors import HandlensError
from handlens.evaluate import report, unknown
from handlens.train import familiar, modes
from handlens.train.job import fit


def clouds(count: int, num_features: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) of three classes, each around an axis of its own, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    vectors = 5 * np.eye(3, num_features)[labels] + rng.normal(0, 0.5, (count, num_features))
    return vectors.astype(np.float32), labels


def test_centres_are_unit_vectors_in_the_classes_directions() -> None:
    vectors, labels = clouds(300)
    middles = familiar.centres(vectors, labels)
    assert middles.shape == (3 * 16, 12) and middles.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(middles, axis=1), 1, rtol=1e-5)
    assert (middles.argmax(1) == np.repeat([0, 1, 2], 16)).all()


@pytest.mark.parametrize(("photos", "expected"), [(9, 9), (300, 48)])
def test_no_class_has_more_centres_than_photos(photos: int, expected: int) -> None:
    assert len(familiar.centres(*clouds(photos))) == expected


def test_identical_photos_have_one_centre() -> None:
    """Of more k-means warns, on the terminal."""
    vectors, labels = clouds(9)
    warnings.simplefilter("error")  # pytest puts it back
    assert len(familiar.centres(np.repeat(vectors, 20, axis=0), np.repeat(labels, 20))) == 9


def test_photos_that_hardly_differ_are_no_cause_for_a_warning() -> None:
    random = np.random.default_rng(0)
    vectors = np.abs(random.normal(size=(1, 256))) + 1e-4 * random.normal(size=(90, 256))
    vectors[:3] = np.zeros((3, 256)) * np.array([[1], [-1], [1]])  # zero, with both signs
    warnings.simplefilter("error")
    middles = familiar.centres(vectors.astype(np.float32), np.arange(90) % 3)
    assert np.isfinite(middles).all() and len(middles) == 3 * 16


def test_many_classes_share_the_centres_and_each_has_one() -> None:
    vectors = np.random.default_rng(0).random((200, 4), np.float32)
    assert len(familiar.centres(vectors, np.arange(200) % 20)) == familiar.CENTRES
    assert len(familiar.centres(vectors, np.arange(200) % 100)) == 100


def test_both_scores_are_on_one_scale_and_strange_photos_score_lower() -> None:
    vectors, labels = clouds(300)
    validation, truth = clouds(60, seed=1)
    logits = (4 * np.eye(3)[truth] + np.random.default_rng(2).normal(0, 0.5, (60, 3))).astype(np.float32)
    found = familiar.fit(0, vectors, labels, validation, logits)
    assert found is not None
    unit = validation / np.linalg.norm(validation, axis=1, keepdims=True)
    bound = found.slope * (unit @ found.centres.numpy().T).max(1) + found.offset
    energy = torch.from_numpy(logits).logsumexp(1).numpy()
    assert bound.mean() == pytest.approx(energy.mean(), abs=1e-3)
    assert bound.std() == pytest.approx(energy.std(), abs=1e-3)
    strange = torch.from_numpy(np.eye(12, dtype=np.float32)[7:])
    lowered = found.lowered(strange, torch.from_numpy(logits[:5]), found.centres)
    assert (lowered.logsumexp(1).numpy() < energy.min() - 3 * energy.std()).all()


def test_too_few_validation_photos_settle_nothing() -> None:
    vectors, labels = clouds(60)
    few = unknown.FEWEST - 1
    assert familiar.fit(0, vectors, labels, vectors[:few], np.zeros((few, 3), np.float32)) is None


def test_a_head_knows_its_photos_and_what_is_trained_on_from_it_knows_them_anew(
    tiny_photos: Path, tmp_path: Path, weight_file: Path, quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown, "FEWEST", 3)
    head = fit(tiny_photos, out=tmp_path / "head", net="mobilenet_v3_small", weights=str(weight_file), mode="head",
               **quick)  # fmt: skip
    net = checkpoint.load(head.folder).net
    assert net.familiar is not None
    assert net.familiar.centres.shape == (3 * 10, net.classifier[net.familiar.depth].in_features)
    classifier = handlens.load(head.folder)
    known = classifier.answers(classifier.preprocess.load(tiny_photos / "花朵" / "00.jpg")[None])[0]
    strange = classifier.answers(np.zeros((1, 32, 32, 3), np.uint8))[0]
    assert known.score is not None and strange.score is not None and strange.score < known.score
    _, logits = classifier.infer(np.zeros((1, 32, 32, 3), np.uint8))
    pixels = torch.from_numpy(classifier.preprocess.normalise(np.zeros((1, 32, 32, 3), np.uint8)))
    with torch.inference_mode():
        assert (logits < net(pixels).numpy() - 0.1).all()
    full = fit(continue_run=str(head.folder), mode="full", out=tmp_path / "full", **{**quick, "epochs": 1})
    whole = checkpoint.load(full.folder).net
    assert whole.familiar is not None
    assert whole.familiar.depth == net.familiar.depth  # what the head's extra layer reads
    assert not torch.equal(whole.familiar.centres, net.familiar.centres)
    answers = handlens.load(full.folder).infer(np.zeros((1, 32, 32, 3), np.uint8))[1]
    with torch.inference_mode():
        vector, raw = whole(pixels, whole.familiar.depth)
        expected = whole.familiar.lowered(vector, raw, whole.familiar.centres).numpy()
    np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)
    (head.folder / files.FAMILIAR).write_bytes(b"")
    with pytest.raises(HandlensError, match=r"familiar\.safetensors is not the file"):
        checkpoint.load(head.folder)


@pytest.mark.parametrize(("mode", "knows"), [("full", True), ("last", True), ("scratch", False)])
def test_what_a_network_that_is_trained_knows_and_shows(
    mode: str, knows: bool, tiny_photos: Path, tmp_path: Path, weight_file: Path, quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(unknown, "FEWEST", 3)
    monkeypatch.setattr(modes, "_MOST_SEEN", 12)  # of 30
    shown = []
    monkeypatch.setattr(report, "write", lambda *_, nearest, **__: shown.append(nearest))
    begin = {"weights": "none"} if mode == "scratch" else {"weights": str(weight_file)}
    run = fit(tiny_photos, out=tmp_path / "run", net="mobilenet_v3_small", mode=mode, **begin, **{**quick, "epochs": 1})
    saved = checkpoint.load(run.folder)
    assert (saved.net.familiar is not None) == knows
    (nearest,) = shown
    assert len(nearest.photos) == len(nearest.features) == 12
    assert nearest.features.shape[1] == saved.net.num_features
    pixels = torch.from_numpy(
        np.stack(
            [saved.preprocess.normalise(saved.preprocess.load(nearest.photos.path(i))[None])[0] for i in range(12)]
        )
    )
    with torch.inference_mode():  # features of the trained network, not of the one that it began from
        np.testing.assert_allclose(saved.net.embed(pixels).numpy(), nearest.features, rtol=1e-3, atol=1e-3)
