"""How photos are cut into splits, and found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handlens.errors import HandlensError
from handlens.photos import Photos, examine, folds, keep_together, read_split, scan, split, write_split
from handlens.photos.split import contents

PARTS = ("train", "validation", "test")


def table(counts: dict[str, int], splits: tuple[str, ...] | None = None) -> tuple[Photos, dict[str, str]]:
    """Photos without files, and their content hashes."""
    paths = tuple(f"{name}/{i:04d}.jpg" for name, count in counts.items() for i in range(count))
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    photos = Photos(root=Path("photos"), paths=paths, labels=labels, classes=tuple(counts), splits=splits)
    return photos, {path: hashlib.sha256(path.encode()).hexdigest() for path in paths}


def sides(parts: dict[str, Photos]) -> dict[str, str]:
    return {path: name for name, photos in parts.items() for path in photos.paths}


def test_every_photo_once_and_eighty_ten_ten_in_each_class() -> None:
    photos, sha256 = table({"a": 500, "b": 100, "c": 37})
    parts = split(photos, sha256)
    assert tuple(parts) == PARTS
    assert sorted(path for part in parts.values() for path in part.paths) == sorted(photos.paths)
    assert parts["train"].counts().tolist() == [400, 80, 29]
    assert parts["validation"].counts().tolist() == parts["test"].counts().tolist() == [50, 10, 4]
    for part in parts.values():
        assert part.classes == photos.classes
        assert all(path.startswith(photos.classes[label]) for path, label in zip(part.paths, part.labels, strict=True))


@pytest.mark.parametrize("count", range(1, 21))
def test_small_classes(count: int) -> None:
    parts = split(*table({"a": count, "b": 50}))
    train, validation, test = (int(parts[name].counts()[0]) for name in PARTS)
    assert train + validation + test == count
    assert train >= 1
    assert (validation >= 1 and test >= 1) == (count >= 3)


@pytest.mark.parametrize("fractions", [(0.34, 0.33, 0.33), (0.02, 0.49, 0.49), (0.9, 0.1, 0.0), (1.0, 0.0, 0.0)])
def test_other_fractions(fractions: tuple[float, float, float]) -> None:
    for count in (1, 2, 3, 4, 5, 100):
        parts = split(*table({"a": count}), fractions=fractions)
        sizes = [len(parts[name]) for name in PARTS]
        assert sum(sizes) == count
        assert sizes[0] >= 1
        for size, part in zip(sizes, fractions, strict=True):
            assert size == 0 if part == 0 else abs(size - part * count) <= 2
            assert size >= 1 or part == 0 or count < 3


def test_each_photo_is_tested_in_one_fold_and_copies_stay_together() -> None:
    photos, sha256 = table({"a": 50, "b": 23})
    sha256["a/0001.jpg"] = sha256["a/0000.jpg"]
    cut = folds(photos, sha256, 5, duplicates=[["b/0003.jpg", "b/0009.jpg", "b/0010.jpg"]])
    sides = np.array([fold.splits for fold in cut])
    assert ((sides == "test").sum(0) == 1).all()
    assert [(row == "test").sum() for row in sides] == pytest.approx([73 / 5] * 5, abs=3)
    assert all(5 <= (row == "validation").sum() <= 10 for row in sides)
    place = {path: index for index, path in enumerate(photos.paths)}
    for group in (["a/0000.jpg", "a/0001.jpg"], ["b/0003.jpg", "b/0009.jpg", "b/0010.jpg"]):
        assert all(len({row[place[path]] for path in group}) == 1 for row in sides)
    for fold in cut:
        for name in PARTS:
            assert (fold.select(np.flatnonzero(np.array(fold.splits) == name)).counts() > 0).all()
    assert [fold.splits for fold in folds(photos, sha256, 5, seed=1)] != [fold.splits for fold in cut]


def test_folds_of_too_few_photos() -> None:
    with pytest.raises(HandlensError, match="class 'b' has 4 different photos, too few for 5 folds"):
        folds(*table({"a": 50, "b": 4}), 5)
    for count in (1, 0, -1):
        with pytest.raises(HandlensError, match=f"the number of folds is {count}, expected 2 or more"):
            folds(*table({"a": 50, "b": 40}), count)


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (0, 0.5, 0.5), (1.1, -0.1, 0.0)])
def test_fractions_that_make_no_sense(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(HandlensError, match="expected three that sum to 1"):
        split(*table({"a": 10}), fractions=fractions)


def test_the_order_of_files_does_not_matter_but_the_seed_does() -> None:
    photos, sha256 = table({"a": 60, "b": 40})
    shuffled = photos.select(np.random.default_rng(0).permutation(100))
    assert sides(split(photos, sha256)) == sides(split(shuffled, sha256))
    assert sides(split(photos, sha256)) != sides(split(photos, sha256, seed=1))


def test_the_split_is_the_same_everywhere_and_for_ever() -> None:
    photos, sha256 = table({"a": 12, "b": 5})
    parts = split(photos, sha256, seed=7)
    assert parts["validation"].paths == ("a/0006.jpg", "b/0003.jpg")
    assert parts["test"].paths == ("a/0003.jpg", "b/0000.jpg")


def test_renaming_moves_nothing_and_adding_hardly_anything() -> None:
    photos, sha256 = table({"a": 200})
    before = sides(split(photos, sha256))
    renamed, _ = table({"z": 200})
    renamed_sha256 = {path.replace("a/", "z/"): content for path, content in sha256.items()}
    assert {path.replace("z/", "a/"): side for path, side in sides(split(renamed, renamed_sha256)).items()} == before
    more, more_sha256 = table({"a": 210})
    after = sides(split(more, more_sha256))
    assert sum(after[path] != side for path, side in before.items()) <= 6


def test_duplicates_stay_on_one_side() -> None:
    photos, sha256 = table({"a": 60, "b": 60})
    for i in range(30):  # same files
        sha256[f"a/{i + 30:04d}.jpg"] = sha256[f"a/{i:04d}.jpg"]
    pairs = [(f"b/{i:04d}.jpg", f"b/{i + 30:04d}.jpg") for i in range(30)]  # same pixels
    across = [("a/0000.jpg", "b/0000.jpg", "b/0030.jpg")]  # one photo in two classes
    for seed in range(5):
        side = sides(split(photos, sha256, seed=seed, duplicates=[*pairs[1:], *across, ("gone/1", "gone/2")]))
        assert all(side[f"a/{i:04d}.jpg"] == side[f"a/{i + 30:04d}.jpg"] for i in range(30))
        assert all(side[first] == side[second] for first, second in pairs)
        assert side["a/0000.jpg"] == side["b/0000.jpg"]
        assert set(side.values()) == set(PARTS)


def test_the_order_in_which_duplicates_are_named_does_not_matter() -> None:
    photos, sha256 = table({"a": 40})
    pairs = [(f"a/{i:04d}.jpg", f"a/{i + 20:04d}.jpg") for i in range(20)]  # same pixels in other files
    turned = [pair[::-1] for pair in pairs]
    assert sides(split(photos, sha256, duplicates=pairs)) == sides(split(photos, sha256, duplicates=turned))


def test_a_class_of_duplicates_only_is_trained_on() -> None:
    for seed in range(20):
        photos, sha256 = table({"a": 30, "b": 1})
        sha256["b/0000.jpg"] = sha256["a/0004.jpg"]
        assert split(photos, sha256, seed=seed)["train"].counts()[1] == 1


def test_given_splits_are_kept() -> None:
    splits = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2
    photos, sha256 = table({"a": 10}, splits)
    parts = split(photos, sha256)
    assert [parts[name].paths for name in PARTS] == [photos.paths[:6], photos.paths[6:8], photos.paths[8:]]


@pytest.mark.parametrize(("given", "missing"), [("test", "validation"), ("validation", "test")])
def test_a_missing_split_is_cut_from_train(given: str, missing: str) -> None:
    photos, sha256 = table({"a": 100, "b": 100}, (("train",) * 90 + (given,) * 10) * 2)
    parts = split(photos, sha256)
    assert parts[given].paths == photos.select([i for i in range(200) if i % 100 >= 90]).paths
    assert parts[missing].counts().tolist() == [10, 10]  # 0.1 / 0.9 of what there is to train on
    assert parts["train"].counts().tolist() == [80, 80]


def test_train_alone_is_cut_as_a_folder_is() -> None:
    photos, sha256 = table({"a": 100}, ("train",) * 100)
    assert [len(part) for part in split(photos, sha256).values()] == [80, 10, 10]


# Written and read -----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Photos, dict[str, str], dict[str, Photos]]:
    photos, sha256 = table({"a 花": 20, "b": 20})
    parts = split(photos, sha256, seed=3)
    write_split(tmp_path / "split.json", parts, sha256, seed=3)
    return tmp_path / "split.json", photos, sha256, parts


Written = tuple[Path, Photos, dict[str, str], dict[str, Photos]]


def test_contents_of_a_stored_split(written: Written, tmp_path: Path) -> None:
    path, _, sha256, parts = written
    assert contents(path) == set(sha256.values())
    assert contents(path, ["test"]) == {sha256[photo] for photo in parts["test"].paths}
    assert contents(tmp_path / "none.json") == set()
    for odd in ("[]", '{"train": ["a"], "test": 3}'):
        path.write_text(odd)
        assert contents(path) == set()


def test_round_trip(written: Written) -> None:
    path, photos, sha256, parts = written
    again = read_split(path, photos, sha256)
    assert {name: part.paths for name, part in again.items()} == {name: part.paths for name, part in parts.items()}
    assert all((again[name].labels == parts[name].labels).all() for name in PARTS)
    value = json.loads(path.read_text(encoding="utf-8"))
    assert value["seed"] == 3 and value["classes"] == ["a 花", "b"]
    assert sum(len(value[name]) for name in PARTS) == 40
    assert "/" in next(iter(value["train"]))


def test_moved_photos_are_found_by_content(written: Written) -> None:
    path, photos, sha256, parts = written
    renamed, _ = table({"x": 20, "y": 20})
    new_name = dict(zip(photos.paths, renamed.paths, strict=True))
    found = read_split(path, renamed, {new_name[old]: content for old, content in sha256.items()})
    assert {name: set(part.paths) for name, part in found.items()} == {
        name: {new_name[old] for old in part.paths} for name, part in parts.items()
    }


def test_copies_that_all_moved_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Train is read first, and gets the first of the new names."""
    photos, sha256 = table({"a": 10})
    sha256["a/0007.jpg"] = sha256["a/0002.jpg"]
    train = photos.select([0, 1, 2, 3, 4, 5, 6, 8])
    parts = {"train": train, "validation": photos.select([7]), "test": photos.select([9])}
    write_split(tmp_path / "split.json", parts, sha256, seed=0)
    names = {"a/0002.jpg": "a/y.jpg", "a/0007.jpg": "a/z.jpg"}
    paths = tuple(names.get(path, path) for path in photos.paths)
    moved = Photos(root=photos.root, paths=paths, labels=photos.labels, classes=photos.classes)
    found = read_split(tmp_path / "split.json", moved, {names.get(path, path): sha256[path] for path in sha256})
    assert "a/y.jpg" in found["train"].paths and found["validation"].paths == ("a/z.jpg",)


