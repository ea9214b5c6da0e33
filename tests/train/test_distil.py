"""Distillation: a teacher sees what it was trained to see, and its answers are learned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import handlens
from handlens import checkpoint, files, nets, photos
from handlens.errors import HandlensError
from handlens.preprocess import Normalisation, Preprocess
from handlens.train import Recipe, Run, Watcher, job, start
from handlens.train.distil import Teacher, divergence

CONTRACTS = {
    "same": Preprocess(image_px=32, resize_px=36),
    "other": Preprocess(image_px=32, resize_px=36, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)),
    "bgr": Preprocess(image_px=32, resize_px=36, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), channels="bgr"),
}


def test_divergence_is_that_of_the_softened_answers() -> None:
    logits, expected = torch.randn(6, 4), torch.randn(6, 4)
    soft, aim = (logits / 3).softmax(1), (expected / 3).softmax(1)
    by_hand = 9 * (aim * (aim / soft).log()).sum(1).mean().item()
    assert divergence(logits, expected, 3.0) == pytest.approx(by_hand, rel=1e-4)
    assert divergence(expected, expected, 3.0) == pytest.approx(0, abs=1e-6)


def saved_as(tiny_run: Path, folder: Path, contract: Preprocess, classes: tuple[str, ...] | None = None) -> Path:
    trained = checkpoint.load(tiny_run)
    checkpoint.save(folder, dataclasses.replace(trained, preprocess=contract, classes=classes or trained.classes))
    return folder


@pytest.mark.parametrize("own", CONTRACTS)
@pytest.mark.parametrize("pupils", CONTRACTS)
def test_the_teacher_sees_its_own_pixels(
    own: str, pupils: str, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    folder = saved_as(tiny_run, tmp_path / "teacher", CONTRACTS[own])
    classes = checkpoint.load(tiny_run).classes
    teacher = Teacher(Recipe(teacher=str(folder), image_px=32), classes[::-1], CONTRACTS[pupils])
    pixels, _ = next(photos.batches(photos.scan(tiny_photos), CONTRACTS["same"], 8))
    with torch.no_grad():
        expected = checkpoint.load(folder).net(torch.from_numpy(CONTRACTS[own].normalise(pixels))).flip(1)
    found = teacher(torch.from_numpy(CONTRACTS[pupils].normalise(pixels)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("normalisation", ["min-max", "z-score"])
def test_each_photos_own_normalisation(
    normalisation: Normalisation, tiny_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    own, pupils = (dataclasses.replace(CONTRACTS[name], normalisation=normalisation) for name in ("other", "same"))
    folder = saved_as(tiny_run, tmp_path / "teacher", own)
    recipe = Recipe(teacher=str(folder), image_px=32)
    pixels, _ = next(photos.batches(photos.scan(tiny_photos), own, 8))
    with torch.no_grad():
        expected = checkpoint.load(folder).net(torch.from_numpy(own.normalise(pixels)))
    found = Teacher(recipe, checkpoint.load(tiny_run).classes, pupils)(torch.from_numpy(pupils.normalise(pixels)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    with pytest.raises(HandlensError, match=f"has normalisation {normalisation}, and this run fixed"):
        Teacher(recipe, checkpoint.load(tiny_run).classes, CONTRACTS["same"])


def test_a_taught_network_answers_more_like_its_teacher(
    full_run: Run, tiny_photos: Path, tmp_path: Path, quick: dict[str, Any]
) -> None:
    """All the weight is the teacher's: labels say nothing."""
    given = {**quick, "epochs": 8, "augment": "light", "net": "resnet20", "weights": "none", "lr": 3e-3}
    teacher = str(full_run.folder)
    settings = {"teacher": teacher, "distil_weight": 1.0, "distil_temperature": 1.0}
    one, two = (
        handlens.fit(tiny_photos, out=tmp_path / name, **given, **more) for name, more in (("1", settings), ("2", {}))
    )
    assert one.recipe.teacher == teacher
    contract = checkpoint.load(full_run.folder).preprocess
    pixels = np.concatenate([batch for batch, _ in photos.batches(photos.scan(tiny_photos), contract, 16)])
    expected = handlens.load(teacher).predict_batch(pixels)
    taught, untaught = (np.abs(handlens.load(run.folder).predict_batch(pixels) - expected).mean() for run in (one, two))
    assert taught < 0.8 * untaught


