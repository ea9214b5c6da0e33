"""`handlens compare-runs`: two classifiers on the same photos."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from handlens import bundle, checkpoint, files

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(command: Run) -> Run:
    return functools.partial(command, "compare-runs")


@pytest.fixture
def blind(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run with the rows of its head in another order: it takes every class for the next."""
    import torch

    saved = checkpoint.load(tiny_run)
    head = saved.net.classifier[-1]
    with torch.no_grad():
        head.weight.copy_(head.weight.roll(1, 0))
        head.bias.copy_(head.bias.roll(1, 0))
    checkpoint.save(tmp_path / "blind", saved)
    return tmp_path / "blind"


def test_a_worse_run_is_said_to_be_worse(compare: Run, tiny_run: Path, blind: Path, tiny_photos: Path) -> None:
    code, out, err = compare(tiny_run, blind, tiny_photos, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["only_first"], facts["only_second"], facts["num_photos"]) == (36, 0, 36)
    assert facts["difference"] == -1
    assert facts["verdict"].startswith("B is really worse than A")
    code, out, _ = compare(blind, tiny_run, tiny_photos)
    assert "B is really better than A" in out
    assert "+100.0 points" in out


def test_copies_decide_nothing(compare: Run, tiny_run: Path, blind: Path, tiny_photos: Path, tmp_path: Path) -> None:
    """Three photos, eight times each, all of which only one of the two gets right."""
    for folder in (path for path in tiny_photos.iterdir() if path.is_dir()):
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for number in range(8):
            shutil.copy(folder / "00.jpg", tmp_path / "photos" / folder.name / f"{number}.jpg")
    code, out, err = compare(tiny_run, blind, tmp_path / "photos", "--json")
    assert code == 0 and "21 of the 24 photos show again" in err
    facts = json.loads(out)
    assert (facts["only_first"], facts["effective_num_photos"], facts["p_value"]) == (24, 3, 0.25)
    assert "3 photos are too few to tell" in facts["verdict"] and facts["repetition"].startswith("21 of the 24 photos")


