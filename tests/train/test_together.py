"""What is made of photos before a training: near-duplicates on one side of the split, odd folders told of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handlens import photos
from handlens.cli.predict import UNKNOWN, UNSURE
from handlens.photos import drawn
from handlens.train import start
from handlens.train.recipe import choose


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("daisy", "tulips"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(10):
            drawn.picture(name, index)[0].save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def data(folder: Path) -> start.Data:
    return start.data_of(choose([10, 10], {"photos": str(folder)}), None)


def test_a_clean_set_is_split_as_before(folder: Path) -> None:
    found = photos.scan(folder)
    plain = photos.split(found, photos.examine(found).sha256)
    made = data(folder)
    assert {name: part.paths for name, part in made.splits.items()} == {
        name: part.paths for name, part in plain.items()
    }
    assert made.notes == ()


@pytest.mark.parametrize("name", [UNSURE, UNKNOWN])
def test_a_folder_that_sorting_made_is_told(name: str, folder: Path) -> None:
    (folder / "tulips").rename(folder / name)
    (note,) = data(folder).notes
    assert note.startswith(f"{name!r} is learned as a class: remove its folder")


def test_near_duplicates_of_test_photos_leave_training(folder: Path) -> None:
    before = data(folder).splits
    for path in (*before["test"].paths, *before["train"].paths[:4]):
        photo = drawn.picture(*((Path(path).parent.name, int(Path(path).stem))))[0]
        photo.resize((80, 80)).save(folder / f"{path[:-4]}-small.png")
    made = data(folder)
    side = {path: name for name, part in made.splits.items() for path in part.paths}
    small = [path for path in side if path.endswith("-small.png")]
    assert len(small) == 6
    assert all(side[path] == side[path.replace("-small", "")] for path in small)
    (note,) = made.notes
    assert note.startswith("6 groups of near-duplicates (") and "each on one side of the split" in note
    assert note.endswith("changed sides: `handlens examine PHOTOS` shows them")


def test_splits_that_the_photos_came_with_are_kept_and_the_leak_is_told(tmp_path: Path) -> None:
    for side, first in (("train", 0), ("test", 4)):
        for name in ("daisy", "tulips"):
            (tmp_path / side / name).mkdir(parents=True)
            for index in range(first, first + 4):
                drawn.picture(name, index)[0].save(tmp_path / side / name / f"{index}.png")
    assert data(tmp_path).notes == ()
    drawn.picture("daisy", 0)[0].resize((90, 90)).save(tmp_path / "test" / "daisy" / "again.png")
    shutil.copy(tmp_path / "train" / "tulips" / "0.png", tmp_path / "test" / "tulips" / "same.png")
    made = data(tmp_path)
    assert {"test/daisy/again.png", "test/tulips/same.png"} <= set(made.splits["test"].paths)
    same, near = made.notes
    assert same.startswith("1 group of identical photos (") and near.startswith("1 group of near-duplicates (")
    assert all("1 of them across the photos' own splits, which are kept" in note for note in made.notes)