def test_one_of_two_copies_moved(tmp_path: Path) -> None:
    photos, sha256 = table({"a": 10})
    sha256["a/0007.jpg"] = sha256["a/0002.jpg"]
    write_split(tmp_path / "split.json", split(photos, sha256), sha256, seed=0)
    paths = tuple("a/z.jpg" if path == "a/0007.jpg" else path for path in photos.paths)
    moved = Photos(root=photos.root, paths=paths, labels=photos.labels, classes=photos.classes)
    found = read_split(tmp_path / "split.json", moved, sha256 | {"a/z.jpg": sha256["a/0002.jpg"]})
    assert sorted(path for part in found.values() for path in part.paths) == sorted(paths)


def test_a_photo_moved_to_its_right_class_gets_its_label(written: Written) -> None:
    path, photos, sha256, parts = written
    old = parts["test"].paths[0]
    assert old.startswith("a 花/")
    new = "b/" + old.split("/")[1].replace(".jpg", " moved.jpg")
    moved = Photos(
        root=photos.root,
        paths=tuple(new if path == old else path for path in photos.paths),
        labels=np.array([1 if path == old else label for path, label in zip(photos.paths, photos.labels, strict=True)]),
        classes=photos.classes,
    )
    test = read_split(path, moved, sha256 | {new: sha256[old]})["test"]
    assert test.labels[test.paths.index(new)] == 1


