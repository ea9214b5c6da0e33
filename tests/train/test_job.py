"""Whole runs: from photos to a judged classifier, and from a classifier to a better one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import handlens
from handlens import checkpoint, files, photos
from handlens.errors import HandlensError
from handlens.nets import weights
from handlens.train import Recipe, Run, Watcher, job, loop, modes, several, start, trial
from handlens.train.data import EARLIER, _meant, data_of
from handlens.train.recipe import read_toml

FILES = {
    "model.safetensors", "handlens.json", "recipe.toml", "split.json", "log.csv", "curves.png", "tensorboard",
    "report.html",
}  # fmt: skip
NET = "mobilenet_v3_small"


class Listens(Watcher):
    """Keeps all it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.folders: list[Path] = []
        self.counts: dict[str, list[tuple[int, int]]] = {}
        self.steps: list[loop.Step] = []
        self.logs: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def started(self, folder: Path) -> None:
        self.folders.append(folder)

    def count(self, what: str, done: int, total: int) -> None:
        self.counts.setdefault(what, []).append((done, total))

    def step(self, step: loop.Step) -> None:
        self.steps.append(step)

    def epoch(self, log: list[dict[str, float]]) -> None:
        self.logs.append(len(log))


@pytest.fixture
def given(weight_file: Path, quick: dict[str, Any]) -> dict[str, Any]:
    return {"net": NET, "weights": str(weight_file), "mode": "full", **quick}