def test_photos_that_cannot_be_read_are_named(
    compare: Run, tiny_run: Path, blind: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    (tmp_path / "photos" / "blue sky" / "00.jpg").write_bytes(b"")
    code, out, err = compare(tiny_run, blind, tmp_path / "photos", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["num_photos"] == 35
    assert facts["left_out"] == [{"photo": "blue sky/00.jpg", "error": "is empty"}]
    assert "left out: blue sky/00.jpg: is empty" in err


def test_what_is_odd_of_a_runs_own_photos_is_in_the_json(
    compare: Run, split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_photos, tmp_path / "photos")
    shutil.copytree(split_run, tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run")
    recipe = {**saved.recipe, "photos": str(tmp_path / "photos")}
    checkpoint.save(tmp_path / "run", dataclasses.replace(saved, recipe=recipe))
    tested = next(path for path in files.read_json(tmp_path / "run" / "split.json")["test"] if "花朵" in path)
    shutil.move(tmp_path / "photos" / tested, tmp_path / "photos" / "blue sky" / "moved.jpg")
    (tmp_path / "photos" / "花朵" / "broken.jpg").write_bytes(b"")
    code, out, err = compare(tmp_path / "run", tmp_path / "run", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["left_out"] == [{"photo": "花朵/broken.jpg", "error": "is empty"}]
    assert facts["caution"] == "1 photo of the test split has another class now (blue sky/moved.jpg ...)"
    assert err.count("broken.jpg") == 1


def test_a_bundle_with_its_classes_in_another_order(
    compare: Run, tiny_run: Path, tiny_photos: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    saved = checkpoint.load(tiny_run)
    import torch

    head = saved.net.classifier[-1]
    with torch.no_grad():
        head.weight.copy_(head.weight.roll(1, 0))
        head.bias.copy_(head.bias.roll(1, 0))
    turned = dataclasses.replace(saved, classes=(saved.classes[-1], *saved.classes[:-1]))
    checkpoint.save(tmp_path / "turned", turned)
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    for other in (tmp_path / "turned", tmp_path / "b.zip"):
        code, out, err = compare(tiny_run, other, tiny_photos, "--json")
        assert code == 0, err
        assert json.loads(out)["verdict"].startswith("A and B get the same photos right; 6 photos")
        caution = "no split, so that these photos may be what it was trained on"
        assert (caution in json.loads(out)["caution"]) == (caution in err) == (other.suffix == ".zip")


def test_photos_that_one_was_trained_on_are_left_out(
    compare: Run, split_run: Path, tiny_run: Path, tiny_photos: Path
) -> None:
    code, out, err = compare(tiny_run, split_run, tiny_photos, "--json")
    assert code == 0
    assert "left out 27 photos" in err
    found = json.loads(out)
    assert found["num_photos"] == 9
    assert "NEW_PHOTOS" not in err  # these were new ones
    without = "without 27 that one of them was trained on or chosen by"
    assert found["photos"] == f"all photos of {tiny_photos.name}, {without}"


def test_runs_of_other_splits_are_advised_to_be_given_new_photos(
    compare: Run, split_run: Path, tiny_photos: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copytree(split_run, tmp_path / name)
        saved = checkpoint.load(tmp_path / name)
        recipe = {**saved.recipe, "photos": str(tiny_photos)}
        checkpoint.save(tmp_path / name, dataclasses.replace(saved, recipe=recipe))
    (tmp_path / "anew").mkdir()
    for name in saved.classes:
        (tmp_path / "anew" / name).mkdir()
        for path in (tiny_photos / name).iterdir():
            Image.open(path).save(tmp_path / "anew" / name / f"{path.stem}.png")
    code, out, err = compare(tmp_path / "a", tmp_path / "b", tmp_path / "anew")
    assert "left out 27 photos that one of them was trained on or chosen by, some saved anew or nearly the same" in err
    assert code == 0 and "by 9 photos" in out
    advice = f"handlens compare-runs {tmp_path / 'a'} {tmp_path / 'b'} NEW_PHOTOS"
    split = files.read_json(tmp_path / "b" / "split.json")
    moved = dict(list(split["test"].items())[:2])
    files.write_json(tmp_path / "b" / "split.json", {**split, "train": {**split["train"], **moved}})
    code, out, err = compare(tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "left out 2 photos that one of them was trained on or chosen by; " in err and advice in err
    assert "by 7 photos" in out
    files.write_json(tmp_path / "b" / "split.json", {**split, "train": {**split["train"], **split["test"]}})
    code, out, err = compare(tmp_path / "a", tmp_path / "b")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "no photo is left that neither was trained on or chosen by; " in err and advice in err


def test_both_are_read_before_any_photo_is_looked_at(
    compare: Run, split_run: Path, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlens.cli.labelled.labelled", lambda *_: pytest.fail("looked"))
    (tmp_path / "damaged").mkdir()
    bundle.write(tmp_path / "b.zip", tiny.bundle())
    for a, b, sentence in (
        (split_run, "nope", "there is no run or bundle nope"),
        ("nope", split_run, "there is no run or bundle nope"),
        (split_run, tmp_path / "damaged", "damaged is no finished run"),
        (tmp_path / "b.zip", split_run, f"handlens compare-runs {tmp_path / 'b.zip'} {split_run} PHOTOS"),
    ):
        code, out, err = compare(a, b)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert sentence in err


@pytest.mark.parametrize(
    ("others", "sentence"),
    [(["nope"], "there is no run or bundle nope"), (["FOUR", "PHOTOS"], "only one of them knows")],
)
def test_bad_input_is_one_sentence(
    compare: Run, tiny_run: Path, tiny_photos: Path, tmp_path: Path, others: list[str], sentence: str
) -> None:
    saved = checkpoint.load(tiny_run)
    shutil.rmtree(tmp_path / "four", ignore_errors=True)
    checkpoint.save(tmp_path / "four", dataclasses.replace(saved, classes=(*saved.classes[:-1], "another")))
    places = {"FOUR": str(tmp_path / "four"), "PHOTOS": str(tiny_photos)}
    code, out, err = compare(
        tiny_run, *(places.get(other, other) for other in others), *([] if len(others) > 1 else [tiny_photos])
    )
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