def test_the_loss_is_shared_between_teacher_and_labels(tiny_run: Path) -> None:
    classes = checkpoint.load(tiny_run).classes
    recipe = Recipe(teacher=str(tiny_run), image_px=32, distil_weight=0.25, distil_temperature=3.0)
    teacher = Teacher(recipe, classes, checkpoint.load(tiny_run).preprocess)
    images, logits, hard = torch.randn(4, 3, 32, 32), torch.randn(4, 3), torch.tensor(2.0)
    expected = 0.75 * 2 + 0.25 * divergence(logits, teacher(images), 3.0)
    assert teacher.loss(images, logits, hard) == pytest.approx(expected.item(), rel=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_what_a_teacher_cannot_teach(tiny_run: Path, tiny_photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    others = saved_as(tiny_run, tmp_path / "others", CONTRACTS["same"], ("blue sky", "花朵", "stone"))
    given = {**quick, "net": "resnet20", "weights": "none", "out": tmp_path / "run"}
    with pytest.raises(HandlensError, match="other classes apart: stone, 🌿 leaf"):
        handlens.fit(tiny_photos, teacher=str(others), **given)
    with pytest.raises(HandlensError, match="there is no run folder"):
        handlens.fit(tiny_photos, teacher=str(tmp_path / "none"), **given)
    with pytest.raises(HandlensError, match="mode head trains on stored features"):
        start.start_of(Recipe(teacher=str(tiny_run), mode="head"), checkpoint.load(tiny_run).classes)
    for field in ("train_px", "first_px", "last_px"):
        with pytest.raises(HandlensError, match="16 px is too small"):
            recipe = Recipe(teacher=str(tiny_run), image_px=32, **{field: 16})
            Teacher(recipe, checkpoint.load(tiny_run).classes, CONTRACTS["same"])
    assert not (tmp_path / "run").exists()


def test_crops_are_of_a_size_that_the_teacher_takes(tiny_photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    """The crops that are chosen, of 176 px, are not whole patches of 32 px."""
    classes = tuple(sorted(path.name for path in tiny_photos.iterdir()))
    net = nets.create("vit_ti_32", len(classes))
    saved = checkpoint.Checkpoint(net=net, name="vit_ti_32", arguments={}, classes=classes, preprocess=Preprocess())
    checkpoint.save(tmp_path / "vit", saved)
    given = {**quick, "net": "mobilenet_v3_small", "width": 0.35, "weights": "none", "teacher": str(tmp_path / "vit")}
    given |= {"epochs": 1, "image_px": 224}
    assert handlens.fit(tiny_photos, out=tmp_path / "run", **given).recipe.train_px == 0
    told = r"the teacher .*vit cannot take the crops of this run: 208 px is not .*; .* 192 and 224 px: give --image-px"
    given["photos"] = "any"
    assert job.checked({**given, "image_px": 200}, Watcher()).train_px == 160
    for more in ({"train_px": 208}, {"image_px": 208, "train_px": 0}, {"image_px": 216, "train_px": 208}):
        with pytest.raises(HandlensError, match=told):
            job.checked({**given, **more}, Watcher())


@pytest.mark.parametrize(("what", "how"), [("teacher", ""), ("weights", ""), ("weights", "link"), ("weights", "home")])
def test_a_run_that_knows_the_test_photos_is_refused(
    what: str,
    how: str,
    full_run: Run,
    tiny_photos: Path,
    tmp_path: Path,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under another seed other photos are the test."""
    own = full_run.folder / files.WEIGHTS
    (tmp_path / "link.safetensors").symlink_to(own)
    monkeypatch.setenv("HOME", str(full_run.folder))
    named = {"link": str(tmp_path / "link.safetensors"), "home": f"~/{own.name}"}.get(how, str(own))
    given = {**quick, "net": full_run.recipe.net, "weights": "none", "mode": "full"}
    given[what] = named if what == "weights" else str(full_run.folder)
    with pytest.raises(HandlensError, match=rf"\({what}\) was trained on \d+ of the \d+ test photos") as caught:
        handlens.fit(tiny_photos, **{**given, "seed": full_run.recipe.seed + 1}, out=tmp_path / "run")
    assert f"--seed {full_run.recipe.seed} made" in caught.value.hint and not (tmp_path / "run").exists()