def test_new_photos_are_in_no_split(written: Written) -> None:
    path, _, _, parts = written
    more, more_sha256 = table({"a 花": 25, "b": 20})
    assert {name: part.paths for name, part in read_split(path, more, more_sha256).items()} == {
        name: part.paths for name, part in parts.items()
    }


def test_swapped_names_follow_the_content(written: Written) -> None:
    path, photos, sha256, parts = written
    one, other = parts["train"].paths[0], parts["test"].paths[0]
    swapped = sha256 | {one: sha256[other], other: sha256[one]}
    again = read_split(path, photos, swapped)
    assert other in again["train"].paths
    assert one in again["test"].paths


def test_missing_and_changed_photos_are_named(written: Written) -> None:
    path, photos, sha256, _ = written
    fewer = photos.without(["b/0003.jpg"])
    changed = {name: content for name, content in sha256.items() if name != "b/0003.jpg"} | {"a 花/0001.jpg": "0" * 64}
    with pytest.raises(HandlensError, match="2 are not in photos as before") as caught:
        read_split(path, fewer, changed)
    assert "'a 花/0001.jpg (changed)'" in caught.value.message
    assert "'b/0003.jpg (missing)'" in caught.value.message
    with pytest.raises(HandlensError, match=r"40 are not in .* and 35 more"):
        read_split(path, photos.select([]), {})