def colour_photos(folder: Path, count: int, colour: tuple[int, int, int], seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(random.normal(colour, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}-{number:02}.png")


def sha256_of_split(run: Path, name: str) -> set[str]:
    return set(json.loads((run / "split.json").read_text(encoding="utf-8"))[name].values())


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_where_the_photos_lie_is_told(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(pixels: Any, recipe: Any, preprocess: Any, device: Any, note: Any) -> loop.Batches:
        note("the card is full")
        return loop.Batches(pixels, recipe, preprocess, device)

    monkeypatch.setattr("handlens.train.on_device.batches", batches)
    watcher = Listens()
    handlens.fit(tiny_photos, out=tmp_path / "run", watcher=watcher, **{**given, "epochs": 1})
    assert "the card is full" in watcher.notes


@pytest.mark.parametrize("mode", ["full", "last", "head", "scratch"])
def test_each_mode_leaves_a_whole_run(
    mode: str, tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))  # features that are there are not counted
    watcher = Listens()
    given |= {"mode": mode} | ({"weights": "none", "width": 0.35} if mode == "scratch" else {})
    run = handlens.fit(tiny_photos, out=tmp_path / "run", watcher=watcher, **given)
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert run.folder == tmp_path / "run"
    assert watcher.folders == [run.folder]
    assert run.classes == ("blue sky", "花朵", "🌿 leaf")
    assert run.recipe.mode == mode
    assert run.recipe.photos == str(tiny_photos)
    assert Recipe.read(run.folder / "recipe.toml") == run.recipe

    assert run.metrics["photos"] == {"train": 30, "validation": 3, "test": 3}
    assert run.metrics["epochs"] == 2
    assert run.metrics["seconds"] > 0
    for name in ("validation", "test"):
        assert run.metrics[name]["num_photos"] == 3
        assert 0 <= run.metrics[name]["top1_ci95"][0] <= run.metrics[name]["top1"] <= run.metrics[name]["top1_ci95"][1]
    facts = checkpoint.read_facts(run.folder)
    assert facts["metrics"] == json.loads(json.dumps(run.metrics))
    assert facts["recipe"] == dataclasses.asdict(run.recipe)

    assert Image.open(run.folder / "curves.png").size[0] > 500
    html = (run.folder / "report.html").read_text("utf-8")
    assert "3 test photos, cut with seed 0, which chose nothing" in html
    assert "Notes of the training" in html and "too few to calibrate" in html
    assert "handlens evaluate RUN --robustness --report robustness.html" in html
    lines = (run.folder / "log.csv").read_text().splitlines()
    assert len(lines) == 3
    assert {"epoch", "train_loss", "train_top1", "validation_loss", "validation_top1", "lr"} <= set(lines[0].split(","))
    assert [step for step, _ in scalars(run.folder, "train/loss")] == [1, 2]
    assert [value for _, value in scalars(run.folder, "train/loss")] == pytest.approx(
        [float(line.split(",")[1]) for line in lines[1:]], rel=1e-4
    )

    assert watcher.logs == [1, 2]
    assert len(watcher.steps) == (0 if mode == "head" else 8)
    judging = "features of photos to judge on" if mode == "head" else "judging on test photos"
    assert watcher.counts[judging][-1] == (3, 3)
    assert watcher.counts["looking at photos"][-1] == (36, 36)
    plan, *too_few = watcher.notes[-3:]
    assert "too few to calibrate" in too_few[0] and "50 are needed" in too_few[0]
    assert "no answer is called unknown" in too_few[1]
    assert facts["calibration"] is None and facts["rejection"] is None
    for said in (NET, f"mode {mode}", "3 classes, 30 train, 3 validation, 3 test", "2 epochs", "about", "cpu"):
        assert said in plan
    assert ("random weights" if mode == "scratch" else "small.safetensors") in plan

    classifier = handlens.load(run.folder)
    assert classifier.classes == run.classes
    guesses = classifier.predict(tiny_photos / "花朵" / "00.jpg", top=3)
    assert sum(guess.probability for guess in guesses) == pytest.approx(1, abs=1e-4)


def test_a_head_learns_to_tell_colours(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    given |= {"mode": "head", "epochs": 30, "lr": 0.01}
    run = handlens.fit(tiny_photos, out=tmp_path / "run", **given)
    assert run.metrics["test"]["top1"] == run.metrics["validation"]["top1"] == 1.0
    assert handlens.load(run.folder).predict(tiny_photos / "🌿 leaf" / "03.jpg", top=1)[0].name == "🌿 leaf"


def test_the_pixels_are_those_that_the_weights_were_made_for(full_run: Run) -> None:
    saved = checkpoint.load(full_run.folder)
    assert saved.preprocess.mean == saved.preprocess.std == (0.5, 0.5, 0.5)
    assert saved.preprocess.image_px == 32
    assert saved.arguments["padding"] == "tensorflow"
    assert saved.arguments["width"] == pytest.approx(0.35)


def test_a_run_without_weights_has_the_usual_pixels(tiny_photos: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    run = handlens.fit(tiny_photos, out=tmp_path / "run", net=NET, width=0.35, weights="none", **{**quick, "epochs": 1})
    assert run.recipe.mode == "scratch"
    usual = handlens.Preprocess().at(32)
    assert checkpoint.load(run.folder).preprocess == dataclasses.replace(usual, resize_px=32)


@pytest.mark.parametrize(("mode", "resize_px"), [("full", 32), ("last", 36), ("head", 36)])
def test_who_learns_as_a_whole_sees_the_whole_shorter_side(
    mode: str, resize_px: int, tiny_photos: Path, weight_file: Path
) -> None:
    recipe = Recipe(photos=str(tiny_photos), net=NET, weights=str(weight_file), mode=mode, image_px=32)
    preprocess = start.start_of(recipe, ("a", "b")).preprocess
    assert (preprocess.image_px, preprocess.resize, preprocess.resize_px) == (32, "crop", resize_px)


def test_whether_the_weights_say_their_pixels_is_told(tiny_photos: Path, weight_file: Path, tmp_path: Path) -> None:
    torch.save(safetensors.torch.load_file(weight_file), tmp_path / "model.pth")  # without its metadata
    recipe = Recipe(photos=str(tiny_photos), net=NET, weights=str(weight_file), mode="head", image_px=32)
    assert "pixels as they were made for" in start.start_of(recipe, ("a", "b")).note
    larger = dataclasses.replace(recipe, image_px=300)
    assert "pixels as they were made for, but 300 px in place of" in start.start_of(larger, ("a", "b")).note
    bare = dataclasses.replace(recipe, weights=str(tmp_path / "model.pth"))
    assert "weights model.pth, whose pixels and padding are a guess" in start.start_of(bare, ("a", "b")).note


@pytest.mark.parametrize("mode", ["full", "head"])
def test_the_recipe_repeats_the_run(
    mode: str, full_run: Run, tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = full_run
    if mode == "head":  # with two precisions tried the first time, and one the second
        monkeypatch.setattr(trial, "step_s", lambda *_: float(torch.rand(1)) + 1)
        given |= {"mode": "head", "precision": "auto"}
        first = handlens.fit(tiny_photos, out=tmp_path / "first", **given)
        assert first.recipe.head_hidden > 0
    again = handlens.fit(out=tmp_path / "again", **read_toml(first.folder / "recipe.toml"))
    assert again.recipe == first.recipe
    assert again.metrics["test"] == first.metrics["test"]
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (first, again)]
    assert weights[0] == weights[1]
    logs = [(run.folder / "log.csv").read_text().splitlines()[-1].split(",")[:6] for run in (first, again)]
    assert logs[0] == logs[1]


def test_a_hidden_layer_in_mode_full(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    run = handlens.fit(tiny_photos, out=tmp_path / "run", **{**given, "head_hidden": 24, "epochs": 1})
    saved = checkpoint.load(run.folder)
    assert saved.arguments["head_hidden"] == 24
    assert saved.net.classifier[-1].in_features == 24


def test_unequal_classes_are_weighed(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    for number in range(3, 12):
        (tmp_path / "photos" / "花朵" / f"{number:02}.jpg").unlink()
    watcher, other = Listens(), Listens()
    run = handlens.fit(tmp_path / "photos", out=tmp_path / "run", watcher=watcher, **{**given, "epochs": 1})
    assert run.recipe.balance == "weights"
    few = "learned from no more than 1 photo each: '花朵'; add photos, or remove them"
    assert few in watcher.notes and few in run.metrics["notes"]
    weighed = "photos of rare classes count up to 10 times as much as others (--balance weights), for the classes have "
    assert sum(note.startswith(weighed) for note in watcher.notes) == 1
    given |= {"epochs": 1, "balance": "none"}
    kept = handlens.fit(tmp_path / "photos", out=tmp_path / "kept", watcher=other, **given)
    assert kept.recipe.balance == "none"
    assert not any(note.startswith(weighed) for note in other.notes)
    assert (run.folder / "model.safetensors").read_bytes() != (kept.folder / "model.safetensors").read_bytes()


def huge_png(path: Path) -> None:
    """A PNG that says it has 60,000 x 60,000 pixels, in 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_broken_photos_are_left_out_and_named(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "photos 花 🌼"
    shutil.copytree(tiny_photos, root)
    whole = (root / "花朵" / "00.jpg").read_bytes()
    (root / "花朵" / "00.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "花朵" / "01.jpg").write_bytes(b"no photo")
    huge_png(root / "花朵" / "huge.png")
    watcher = Listens()
    run = handlens.fit(root, out=tmp_path / "a run", watcher=watcher, **{**given, "epochs": 1})
    assert sum(run.metrics["photos"].values()) == 34
    for name in ("花朵/00.jpg", "花朵/01.jpg", "花朵/huge.png"):
        note = next(note for note in watcher.notes if name in note)
        assert note.startswith("left out")
        assert note in run.metrics["notes"]
        assert name not in (run.folder / "split.json").read_text("utf-8")
    assert "too many pixels" in next(note for note in watcher.notes if "huge" in note)
    data = data_of(run.recipe, run.folder / "split.json")
    assert [path for path, _ in data.left_out] == ["花朵/00.jpg", "花朵/01.jpg", "花朵/huge.png"]
    onward = Recipe(continue_run=str(run.folder), photos=run.recipe.photos)
    assert data_of(onward, None).left_out == data.left_out


def test_identical_photos_are_on_one_side(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(tiny_photos, root)
    for photo in sorted((root / "花朵").iterdir()):
        shutil.copy(photo, photo.with_name("copy of " + photo.name))
    watcher = Listens()
    run = handlens.fit(root, out=tmp_path / "run", watcher=watcher, **{**given, "epochs": 1})
    note = next(note for note in watcher.notes if note.startswith("12 groups of identical photos"))
    assert "each on one side of the split" in note and "changed sides" not in note
    hashes = [sha256_of_split(run.folder, name) for name in ("train", "validation", "test")]
    assert not hashes[0] & hashes[1]
    assert not hashes[0] & hashes[2]
    assert not hashes[1] & hashes[2]


def test_another_seed_cuts_another_split(full_run: Run, tiny_photos: Path) -> None:
    splits = [data_of(Recipe(photos=str(tiny_photos), seed=seed), None).splits for seed in (0, 1)]
    stored = json.loads((full_run.folder / "split.json").read_text("utf-8"))
    assert set(splits[0]["test"].paths) == set(stored["test"])
    assert splits[0]["test"].paths != splits[1]["test"].paths


def test_so_few_photos_that_a_class_has_one(given: dict[str, Any], tmp_path: Path) -> None:
    colour_photos(tmp_path / "photos" / "many", 3, (200, 20, 20), 0)
    colour_photos(tmp_path / "photos" / "one", 1, (20, 200, 20), 1)
    watcher = Listens()
    del given["mode"]
    given |= {"epochs": 1, "head_views": 5}
    run = handlens.fit(tmp_path / "photos", out=tmp_path / "run", watcher=watcher, **given)
    assert run.metrics["photos"] == {"train": 2, "validation": 1, "test": 1}
    assert run.recipe.mode == "last"  # chosen, and said why
    assert "mode last does not use head_views" in watcher.notes
    assert [note for note in watcher.notes if "mode last is chosen for 1 training photo a class" in note]


def test_a_run_goes_below_runs_by_default(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_photos, "my photos")
    name = f"my-photos-{NET}-full"
    for other in (f"{name}-2", f"{name}-10-old3", f"{name}-old"):
        Path("runs", other).mkdir(parents=True)
    run = handlens.fit("my photos", **{**given, "epochs": 1})
    assert run.folder == Path("runs", f"{name}-3")
    assert run.recipe.photos == str(tmp_path / "my photos")  # the run can be used from anywhere


# ---- continued runs --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def more_photos(tmp_path_factory: pytest.TempPathFactory, tiny_photos: Path) -> Path:
    """Six new photos of a known class, ten of a new one, and two that the runs have already."""
    root = tmp_path_factory.mktemp("more")
    colour_photos(root / "花朵", 6, (220, 60, 60), 7)
    colour_photos(root / "a new one", 10, (230, 230, 30), 8)
    for number, name in enumerate(("00.jpg", "01.jpg")):
        shutil.copy(tiny_photos / "blue sky" / name, root / "a new one" / f"known {number}.jpg")
    return root


@pytest.fixture(scope="module")
def continued(
    session_cache: None, full_run: Run, more_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Listens]:
    watcher = Listens()
    out = tmp_path_factory.mktemp("continued") / "run"
    quick = {"epochs": 1, "batch_size": 8, "precision": "32-true"}
    run = handlens.fit(out=out, continue_run=str(full_run.folder), add=str(more_photos), watcher=watcher, **quick)
    return run, watcher


def test_whether_photos_are_mirrored_is_taken_over(full_run: Run, tmp_path: Path) -> None:
    """Arrows to the left and right would spoil the network that tells them apart."""
    run = shutil.copytree(full_run.folder, tmp_path / "run")
    facts = files.read_json(run / files.FACTS)
    for flip in (False, True):
        files.write_json(run / files.FACTS, {**facts, "recipe": {**facts["recipe"], "flip": flip}})
        assert start.defaults_from_run(str(run), {})["flip"] is flip
        assert start.defaults_from_run(str(run), {"flip": not flip})["flip"] is not flip
    earlier = {name: value for name, value in facts["recipe"].items() if name != "flip"}
    files.write_json(run / files.FACTS, {**facts, "recipe": earlier})
    assert start.defaults_from_run(str(run), {})["flip"] is True


def test_the_recipe_is_the_last_that_a_run_that_begins_writes(
    tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: dict[str, Any]
) -> None:
    """With it a run that is killed then can be gone on with; without it nothing takes the folder for a run."""
    there: list[set[str]] = []
    real = Recipe.write

    def write(self: Recipe, path: Path) -> None:
        there.append({found.name for found in path.parent.iterdir()})
        real(self, path)

    monkeypatch.setattr(Recipe, "write", write)
    monkeypatch.setattr(job.modes, "fit_whole", lambda *_, **__: pytest.fail("it goes on"))
    with pytest.raises(pytest.fail.Exception):
        handlens.fit(tiny_photos, out=tmp_path / "run", net=NET, width=0.35, weights="none", **quick)
    assert there and files.SPLIT in there[0]


def test_continued_the_old_test_photos_stay(full_run: Run, continued: tuple[Run, Listens], more_photos: Path) -> None:
    run, watcher = continued
    assert run.classes == (*full_run.classes, "a new one")
    for name in ("train", "validation", "test"):
        assert sha256_of_split(full_run.folder, name) < sha256_of_split(run.folder, name) or name == "test"
    added = {path.name: files.sha256_of(path) for path in more_photos.rglob("*.*")}
    new_in_test = sha256_of_split(run.folder, "test") - sha256_of_split(full_run.folder, "test")
    assert sha256_of_split(full_run.folder, "test") <= sha256_of_split(run.folder, "test")
    assert new_in_test
    assert new_in_test <= {value for name, value in added.items() if name.startswith("8-")}  # of the new class only
    assert run.metrics["photos"] == {"train": 30 + 5 + 8, "validation": 3 + 1 + 1, "test": 3 + 1}
    assert any("left out 2 added photos that the run has already" in note for note in watcher.notes)
    assert any("3 test photos of" in note and "kept as they were" in note for note in watcher.notes)
    assert len(run.metrics["test"]["per_class"]) == 4


def test_continued_the_network_is_the_runs(full_run: Run, continued: tuple[Run, Listens]) -> None:
    run, _ = continued
    assert (run.recipe.net, run.recipe.image_px, run.recipe.weights) == (NET, 32, "none")
    before, after = checkpoint.load(full_run.folder), checkpoint.load(run.folder)
    assert after.preprocess == before.preprocess
    assert after.arguments == before.arguments
    begun = start.start_of(run.recipe, run.classes)
    assert torch.equal(begun.net.classifier[-1].weight[:3], before.net.classifier[-1].weight)
    assert torch.equal(begun.net.classifier[-1].bias[:3], before.net.classifier[-1].bias)
    backbone = [key for key in before.net.state_dict() if not key.startswith("classifier")]
    assert all(torch.equal(begun.net.state_dict()[key], before.net.state_dict()[key]) for key in backbone)


def test_a_continued_run_is_judged_again_on_its_own_split(continued: tuple[Run, Listens]) -> None:
    run, _ = continued
    recipe = Recipe(**checkpoint.read_facts(run.folder)["recipe"])
    data = data_of(recipe, run.folder / "split.json")
    assert data.classes == run.classes
    assert {name: len(part) for name, part in data.splits.items()} == run.metrics["photos"]
    for name, part in data.splits.items():
        assert {data.sha256[path] for path in part.paths} == sha256_of_split(run.folder, name)
        assert all(part.path(index).is_file() for index in range(len(part)))


def test_photos_that_came_after_a_continued_run_change_nothing_of_it(
    full_run: Run, more_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(more_photos, tmp_path / "more")
    quick = {"epochs": 1, "batch_size": 8, "precision": "32-true"}
    run = handlens.fit(out=tmp_path / "run", continue_run=full_run.folder, add=tmp_path / "more", **quick)
    colour_photos(tmp_path / "more" / "a new one", 30, (230, 230, 30), 12)
    colour_photos(tmp_path / "more" / "a later one", 9, (30, 230, 230), 13)
    (tmp_path / "more" / "an empty one").mkdir()
    data = data_of(run.recipe, run.folder / "split.json")
    assert data.classes == run.classes
    for name, part in data.splits.items():
        assert {data.sha256[path] for path in part.paths} == sha256_of_split(run.folder, name)


def test_a_continued_run_is_continued(
    continued: tuple[Run, Listens], full_run: Run, tmp_path: Path, quick: dict[str, Any]
) -> None:
    run, _ = continued
    colour_photos(tmp_path / "third" / "blue sky", 3, (40, 80, 220), 11)
    given = {"epochs": 1, "batch_size": 8, "precision": "32-true", "mode": "last"}
    third = handlens.fit(out=tmp_path / "run", continue_run=run.folder, add=tmp_path / "third", **given)
    assert third.classes == run.classes
    assert sha256_of_split(third.folder, "test") == sha256_of_split(run.folder, "test")
    assert third.metrics["photos"] == {"train": 43 + 2, "validation": 5 + 1, "test": 4}
    again = handlens.fit(out=tmp_path / "again", continue_run=third.folder, **given)
    assert again.metrics["photos"] == third.metrics["photos"]
    assert again.classes == run.classes


def test_photos_added_to_the_same_folder_are_learned(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(tiny_photos, root)
    first = handlens.fit(root, out=tmp_path / "first", **{**given, "epochs": 1})
    colour_photos(root / "花朵", 3, (220, 60, 60), 5)
    colour_photos(root / "a new one", 5, (230, 230, 30), 6)
    quick = {"epochs": 1, "batch_size": 8, "precision": "32-true"}
    plain = handlens.fit(out=tmp_path / "plain", continue_run=str(first.folder), **quick)
    assert plain.classes == first.classes
    assert plain.metrics["photos"] == first.metrics["photos"]
    assert any("8 photos of" in note and "came later: in no split of" in note for note in plain.metrics["notes"])
    second = handlens.fit(out=tmp_path / "second", continue_run=str(first.folder), add=str(root), **quick)
    assert second.classes == (*first.classes, "a new one")
    assert sum(second.metrics["photos"].values()) == 36 + 8
    assert sha256_of_split(first.folder, "test") <= sha256_of_split(second.folder, "test")


def test_a_head_with_a_hidden_layer_is_continued(
    tiny_photos: Path, more_photos: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    first = handlens.fit(tiny_photos, out=tmp_path / "first", **{**given, "mode": "head", "head_hidden": 20})
    quick = {"epochs": 1, "batch_size": 8, "precision": "32-true"}
    for mode in ("head", "full"):
        run = handlens.fit(
            out=tmp_path / mode, continue_run=str(first.folder), add=str(more_photos), mode=mode, **quick
        )
        saved = checkpoint.load(run.folder)
        assert saved.arguments["head_hidden"] == 20
        assert [type(layer).__name__ for layer in saved.net.classifier[-4:]] == ["Linear", "ReLU", "Dropout", "Linear"]
        assert len(saved.net.classifier) == len(checkpoint.load(first.folder).net.classifier)


def test_a_photos_own_normalisation_stays_with_the_run_and_those_after_it(
    tiny_photos: Path, tmp_path: Path, quick: dict[str, Any]
) -> None:
    settings = {**quick, "epochs": 1, "net": "mobilenet_v3_small", "width": 0.35}
    first = handlens.fit(tiny_photos, out=tmp_path / "first", weights="none", normalisation="z-score", **settings)
    contract = handlens.load(first.folder).preprocess
    assert (contract.normalisation, contract.mean, contract.std) == ("z-score", (0, 0, 0), (1, 1, 1))
    again = handlens.fit(out=tmp_path / "again", continue_run=str(first.folder), **{**quick, "epochs": 1})
    weights = str(first.folder / "model.safetensors")
    tuned = handlens.fit(tiny_photos, out=tmp_path / "tuned", weights=weights, **settings)
    assert handlens.load(again.folder).preprocess == handlens.load(tuned.folder).preprocess == contract


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"net": "mobilenet_v2"}, r"net is mobilenet_v2, but .* goes on with its own, mobilenet_v3_small"),
        ({"image_px": 64}, r"image_px is 64, but .* goes on with its own, 32; leave out --image-px"),
        ({"width": 0.5}, r"width is 0.5, but .* goes on with its own"),
        ({"normalisation": "l2"}, r"normalisation is l2, but .* goes on with its own; leave out --normalisation"),
        ({"head_hidden": 5}, r"head_hidden is 5, but .* goes on with its own, 0"),
        ({"weights": "imagenet"}, r"weights is imagenet, but .* goes on with its own; leave out --weights"),
        ({"mode": "scratch"}, "a continued run does not start from scratch"),
        ({"add": "nowhere"}, "there is no folder nowhere"),
        ({"add": "SAME"}, "has no photo that the run does not have already"),
    ],
)
def test_what_does_not_fit_the_earlier_run(
    full_run: Run, tiny_photos: Path, tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    more = {name: str(tiny_photos) if value == "SAME" else value for name, value in more.items()}
    with pytest.raises(HandlensError, match=sentence):
        handlens.fit(out=tmp_path / "run", continue_run=str(full_run.folder), **more)
    assert not (tmp_path / "run").exists()


def test_photos_of_the_earlier_run_that_are_gone(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    run = handlens.fit(tmp_path / "photos", out=tmp_path / "run", **{**given, "epochs": 1})
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(HandlensError, match=r"are no longer in .*photos; name where they are now"):
        handlens.fit(out=tmp_path / "next", continue_run=str(run.folder))
    quick = {"epochs": 1, "batch_size": 8, "precision": "32-true"}
    moved = handlens.fit(tmp_path / "moved", out=tmp_path / "next", continue_run=str(run.folder), **quick)
    assert sha256_of_split(moved.folder, "test") == sha256_of_split(run.folder, "test")


@pytest.fixture
def without_the_first(
    full_run: Run, more_photos: Path, tmp_path: Path, quick: dict[str, Any]
) -> tuple[Run, dict[str, photos.Photos]]:
    """A run that went on from one that is gone, with photos added; and its splits from before."""
    first = Path(shutil.copytree(full_run.folder, tmp_path / "first"))
    run = handlens.fit(out=tmp_path / "second", continue_run=first, add=more_photos, **{**quick, "epochs": 1})
    splits = data_of(run.recipe, run.folder / "split.json").splits
    shutil.rmtree(first)
    return run, splits


def test_a_continued_run_needs_no_more_than_its_own_folder(
    without_the_first: tuple[Run, dict[str, photos.Photos]],
    more_photos: Path,
    tmp_path: Path,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, splits = without_the_first
    moved = run.folder.rename(tmp_path / "moved")
    third = handlens.fit(out=tmp_path / "third", continue_run=moved, mode="last", **{**quick, "epochs": 1})
    assert third.classes == run.classes and third.metrics["photos"] == run.metrics["photos"]
    shutil.rmtree(moved)
    found = data_of(third.recipe, third.folder / "split.json").splits
    for name, part in splits.items():
        assert {part.path(index).resolve() for index in range(len(part))} == {
            found[name].path(index).resolve() for index in range(len(found[name]))
        }
    assert not {path for path in third.folder.rglob("*.safetensors") if "earlier" in path.parts}


def test_where_the_earlier_run_is_needed_it_is_named(
    without_the_first: tuple[Run, dict[str, photos.Photos]], tmp_path: Path
) -> None:
    run, _ = without_the_first
    with pytest.raises(HandlensError, match=r"first, whose weights this training begins with, .*; put it back, or"):
        start.start_of(run.recipe, run.classes)
    shutil.rmtree(run.folder / EARLIER)  # as earlier versions left it
    with pytest.raises(HandlensError, match=r"second goes on from .*first, which tells .*; put that run back"):
        data_of(run.recipe, run.folder / "split.json")


# ---- failures --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"epoch": 3}, "a recipe has no 'epoch'"),
        ({"epochs": "3"}, "epochs is '3', expected int"),
        ({"mode": "fast"}, "mode is 'fast', expected full, last, head or scratch"),
        ({"mode": "scratch"}, "--mode scratch starts from random weights, and --weights is"),
        ({"mode": "head", "weights": "none"}, "--mode head trains on top of weights, and --weights is none"),
        ({"mode": "last", "weights": "none"}, "--mode last trains on top of weights"),
        ({"image_px": 16}, "16 px is too small an input"),
        ({"train_px": 15}, "15 px is too small an input"),
        ({"first_px": 14}, "14 px is too small an input"),
        ({"last_px": 14}, "14 px is too small an input"),
        ({"weights": Path("nowhere.safetensors")}, "the weight file nowhere.safetensors does not exist"),
        ({"device": "cuda"}, "device is 'cuda', and torch finds none here; try --device auto"),
        ({"device": None}, "device is None, expected auto, cpu, cuda or mps"),
        ({"devices": -2}, "device 'auto' x -2 cannot be had here"),
        ({"devices": "x"}, "device 'auto' x x cannot be had here"),
        ({"add": "more"}, "--add needs the run that it adds to"),
        ({"photos": "nowhere"}, "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_no_folder(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    if more.get("device") and torch.cuda.is_available():
        pytest.skip("there is one here")
    given = {"photos": str(tiny_photos), **given, **more}
    with pytest.raises(HandlensError) as caught:
        handlens.fit(out=tmp_path / "run", **given)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_full_without_weights_is_scratch_and_says_so() -> None:
    watcher = Listens()
    for mode, told in (("full", 1), (None, 0)):
        watcher.notes.clear()
        given = job.settled({"weights": "none", **({"mode": mode} if mode else {})}, watcher)
        assert given["mode"] == "scratch"
        assert len(watcher.notes) == told
    onward = {"mode": "full", "weights": "none", "continue_run": "run"}
    assert job.settled(onward, watcher)["mode"] == "full"
    assert watcher.notes == []
    del given
    job.settled({"mode": "full", "weights": "none"}, watcher)
    assert watcher.notes == ["mode scratch is taken in place of full, which fine-tunes weights: --weights is none"]


def test_downloads_are_counted_and_come_before_photos_are_looked_at(
    tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(name: str, progress: Callable[[int, int], None]) -> Path:
        progress(3, 9)
        return tiny_photos

    def find(net: str, given: str, width: float, progress: Callable[[int, int], None]) -> None:
        progress(5, 0)
        raise HandlensError("no network")

    monkeypatch.setattr(sys.modules["handlens.photos.scan"], "fetch_published", fetched)
    monkeypatch.setattr(weights, "find", find)
    watcher = Listens()
    with pytest.raises(HandlensError, match="no network"):
        handlens.fit("flower_photos", out=tmp_path / "run", watcher=watcher)
    assert watcher.counts == {"downloading photos": [(3, 9)], "downloading weights": [(5, 0)]}
    for more in ({"folds": 2}, {"repeats": 2}):
        with pytest.raises(HandlensError, match="no network"):
            several.begin("flower_photos", tmp_path / "runs", {}, watcher=watcher, **more)
    assert "looking at photos" not in watcher.counts
    with pytest.raises(HandlensError, match="there is no folder nowhere"):
        handlens.fit("nowhere", out=tmp_path / "run")


@pytest.mark.parametrize(
    ("below", "sentence"), [("花朵", "12 photos but no class folders"), ("..", "did you mean .*photos")]
)
def test_a_wrong_folder_is_told_before_weights_are_fetched(
    below: str, sentence: str, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find", lambda *_, **__: pytest.fail("weights were fetched"))
    shutil.copytree(tiny_photos, tmp_path / "above" / "photos")
    with pytest.raises(HandlensError, match=sentence):
        handlens.fit(tmp_path / "above" / "photos" / below, out=tmp_path / "run")


def test_what_was_chosen_has_a_reason(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = weights.find(NET, given["weights"], 1.0)
    monkeypatch.setattr(weights, "find", lambda *_, **__: found)
    monkeypatch.setattr(modes, "fit_whole", lambda *_, **__: pytest.fail("the training began"))
    for default in (True, False):
        watcher = Listens()
        begun: list[tuple[Path, int]] = []
        monkeypatch.setattr(watcher, "started", lambda folder, b=begun, w=watcher: b.append((folder, len(w.notes))))
        own = {name: value for name, value in given.items() if not default or name not in ("net", "weights", "mode")}
        with pytest.raises(pytest.fail.Exception):
            handlens.fit(tiny_photos, out=tmp_path / str(default), watcher=watcher, **own)
        assert (f"{NET} (the default) at 32 px" in watcher.notes[-1]) == default
        assert ("small.safetensors (the best published for it), " in watcher.notes[-1]) == default
        assert begun == [(tmp_path / str(default), len(watcher.notes) - 1)]  # before the plan, which takes a while


def test_no_photos_at_all(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="no photos were given"):
        handlens.fit(out=tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"out": ""}, "exists already"),
        ({"out": "file/run"}, "file is no folder"),
        ({"weights": "no-weights.pth"}, "no-weights.pth"),
        ({"weights": "imagenet", "net": "mobilenet_v1_050"}, "no ImageNet weights are published for mobilenet_v1_050"),
        ({"weights": "none", "mode": "head"}, "--mode head trains on top of weights"),
        ({"weights": "none", "net": "vit_s_16", "image_px": 200, "mode": "scratch"}, "200 px is not a multiple of 16"),
        ({"teacher": "typo"}, "there is no run folder typo"),
        ({"teacher": "RUN", "mode": "head"}, "mode head trains on stored features, which a teacher does not see"),
    ],
)
def test_what_is_wrong_anyway_is_told_before_photos_are_looked_at(
    more: dict[str, Any],
    sentence: str,
    full_run: Run,
    tiny_photos: Path,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handlens.train.data.look", lambda *_, **__: pytest.fail("the photos were looked at"))
    (tmp_path / "no-weights.pth").write_bytes(b"no weights")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    more = {name: str(full_run.folder) if value == "RUN" else value for name, value in more.items()}
    more["out"] = tmp_path / more.get("out", "run")
    with pytest.raises(HandlensError, match=sentence):
        handlens.fit(tiny_photos, **{**given, **more})
    assert not (tmp_path / "run").exists()


def test_a_head_is_not_pruned_which_is_told_before_photos_are_looked_at(
    full_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.train.data.look", lambda *_, **__: pytest.fail("the photos were looked at"))
    with pytest.raises(HandlensError, match="a pruned network has to be trained as a whole again"):
        handlens.fit(continue_run=str(full_run.folder), prune=0.3, mode="head", out=tmp_path / "run")


def test_runs_that_cannot_be_written_are_told_before_photos_are_looked_at(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.train.data.look", lambda *_, **__: pytest.fail("the photos were looked at"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(HandlensError, match="runs is no folder"):
        handlens.fit(tiny_photos, **given)


@pytest.mark.parametrize(
    ("more", "sentence"), [({"epochs": 0}, "epochs is 0, expected 1"), ({"out": "."}, "exists already")]
)
def test_what_is_wrong_anyway_is_told_before_other_processes_are_begun(
    more: dict[str, Any],
    sentence: str,
    tiny_photos: Path,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job.Fabric, "launch", lambda *_: pytest.fail("processes were begun"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HandlensError, match=sentence):
        handlens.fit(tiny_photos, device="cpu", devices=2, **{**given, "out": "run", **more})


@pytest.mark.parametrize("told", [{"LOCAL_RANK": "1"}, {"NODE_RANK": "1"}])
def test_another_process_neither_speaks_nor_minds_the_folder_that_the_first_has_made(
    told: dict[str, str], full_run: Run, tiny_photos: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class LaunchedError(Exception):
        pass

    def launch(*_: Any) -> None:
        raise LaunchedError

    monkeypatch.setattr(job.Fabric, "launch", launch)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    watcher = Listens()
    continued = {"continue_run": str(full_run.folder), "epochs": 1}
    for start_of in ({"photos": str(tiny_photos), **given}, continued):
        with pytest.raises(LaunchedError):
            handlens.fit(out=full_run.folder, device="cpu", devices=2, watcher=watcher, **start_of)
    assert not watcher.notes


def test_a_folder_that_exists_is_left_as_it_is(
    full_run: Run, tiny_photos: Path, given: dict[str, Any], tmp_path: Path
) -> None:
    for out in (full_run.folder, tmp_path):
        before = sorted(path.name for path in out.iterdir())
        with pytest.raises(HandlensError, match="exists already; choose another --out"):
            handlens.fit(tiny_photos, out=out, **given)
        assert sorted(path.name for path in out.iterdir()) == before
    (tmp_path / "run").mkdir()
    shutil.copy(full_run.folder / "recipe.toml", tmp_path / "run")  # one that was interrupted
    with pytest.raises(HandlensError, match=r"go on with: handlens train --resume --out .*run, or remove it"):
        handlens.fit(tiny_photos, out=tmp_path / "run", **given)


def test_a_disk_that_is_full_from_the_start_leaves_nothing(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(HandlensError, match="the disk is full"):
        handlens.fit(tiny_photos, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_leaves_what_can_be_resumed(
    full_run: Run, tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "log.csv":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(HandlensError, match=r"the disk is full: .*log.csv"):
            handlens.fit(tiny_photos, out=tmp_path / "run", **given)
    run = handlens.fit(out=tmp_path / "run", resume=True)
    assert run.metrics["test"] == full_run.metrics["test"]
    assert len((run.folder / "log.csv").read_text().splitlines()) == 3


def test_a_photo_that_is_gone_meanwhile_is_named(tiny_photos: Path, given: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(tiny_photos, root)

    class Removes(Watcher):
        def started(self, folder: Path) -> None:
            for photo in (root / "花朵").iterdir():
                photo.unlink()

    with pytest.raises(HandlensError, match=r"花朵.*does not exist"):
        handlens.fit(root, out=tmp_path / "run", watcher=Removes(), **given)


def test_the_folder_of_a_run_counts_as_finished_when_it_is_judged(full_run: Run, tmp_path: Path) -> None:
    assert job.is_finished(full_run.folder)
    assert not job.is_finished(tmp_path)


@pytest.fixture
def command(tiny_photos: Path, weight_file: Path, quick: dict[str, Any], tmp_path: Path) -> list[str]:
    """A quick training on the CPU, without its mode and the number of its processes."""
    options = {"--net": NET, "--weights": weight_file, "--out": tmp_path / "run", "--device": "cpu"}
    options |= {"--" + name.replace("_", "-"): value for name, value in quick.items()}
    parts = [sys.executable, "-m", "handlens", "train", tiny_photos, "--json"]
    return [str(part) for part in (*parts, *(part for pair in options.items() for part in pair))]


def check_one_run(folder: Path, stdout: str, tiny_photos: Path) -> None:
    assert json.loads(stdout)["metrics"]["photos"] == {"train": 30, "validation": 3, "test": 3}  # one process speaks
    assert {path.name for path in folder.iterdir()} == FILES
    assert len((folder / "log.csv").read_text().splitlines()) == 3
    assert handlens.load(folder).classes == photos.scan(tiny_photos).classes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "last", "head"])
def test_two_processes_give_one_run(mode: str, command: list[str], tiny_photos: Path, tmp_path: Path) -> None:
    command += ["--mode", mode, "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_one_run(tmp_path / "run", done.stdout, tiny_photos)


FILLS_UP = """
from handlens import cli
from handlens.errors import HandlensError
from handlens.train import job

def full(*_, **__):
    raise HandlensError("the disk is full")

job._begin = full
cli.main()
"""


@pytest.mark.slow
def test_where_the_first_process_fails_the_second_shows_no_traceback(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "fills_up.py").write_text(FILLS_UP)
    command[1:3] = [str(tmp_path / "fills_up.py")]
    command += ["--mode", "full", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the disk is full" in done.stderr
    assert "another process of this training has ended" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_machines_give_one_run(command: list[str], tiny_photos: Path, tmp_path: Path) -> None:
    """Each "machine" is a process that is told its rank by its environment, as docs/your-photos.md says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += ["--mode", "full", "--num-nodes", "2"]
    machines = []
    for rank in range(2):
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank)}
        machines.append(
            subprocess.Popen(command, env=os.environ | told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = [machine.communicate() for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert said[1][0] == ""
    check_one_run(tmp_path / "run", said[0][0], tiny_photos)


def test_fewer_photos_than_processes_need(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour_photos(tmp_path / "photos" / "many", 3, (200, 20, 20), 0)
    colour_photos(tmp_path / "photos" / "one", 1, (20, 200, 20), 1)
    monkeypatch.setattr("lightning_fabric.Fabric.launch", lambda *_: None)
    monkeypatch.setattr("lightning_fabric.Fabric.world_size", 2)
    with pytest.raises(HandlensError, match=r"2 training photos cannot be shared by 2 processes.*give --devices 1"):
        handlens.fit(tmp_path / "photos", out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    loop.check_enough(4, 2)


def test_lightning_fabric_says_nothing_of_its_own() -> None:
    told: list[logging.LogRecord] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record)

    listening = Listening()
    logger = logging.getLogger("lightning_fabric")
    logger.addHandler(listening)
    logger.setLevel(logging.INFO)
    try:
        job._fabric("cpu", 1, 1, "bf16-mixed")
    finally:
        logger.removeHandler(listening)
    assert not told


def test_float16_on_a_processor_is_refused_before_photos_are_looked_at(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "data_of", lambda *_, **__: pytest.fail("looked at photos"))
    given["precision"] = "16-mixed"
    for device in ("cpu", "auto"):
        monkeypatch.setattr(job, "default_device", lambda: torch.device("cpu"))
        with pytest.raises(HandlensError, match=r"16-mixed is for graphics cards; use bf16-mixed or auto"):
            handlens.fit(tiny_photos, out=tmp_path / "run", device=device, **given)
        with pytest.raises(HandlensError, match=r"16-mixed is for graphics cards"):  # as where a run goes on
            job._fabric(device, 1, 1, "16-mixed")
    assert not (tmp_path / "run").exists()


def test_a_tilde_is_the_home_folder(
    full_run: Run, tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    run = Path(shutil.copytree(full_run.folder, tmp_path / "run"))
    assert job.absolute("~/run") == str(run)
    assert (job.absolute("~/none"), job.absolute("flower_photos")) == ("~/none", "flower_photos")
    for asked, sentence in (
        ({"photos": tiny_photos, **given}, f"{run} exists already"),
        ({"resume": True}, f"{run} is finished"),
        ({"continue_run": "~/run", "epochs": 1}, f"{run} exists already"),
        ({"continue_run": Path("~", "run"), "mode": "scratch"}, "a continued run does not start from scratch"),
    ):
        with pytest.raises(HandlensError) as caught:
            handlens.fit(out="~/run", **asked)
        assert caught.value.message == sentence


def test_two_trainings_at_once_have_two_folders(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have chosen their folder before one of them makes it."""
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(photos=str(tiny_photos), seed=3)
    data = data_of(recipe, None)
    folders = [job._begin(Path("runs/tiny-1"), recipe, data, named=False) for _ in range(3)]
    assert [folder.name for folder in folders] == ["tiny-1", "tiny-2", "tiny-3"]
    before = {path.name: path.read_bytes() for path in folders[0].iterdir()}
    with pytest.raises(HandlensError, match="exists already; go on with: handlens train --resume"):
        job._begin(folders[0], recipe, data, named=True)
    assert {path.name: path.read_bytes() for path in folders[0].iterdir()} == before


def test_folders_that_stand_for_a_class_are_learned_as_it(tiny_photos: Path, tmp_path: Path) -> None:
    """The service keeps a photo of "Viola spp." in a folder without the dot, which not every system would have."""
    known = ("Viola spp.", "a/b", "rose", "Unknown")
    for name in ("Viola spp", "a_b", "rose", "lily", "Unknown-2"):  # "unknown" is the name of another folder
        colour_photos(tmp_path / name, 2, (10, 20, 30), len(name))
    found = _meant(photos.scan(tmp_path), known)
    assert found.classes == ("Unknown", "Viola spp.", "a/b", "lily", "rose")
    learned = {Path(path).parent.name: found.classes[k] for path, k in zip(found.paths, found.labels, strict=True)}
    meant = {"Viola spp": "Viola spp.", "a_b": "a/b", "rose": "rose", "lily": "lily", "Unknown-2": "Unknown"}
    assert learned == meant


def test_what_is_needed_at_the_end_is_missed_at_the_beginning(
    tiny_photos: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(job.NEEDED, "tensorboard", "not_there")
    with pytest.raises(HandlensError, match=r'needs tensorboard, .*pip install "handlens\[train\]"'):
        handlens.fit(tiny_photos, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_another_default_type_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(HandlensError, match=r"default type is torch\.float64, expected torch\.float32"):
            job.fit(tmp_path, out=tmp_path / "run")
    finally:
        torch.set_default_dtype(torch.float32)
    assert not (tmp_path / "run").exists()
