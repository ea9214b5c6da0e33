"""Several trainings for one figure: the plan that an interruption leaves, and what is made of the figures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlens import files, photos
from handlens.errors import HandlensError
from handlens.evaluate.metrics import wilson
from handlens.train import Recipe, Watcher, loop, several
from handlens.train.data import data_of


def planned(kind: str) -> several.Plan:
    return several.Plan(Path("runs"), "folds" if kind == "folds" else "repeats", "photos", {}, ())


def row(right: int, num_photos: int) -> dict[str, Any]:
    return {"run": "r", "seed": 0, "num_photos": num_photos, "top1": right / num_photos, "top1_ci95": [0, 1]}


def test_folds_count_each_photo_alike() -> None:
    found = several.summary(planned("folds"), [row(1, 2), row(9, 10)])
    assert found["mean"] == pytest.approx(0.7) and found["mean_ci95"] is None  # of the folds
    assert found["all_photos"]["num_photos"] == 12
    assert found["all_photos"]["top1"] == pytest.approx(10 / 12)
    low, high = found["all_photos"]["top1_ci95"]
    assert (low, high) == (pytest.approx(0.5520, abs=1e-4), pytest.approx(0.9530, abs=1e-4))  # Wilson's, by hand
    copies = [row(1, 2), {**row(9, 10), "effective_num_photos": 5.0}]
    trials = 12**2 / (2 + 10**2 / 5)  # Kish's of the two folds together
    assert several.summary(planned("folds"), copies)["all_photos"]["top1_ci95"] == list(
        wilson(10 / 12 * trials, trials)
    )


def test_seeds_test_some_photos_twice_and_are_not_joined() -> None:
    found = several.summary(planned("repeats"), [row(1, 2), row(9, 10)])
    assert "all_photos" not in found
    assert found["standard_deviation"] == pytest.approx(0.2828, abs=1e-4)
    assert found["mean_ci95"] == [0, 1]  # two tell hardly anything
    assert several.summary(planned("repeats"), [row(1, 2), row(1, 2)])["mean_ci95"] is None


def test_what_was_judged_on_no_photo_counts_for_nothing() -> None:
    nothing = {"run": "r", "seed": 0, "num_photos": None, "top1": None, "top1_ci95": None}
    found = several.summary(planned("folds"), [row(4, 8), nothing])
    assert (found["mean"], found["standard_deviation"], found["all_photos"]["num_photos"]) == (0.5, None, 8)
    assert several.summary(planned("folds"), [nothing])["mean"] is None


def test_a_plan_is_read_as_it_was_begun(tiny_photos: Path, tmp_path: Path) -> None:
    begun = several.begin(str(tiny_photos), tmp_path / "runs", {**SMALL, "seed": 3}, folds=2)
    assert several.read(tmp_path / "runs") == begun
    assert [one.seed for one in begun.trainings] == [3, 3]
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert (moved / files.MADE).is_file()  # also before there is a run in it, it is no class
    assert (moved / several.read(moved).trainings[0].photos).is_file()  # beside the plan, wherever that lies


@pytest.mark.parametrize("more", [{"repeats": 2}, {"folds": 2}])
def test_a_plan_that_cannot_be_written_leaves_nothing(
    more: dict[str, int], tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> None:
        raise HandlensError("the disk is full")

    monkeypatch.setattr(several.files, "write_json", full)
    with pytest.raises(HandlensError, match="the disk is full"):
        several.begin(str(tiny_photos), tmp_path / "runs", SMALL, **more)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_came_in_the_meantime_is_left_as_it_is(
    tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*given: Any) -> Any:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "mine.txt").write_text("mine")
        return real(*given)

    real = several._cut
    monkeypatch.setattr(several, "_cut", cut)
    with pytest.raises(HandlensError, match="is in the way"):
        several.begin(str(tiny_photos), tmp_path / "runs", SMALL, folds=2)
    assert [path.name for path in tmp_path.iterdir() if "runs" in path.name] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine.txt"]


def test_classes_of_folds_are_named_as_their_folders(tiny_photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_photos, tmp_path / "photos"))
    (root / "花朵").rename(root / ' a, "b" ')
    begun = several.begin(str(root), tmp_path / "runs", SMALL, folds=2)
    assert photos.scan(begun.folder / begun.trainings[0].photos).classes == photos.scan(root).classes


@pytest.mark.skipif(os.name == "nt", reason="Windows takes no such names")
def test_a_name_that_no_csv_can_hold_is_told_before_a_folder_is_made(tiny_photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_photos, tmp_path / "photos"))
    (root / "花朵" / "00.jpg").rename(root / "花朵" / "new\nline 👨\u200d👩.jpg")
    with pytest.raises(HandlensError, match=r"new\\nline .*has a control character, which the CSV of a fold"):
        several.begin(str(root), tmp_path / "runs", SMALL, folds=2)
    assert not (tmp_path / "runs").exists()


def test_a_fold_does_not_search_for_copies_again(
    tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = several.begin(str(tiny_photos), tmp_path / "plan", {"weights": "none", "mode": "scratch"}, folds=3)
    monkeypatch.setattr("handlens.photos.near.alike", lambda *_: pytest.fail("searched again"))
    data = data_of(Recipe(photos=str(plan.folder / plan.trainings[0].photos)), None)
    assert data.test_is == "named as such by the photos"


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        ("32-true", {}, "32-true"),
        ("bf16-mixed", {}, None),
        ("32-true", {"precision": "bf16-mixed"}, "bf16-mixed"),
        (None, {}, None),
    ],
)
def test_a_precision_that_is_slow_is_tried_by_the_first_training_alone(
    first: Any, given: dict[str, Any], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(source: str, **given: Any) -> SimpleNamespace:
        asked.append(given.get("precision"))
        return SimpleNamespace(metrics={})

    asked: list[str | None] = []
    monkeypatch.setattr(several.job, "fit", fit)
    trainings = (several.Training("seed-0", "flower_photos", 0), several.Training("seed-1", "flower_photos", 1))
    if first:
        (tmp_path / "seed-0").mkdir()
        Recipe(precision=first).write(tmp_path / "seed-0" / "recipe.toml")
    several.train(several.Plan(tmp_path, "repeats", "flower_photos", given, trainings), 1)
    assert asked == [expected]


@pytest.mark.parametrize("value", [{}, [], {"kind": "folds", "photos": "p", "given": {}, "trainings": [{"name": "a"}]}])
def test_a_plan_that_is_none(value: Any, tmp_path: Path) -> None:
    (tmp_path / files.PLAN).write_text(json.dumps(value), "utf-8")
    with pytest.raises(HandlensError, match="is no plan of trainings"):
        several.read(tmp_path)


@pytest.mark.parametrize("more", [{"repeats": 2}, {"folds": 2}])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"net": "mobilenet_v1_050"}, "no ImageNet weights are published for mobilenet_v1_050"),
        ({"teacher": "runs/typo"}, "there is no run folder runs/typo"),
        ({"mode": "head", "weights": "none"}, "--mode head trains on top of weights"),
        ({"net": "vit_s_16", "weights": "none", "image_px": 200}, "200 px is not a multiple of 16 px"),
    ],
)
def test_what_no_training_of_a_plan_could_do_makes_no_plan(
    given: dict[str, Any], sentence: str, more: dict[str, int], tiny_photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(HandlensError, match=sentence):
        several.begin(str(tiny_photos), tmp_path / "runs", given, **more)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [{"repeats": 2}, {"folds": 2}])
def test_places_that_cannot_be(more: dict[str, int], tiny_photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HandlensError, match="file is no folder"):
        several.begin(str(tiny_photos), tmp_path / "file" / "runs", {}, **more)
    with pytest.raises(HandlensError, match="there is no folder nowhere"):
        several.begin("nowhere", tmp_path / "runs", {}, **more)
    assert not (tmp_path / "runs").exists()


SMALL = {"net": "mobilenet_v3_small", "weights": "none", "width": 0.35, "image_px": 32, "epochs": 1, "batch_size": 8}


def test_photos_that_are_moved_between_two_seeds(tiny_photos: Path, tmp_path: Path) -> None:
    class Stops(Watcher):
        def step(self, step: loop.Step) -> None:
            raise KeyboardInterrupt

    root = Path(shutil.copytree(tiny_photos, tmp_path / "photos"))
    plan = several.begin(str(root), tmp_path / "runs", {**SMALL, "precision": "32-true"}, repeats=3)
    several.train(plan, 0)
    with pytest.raises(KeyboardInterrupt):
        several.train(plan, 1, Stops())
    root = root.rename(tmp_path / "moved")
    for number in (1, 2):
        with pytest.raises(
            HandlensError, match=r"no longer in .*photos; name where they are now: handlens train PHOTOS"
        ):
            several.train(several.read(plan.folder), number)
    with pytest.raises(HandlensError, match=r"are no longer in .*nowhere"):
        several.moved(plan, str(tmp_path / "nowhere"))
    plan = several.moved(plan, str(root))
    assert plan == several.read(plan.folder) and plan.photos == str(root)
    assert [several.train(plan, number)["num_photos"] for number in range(3)] == [3, 3, 3]


def test_folds_whose_photos_were_moved_want_them_back(tiny_photos: Path, tmp_path: Path) -> None:
    plan = several.begin(str(tiny_photos), tmp_path / "runs", SMALL, folds=2)
    with pytest.raises(
        HandlensError, match="name each photo by its place, which cannot be changed; put the photos back"
    ):
        several.moved(plan, str(tmp_path))
    assert several.read(plan.folder) == plan