EDITS: dict[str, Callable[[dict[str, object]], object]] = {
    "no version": lambda value: value.pop("version"),
    "later version": lambda value: value.update(version=2),
    "no test": lambda value: value.pop("test"),
    "list": lambda value: value.update(train=["a/1.jpg"]),
    "numbers": lambda value: value.update(train={"a/1.jpg": 7}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_files_that_are_no_split(written: Written, edit: str) -> None:
    path, photos, sha256, _ = written
    value = json.loads(path.read_text(encoding="utf-8"))
    EDITS[edit](value)
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(HandlensError, match=r"is not a split of version 1|has no proper list of"):
        read_split(path, photos, sha256)


@pytest.mark.parametrize("text", ["", "[]", "null", '"split"', "{"])
def test_files_that_are_not_even_json_objects(written: Written, text: str) -> None:
    path, photos, sha256, _ = written
    path.write_text(text)
    with pytest.raises(HandlensError, match=r"not JSON|is not a split"):
        read_split(path, photos, sha256)
    with pytest.raises(HandlensError, match="is a folder, expected a JSON file"):
        read_split(path.parent, photos, sha256)


def test_near_duplicates_come_to_one_side_and_nothing_else_moves(make_folder: Callable[..., Path]) -> None:
    photos = scan(make_folder({"a": 20, "b": 10}))
    splits = split(photos, examine(photos).sha256)
    train, test = splits["train"].paths, splits["test"].paths
    same, moved = keep_together(splits, [train[:3], ["gone", train[0]]])
    assert not moved
    assert {name: part.paths for name, part in same.items()} == {name: part.paths for name, part in splits.items()}
    together, moved = keep_together(splits, [(train[0], test[0]), (train[1], *test[1:3])])
    assert moved == {test[0]: "train", train[1]: "test"}
    assert set(together["train"].paths) == {*train, test[0]} - {train[1]}
    assert together["validation"].paths == splits["validation"].paths
    label = dict(zip(photos.paths, photos.labels.tolist(), strict=True))
    for part in together.values():
        assert part.labels.tolist() == [label[path] for path in part.paths]


def test_a_class_keeps_a_photo_to_train_on(make_folder: Callable[..., Path]) -> None:
    photos = scan(make_folder({"a": 3, "b": 3}))
    splits = {"train": photos.select([0, 3]), "validation": photos.select([]), "test": photos.select([1, 2, 4, 5])}
    together, moved = keep_together(splits, [photos.paths[:3]])
    assert moved == {"a/001.png": "train", "a/002.png": "train"}
    assert together["test"].paths == ("b/001.png", "b/002.png")


def test_photos_that_are_all_series_are_split_by_whole_series(make_folder: Callable[..., Path]) -> None:
    photos = scan(make_folder({"a": 60, "b": 60}))
    groups = [photos.paths[start : start + 6] for start in range(0, 120, 6)]
    splits, moved = keep_together(split(photos, examine(photos).sha256), groups)
    side = {path: name for name, part in splits.items() for path in part.paths}
    assert all(len({side[path] for path in group}) == 1 for group in groups)
    assert {name: part.counts().tolist() for name, part in splits.items()} == {
        "train": [48, 48], "validation": [6, 6], "test": [6, 6]
    }  # fmt: skip
    assert all(side[path] == name for path, name in moved.items())


def test_three_photos_in_two_folds_leave_one_to_train_on() -> None:
    photos, sha256 = table({"a": 3, "b": 20})
    for fold in folds(photos, sha256, 2):
        of_class = [side for side, label in zip(fold.splits or (), photos.labels, strict=True) if label == 0]
        assert "train" in of_class and "test" in of_class


def test_a_class_keeps_a_photo_where_one_group_after_another_would_leave() -> None:
    photos, _ = table({"a": 6, "b": 2})
    parts = {"train": photos.select([0, 1, 6]), "validation": photos.select([7]), "test": photos.select([2, 3, 4, 5])}
    groups = [[photos.paths[i] for i in group] for group in ([0, 2, 3], [1, 4, 5])]
    together, _ = keep_together(parts, groups)
    assert together["train"].counts().tolist() == [3, 1] and together["test"].counts().tolist() == [3, 0]


def test_a_side_that_lost_a_quarter_of_a_class_is_not_filled_up() -> None:
    photos, _ = table({"a": 40})
    parts = {"train": photos.select(range(30)), "validation": photos.select([39]), "test": photos.select(range(30, 39))}
    groups = [[photos.paths[i] for i in group] for group in ([0, 1, 30], [2, 3, 31], [4], [5, 6])]
    _, moved = keep_together(parts, groups)
    assert set(moved) == {photos.paths[30], photos.paths[31]}  # two of nine
