"""What is made of photos before a training: near-duplicates on one side of the split, odd folders told of."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlens import checkpoint, files, nets, photos
from handlens.cli.predict import UNKNOWN, UNSURE
from handlens.errors import HandlensError
from handlens.photos import drawn
from handlens.preprocess import Preprocess
from handlens.train import learned, several
from handlens.train.data import Data, _meant, _to_train, data_of, keep_earlier, look
from handlens.train.recipe import choose
from handlens.train.watcher import Watcher


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with ten drawn photos each. Not to be changed."""
    root = tmp_path_factory.mktemp("flowers")
    for name in ("daisy", "tulips"):
        (root / name).mkdir()
        for index in range(10):
            drawn.picture(name, index)[0].save(root / name / f"{index}.png")
    return root


@pytest.fixture
def folder(flowers: Path, tmp_path: Path) -> Path:
    """A copy of `flowers`, to be changed."""
    return shutil.copytree(flowers, tmp_path / "photos")


def data(folder: Path) -> Data:
    return data_of(choose([10, 10], {"photos": str(folder)}), None)


def test_a_clean_set_is_split_as_before(folder: Path) -> None:
    found = photos.scan(folder)
    plain = photos.split(found, photos.examine(found).sha256)
    made = data(folder)
    assert {name: part.paths for name, part in made.splits.items()} == {
        name: part.paths for name, part in plain.items()
    }
    assert made.notes == ()


def test_a_long_search_for_copies_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(10):
        small(folder / "daisy" / f"small-{index}.png", "daisy", index)
    monkeypatch.setattr(photos.near, "_AT_ONCE", 1)
    told: list[tuple[int, int]] = []
    recipe = choose([10, 10], {"photos": str(folder)})
    data_of(recipe, None, searching=lambda done, total: told.append((done, total)))
    assert told and told[-1][0] == told[-1][1]


def test_a_photo_in_two_classes_is_told_once(folder: Path) -> None:
    shutil.copy(folder / "daisy" / "0.png", folder / "tulips" / "same.png")
    (note,) = data(folder).notes
    assert note.startswith("1 photo lies in two classes")
    shutil.copy(folder / "daisy" / "1.png", folder / "daisy" / "same.png")
    torn, same = data(folder).notes
    assert torn == note and same.startswith("1 group of identical photos (daisy/1.png ~ daisy/same.png ...)")
    assert look(str(folder), None, is_split=True)[2] == [note]  # which says nothing of who has learned it


@pytest.mark.parametrize("name", [UNSURE, UNKNOWN])
def test_a_folder_that_sorting_made_is_told(name: str, folder: Path) -> None:
    (folder / "tulips").rename(folder / name)
    (note,) = data(folder).notes
    assert note.startswith(f"{name!r} is learned as a class: remove its folder")


@pytest.mark.parametrize("below", [(), ("train",)])  # what is cut from a folder `train` is cut by us, too
def test_near_duplicates_of_test_photos_leave_training(folder: Path, below: tuple[str, ...]) -> None:
    if below:
        (inner := folder.parent / "inner").mkdir()
        folder = folder.rename(inner / below[0]).parent
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


def test_near_duplicates_in_train_are_on_one_side_where_validation_is_cut_from_it(folder: Path) -> None:
    (inner := folder.parent / "inner").mkdir()
    folder.rename(inner / "train")
    (inner / "test" / "daisy").mkdir(parents=True)
    drawn.picture("daisy", 40)[0].save(inner / "test" / "daisy" / "40.png")
    judged = data(inner).splits["validation"].paths
    for path in judged:
        small(inner / f"{path[:-4]}-small.png", Path(path).parent.name, int(Path(path).stem))
    made = data(inner)
    side = {path: name for name, part in made.splits.items() for path in part.paths}
    assert all(side[path] == side[f"{path[:-4]}-small.png"] for path in judged)
    assert made.splits["test"].paths == ("test/daisy/40.png",)
    (note,) = made.notes
    assert "each on one side of the split" in note


def test_a_side_that_whole_groups_leave_nearly_empty_is_told(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        for px in (100, 90, 80, 70, 60):
            small(path.with_name(f"{path.stem}-{px}.png"), path.parent.name, int(path.stem), px)
    assert {name: len(part) for name, part in data(folder).splits.items()} == {
        "train": 96, "validation": 12, "test": 12
    }  # fmt: skip
    for path in folder.rglob("*.png"):  # two photos a class are left, and their copies
        if int(path.stem.split("-")[0]) > 1:
            path.unlink()
    made = data(folder)
    notes = [note for note in made.notes if "in place of" in note]
    assert [note.split(" has ")[0] for note in notes] == [
        name for name in ("validation", "test") if not len(made.splits[name])
    ]


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """What a continued run reads of a run on the folder."""
    made = data(folder)
    saved = checkpoint.Checkpoint(
        net=nets.create("mobilenet_v2", 2, width=0.1), name="mobilenet_v2", arguments={"width": 0.1},
        classes=made.classes, preprocess=Preprocess(image_px=32, resize_px=32), recipe={"photos": str(folder)},
    )  # fmt: skip
    checkpoint.save(tmp_path / "run", saved)
    photos.write_split(tmp_path / "run" / files.SPLIT, made.splits, made.sha256, 0)
    return tmp_path / "run"


def added(run: Path, more: Path) -> Data:
    return data_of(choose([10, 10], {"continue_run": str(run), "add": str(more)}), None)


def small(path: Path, name: str, index: int, px: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.picture(name, index)[0].resize((px, px)).save(path)


def test_added_photos_that_are_nearly_those_judged_by_are_left_out(folder: Path, run: Path, tmp_path: Path) -> None:
    kept = data(folder).splits
    for side in ("train", "validation", "test"):
        path = Path(kept[side].paths[0])
        small(tmp_path / "more" / path.parent / f"{side}.png", path.parent.name, int(path.stem))
    small(tmp_path / "more" / "tulips" / "new.png", "tulips", 30)
    made = added(run, tmp_path / "more")
    side = {Path(path).name: name for name, part in made.splits.items() for path in part.paths}
    assert (side["train.png"], side["new.png"]) == ("train", "train")
    assert not {"validation.png", "test.png"} & side.keys()
    (note,) = [note for note in made.notes if "nearly a validation or test photo" in note]
    assert "the run: 2 added photos (" in note
    assert len(made.splits["test"]) == len(kept["test"])
    assert made.test_is == f"kept from {run}"


def test_near_duplicates_among_added_photos_come_to_one_side(run: Path, tmp_path: Path) -> None:
    for index in range(6):
        for px in (96, 80, 70):
            small(tmp_path / "more" / "roses" / f"{index}-{px}.png", "roses", index, px)
    made = added(run, tmp_path / "more")
    sides = [
        {name for name, part in made.splits.items() for path in part.paths if Path(path).name.startswith(f"{index}-")}
        for index in range(6)
    ]
    assert all(len(side) == 1 for side in sides)


def test_added_photos_that_name_their_own_test_are_refused(run: Path, tmp_path: Path) -> None:
    for side in ("train", "test"):
        small(tmp_path / "more" / side / "roses" / f"{side}.png", "roses", 3 if side == "test" else 4)
    made = added(run, tmp_path / "more")  # a class that is new has them
    assert [Path(path).name for path in made.splits["test"].paths if "roses" in path] == ["test.png"]
    assert made.test_is == f"kept from {run}, those of new classes cut with seed 0"
    for side in ("train", "test"):
        small(tmp_path / "more" / side / "tulips" / f"{side}.png", "tulips", 33 if side == "test" else 34)
    with pytest.raises(HandlensError, match="names its own test photos, which --add would train on; name the folder"):
        added(run, tmp_path / "more")


def test_weights_that_have_seen_the_photos(folder: Path, run: Path, tmp_path: Path) -> None:
    small(tmp_path / "others" / "daisy" / "30.png", "daisy", 30)
    for given in ({"teacher": str(run), "weights": "none"}, {"weights": str(run / files.WEIGHTS)}):
        recipe = choose([10, 10], {"photos": str(folder), "net": "mobilenet_v2", **given})
        with pytest.raises(HandlensError, match=r"was trained on 18 of these photos, and a curve needs weights that"):
            learned.check_unlearned(recipe, photos.scan(folder), "a curve")
        learned.check_unlearned(recipe, photos.scan(tmp_path / "others"), "a curve")
        for more in ({"repeats": 2}, {"folds": 2}):
            with pytest.raises(HandlensError, match="was trained on 18 of these photos"):
                several.begin(str(folder), tmp_path / "runs", {"net": "mobilenet_v2", **given}, **more)
            assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["teacher", "weights"])
@pytest.mark.parametrize("px", [0, 80])
def test_weights_that_have_seen_copies_of_the_photos(
    what: str, px: int, folder: Path, run: Path, tmp_path: Path
) -> None:
    """The same pixels in other files, or smaller ones."""
    for path in folder.rglob("*.png"):
        (place := tmp_path / "again" / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        photo = drawn.picture(path.parent.name, int(path.stem))[0]
        (photo.resize((px, px)) if px else photo).save(place, compress_level=1)
    given = {"weights": str(run / files.WEIGHTS)} if what == "weights" else {"teacher": str(run), "weights": "none"}
    again = {"net": "mobilenet_v2", "photos": str(tmp_path / "again"), "seed": 1, **given}
    recipe = choose([10, 10], again)
    told = rf"\({what}\) was trained on [12] of the 2 test photos of this one, saved anew or nearly the same \(.*\.png"
    with pytest.raises(HandlensError, match=told):
        learned.check_unseen(recipe, data_of(recipe, None))
    for more in ({"repeats": 2}, {"folds": 2}):
        with pytest.raises(HandlensError, match="was trained on 18 of these photos, saved anew or nearly the same"):
            several.begin(again["photos"], tmp_path / "runs", {"net": "mobilenet_v2", **given}, **more)
    learned.check_unseen(dataclasses.replace(recipe, photos=str(folder), seed=0), data(folder))


@pytest.mark.parametrize("px", [0, 80])
def test_weights_that_have_seen_what_chooses(px: int, folder: Path, run: Path, tmp_path: Path) -> None:
    """The test is named, and so the same, but with another seed validation photos are learned by the weights."""
    places = {
        path: tmp_path / "again" / ("test" if path in data(folder).splits["test"].paths else "train") / path
        for path in photos.scan(folder).paths
    }
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
        photo = drawn.picture(place.parent.name, int(place.stem))[0]
        (photo.resize((px, px)) if px else photo).save(place)
    weights, teacher = {"weights": str(run / files.WEIGHTS)}, {"teacher": str(run), "weights": "none"}
    recipe = choose([10, 10], {"net": "mobilenet_v2", "photos": str(tmp_path / "again"), **weights})
    chosen = {Path(path).parts[-2:] for path in data(folder).splits["validation"].paths}
    seed, made = next(
        (seed, made)
        for seed in range(1, 9)
        if (made := data_of(dataclasses.replace(recipe, seed=seed), None))
        and not chosen & {Path(path).parts[-2:] for path in made.splits["validation"].paths}
    )
    how = r", saved anew or nearly the same \(.*\)" if px else ""
    told = rf"was trained on 2 of the 2 validation photos of this one{how}, by which its epoch.*: --seed 0 made that"
    with pytest.raises(HandlensError, match=told):
        learned.check_unseen(dataclasses.replace(recipe, seed=seed), made)
    learned.check_unseen(dataclasses.replace(recipe, seed=seed, **teacher), made)  # learns from train alone
    with pytest.raises(HandlensError, match="a validation split of each seed's own needs weights"):
        several.begin(recipe.photos, tmp_path / "runs", {"net": "mobilenet_v2", **weights}, repeats=2)
    several.begin(recipe.photos, tmp_path / "runs", {"net": "mobilenet_v2", **teacher}, repeats=2)


def test_test_photos_that_runs_behind_a_continued_one_have_learned_are_told(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    """A new class of the added photos is not new to the weights that the continued run began from."""
    facts = files.read_json(run / files.FACTS)
    shutil.copytree(run, tmp_path / "behind")
    for index in range(10):
        small(tmp_path / "more" / "roses" / f"{index}.png", "roses", index, 96)
    roses = photos.examine(photos.scan(tmp_path / "more", keep_empty=True)).sha256
    split = {"train": roses, "validation": {}, "test": {}, "seed": 0}
    files.write_json(tmp_path / "behind" / files.SPLIT, {**files.read_json(run / files.SPLIT), **split})
    recipe = {**facts["recipe"], "weights": str(tmp_path / "behind" / files.WEIGHTS)}
    files.write_json(run / files.FACTS, {**facts, "recipe": recipe})
    told: list[str] = []
    watcher = Watcher()
    watcher.note = told.append  # type: ignore[method-assign]
    onward = choose([10, 10], {"net": "mobilenet_v2", "continue_run": str(run), "add": str(tmp_path / "more")})
    made = added(run, tmp_path / "more")
    learned.check_unseen(onward, made, watcher)
    number = sum("roses" in path for path in made.splits["test"].paths)
    (note,) = [note for note in told if "flatter" in note]
    assert number and f"was trained on {number} of the {len(made.splits['test'])} test photos" in note


@pytest.mark.parametrize(("named", "cut"), [("test", "validation"), ("val", "test")])
def test_copies_of_named_photos_are_not_drawn_to_the_other_side(
    named: str, cut: str, folder: Path, tmp_path: Path
) -> None:
    """Else a test would hold what chose, or what judges would choose."""
    (inner := tmp_path / "inner").mkdir()
    folder.rename(inner / "train")
    small(inner / named / "daisy" / "40.png", "daisy", 40)
    drawn_before = data(inner).splits[cut].paths
    assert len(drawn_before) == 2
    small(inner / named / Path(drawn_before[0]).parent.name / "nearly.png", Path(drawn_before[0]).parent.name,
          int(Path(drawn_before[0]).stem))  # fmt: skip
    (same := inner / named / Path(drawn_before[1]).parent.name / "same.png").parent.mkdir(exist_ok=True)
    shutil.copy(inner / drawn_before[1], same)
    splits = data(inner).splits
    assert {*drawn_before} <= {*splits["train"].paths} and len(splits[cut]) == 2


def test_photos_in_no_class_folder_are_told(folder: Path) -> None:
    assert data(folder).notes == ()
    for name in ("b.png", "a.png"):
        shutil.copy(folder / "daisy" / "0.png", folder / name)
    (folder / "notes.txt").touch()
    (note,) = data(folder).notes
    assert note == "2 photos lie in no class folder and are not used: 'a.png', 'b.png'"


def test_photos_that_were_trained_on_need_not_be_there_to_judge_others(folder: Path, run: Path, tmp_path: Path) -> None:
    split = files.read_json(run / files.SPLIT)
    first, second, *_ = split["train"]
    (folder / first).unlink()
    shutil.copy(folder / second, folder / first)  # changed: a copy of another one
    shutil.copytree(run, tmp_path / "second")
    facts = files.read_json(run / files.FACTS)
    files.write_json(
        tmp_path / "second" / files.FACTS, {**facts, "recipe": {**facts["recipe"], "continue_run": str(run)}}
    )
    for recipe in ({"photos": str(folder)}, {"continue_run": str(run)}):
        made = data_of(choose([10, 10], recipe), run / files.SPLIT, asked=("test",))
        assert len(made.splits["train"]) == 15 and len(made.splits["test"]) == 2
        (note,) = [note for note in made.notes if "no longer" in note]
        assert note.startswith(
            f"1 photo of {run} is no longer in {folder} as before: it goes without, as none is of 't"
        )
        with pytest.raises(HandlensError, match="put them back, or train again"):
            data_of(choose([10, 10], recipe), run / files.SPLIT)
    (folder / next(iter(split["test"]))).unlink()
    with pytest.raises(HandlensError, match="put them back, or train again"):
        data_of(choose([10, 10], {"photos": str(folder)}), run / files.SPLIT, asked=("test",))


def test_how_the_test_photos_came_to_be_those(folder: Path, tmp_path: Path) -> None:
    assert data(folder).test_is == "cut with seed 0"
    for side in ("train", "test"):
        shutil.copytree(folder, tmp_path / "named" / side)
    assert data(tmp_path / "named").test_is == "named as such by the photos"


def test_a_correction_of_a_photo_that_the_run_has_is_left_out(folder: Path, run: Path, tmp_path: Path) -> None:
    sha256 = photos.examine(photos.scan(folder)).sha256
    path = data(folder).splits["train"].paths[0]
    small(tmp_path / "more" / "tulips" / f"{sha256[path]}.png", "roses", 50)  # whatever its pixels have become
    small(tmp_path / "more" / "tulips" / "new.png", "tulips", 51)
    made = added(run, tmp_path / "more")
    assert any(note.startswith("left out 1 added photo that the run has already") for note in made.notes)
    assert sum(map(len, made.splits.values())) == 21


def test_a_run_that_was_begun_with_such_a_correction_has_it(folder: Path, run: Path, tmp_path: Path) -> None:
    """Earlier versions did not leave it out."""
    sha256 = photos.examine(photos.scan(folder)).sha256
    first, second = data(folder).splits["train"].paths[:2]
    small(tmp_path / "more" / "tulips" / f"{sha256[first]}.png", "roses", 50)
    small(tmp_path / "more" / "tulips" / "new.png", "tulips", 51)
    shutil.copy(folder / second, tmp_path / "more" / "tulips" / "same.png")
    made = added(run, tmp_path / "more")
    photos.write_split(tmp_path / "split.json", made.splits, made.sha256, 0)
    stored = files.read_json(tmp_path / "split.json")
    (new,) = [path for path in stored["train"] if path.endswith("new.png")]
    correction = new.replace("new.png", f"{sha256[first]}.png")
    stored["train"][correction] = made.sha256[correction]
    files.write_json(tmp_path / "split.json", stored)
    recipe = choose([10, 10], {"continue_run": str(run), "add": str(tmp_path / "more")})
    again = data_of(recipe, tmp_path / "split.json")
    assert {*again.splits["train"].paths} == {*made.splits["train"].paths, correction}
    (note,) = [note for note in again.notes if note.startswith("left out")]
    assert note.startswith("left out 1 added photo that the run has already (tulips/same.png")


def test_classes_without_photos_among_added_ones_are_no_matter(run: Path, tmp_path: Path) -> None:
    """The service leaves such folders, where a correction was corrected."""
    for name in ("daisy", "roses", UNKNOWN):
        (tmp_path / "more" / name).mkdir(parents=True)
    small(tmp_path / "more" / "tulips" / "new.png", "tulips", 51)
    made = added(run, tmp_path / "more")
    assert made.classes == ("daisy", "tulips")
    assert sum(map(len, made.splits.values())) == 21
    assert not any("is learned as a class" in note for note in made.notes)
    (tmp_path / "more" / "roses" / "broken.png").write_bytes(b"")
    with pytest.raises(HandlensError, match="all photos of 'roses' are broken"):
        added(run, tmp_path / "more")


def test_a_new_class_with_test_photos_only_is_refused(run: Path, tmp_path: Path) -> None:
    small(tmp_path / "more" / "train" / "tulips" / "new.png", "tulips", 51)
    small(tmp_path / "more" / "test" / "roses" / "new.png", "roses", 52)
    with pytest.raises(HandlensError, match="there is no photo to train on in 'roses'; add photos or remove the class"):
        added(run, tmp_path / "more")


@pytest.mark.parametrize(
    ("to", "told"), [("daisy/moved.png", 0), ("tulips/moved.png", 1), ("tulips/daisy/moved.png", 1)]
)
def test_photos_that_have_another_class_now_are_told(to: str, told: int, folder: Path, run: Path) -> None:
    path = next(path for path in data(folder).splits["train"].paths if path.startswith("daisy/"))
    (folder / to).parent.mkdir(exist_ok=True)
    (folder / path).rename(folder / to)
    notes = data_of(choose([10, 10], {"continue_run": str(run)}), None).notes
    assert [note for note in notes if "class now" in note] == [
        f"1 photo of {run} has another class now ({to} ...)"
    ] * told
    now = data_of(choose([10, 10], {"photos": str(folder)}), run / files.SPLIT)
    assert now.relabelled == (to,) * told
    assert [note for note in now.notes if "class now" in note] == [note for note in notes if "class now" in note]
    second = stored(run, {"continue_run": str(run)}, run.parent / "second")  # has learned it as it is now
    again = data_of(choose([10, 10], {"continue_run": str(run)}), second / files.SPLIT)
    assert not again.relabelled and not [note for note in again.notes if "class now" in note]
    (folder / to).rename(folder / "daisy" / "back.png")
    notes = data_of(choose([10, 10], {"continue_run": str(run)}), second / files.SPLIT).notes
    back = f"1 photo of {second} has another class now (daisy/back.png ...)"
    assert (back in notes) == (to == "tulips/moved.png")  # below both names it may have been either


BY = ("weights", "teacher", "continue_run")


@pytest.mark.parametrize("first", BY)
@pytest.mark.parametrize("second", BY)
def test_what_runs_further_back_have_learned_counts(
    first: str, second: str, folder: Path, run: Path, tmp_path: Path
) -> None:
    """A run on the photos, one on others that learned from it, and one on the photos that learns from that one."""

    def named(by: str, of: Path) -> dict[str, str]:
        return {by: str(of / files.WEIGHTS if by == "weights" else of)}

    between = tmp_path / "between"
    shutil.copytree(run, between)
    for one, recipe in ((between, named(first, run)), (run, named(first, between))):  # in a circle, too
        facts = files.read_json(one / files.FACTS)
        files.write_json(one / files.FACTS, {**facts, "recipe": {**facts["recipe"], **recipe}})
    files.write_json(between / files.SPLIT, {"train": {"other.jpg": "0" * 64}, "validation": {}, "test": {}, "seed": 5})
    recipe = choose([10, 10], {"net": "mobilenet_v2", "photos": str(folder), "seed": 1})
    made = data_of(recipe, None)
    learns = dataclasses.replace(recipe, **named(second, between))
    behind = [*learned.learned_by(learns.teacher, learns.weights, learns.continue_run)]
    assert [found[:2] for found in behind if found[1] == run] == (
        [] if first == second == "continue_run" else [(first if second == "continue_run" else second, run)]
    )
    if second == "continue_run":  # whose test photos are kept, so that nothing can be done: `evaluate` tells of it
        learned.check_unseen(learns, made)
    else:
        told = rf"the run {run} \({second}\) was trained on [12] of the 2 test photos.*--seed 0"
        with pytest.raises(HandlensError, match=told):
            learned.check_unseen(learns, made)
    (run / files.SPLIT).write_text("{")  # damaged, and not what is named
    learned.check_unseen(learns, made)
    shutil.rmtree(run)
    learned.check_unseen(learns, made)


def test_photos_that_are_gone_are_those_of_the_run_that_was_asked_for(folder: Path, run: Path, tmp_path: Path) -> None:
    run = run.rename(tmp_path / "earlier")  # which is a run's name as well
    second = stored(run, {"continue_run": str(run)}, tmp_path / "second")
    keep_earlier(second, run)
    third = stored(second, {"continue_run": str(second)}, tmp_path / "third")
    shutil.rmtree(third / "earlier")
    keep_earlier(third, second)
    folder.rename(tmp_path / "moved")
    for of, recipe in (
        (run, {"photos": str(folder)}),
        (second, {"continue_run": str(run)}),
        (third, {"continue_run": str(second)}),
    ):
        with pytest.raises(HandlensError, match=f"the photos of the run {of} are no longer in {folder};"):
            data_of(choose([10, 10], recipe), of / files.SPLIT)


def test_an_added_class_that_is_composed_otherwise_is_the_runs(folder: Path) -> None:
    (folder / "daisy").rename(folder / "gru\u0308n")
    assert _meant(photos.scan(folder), ("gr\u00fcn", "tulips")).classes == ("gr\u00fcn", "tulips")


def test_a_damaged_split_of_what_is_named_is_told(folder: Path, run: Path) -> None:
    recipe = choose([10, 10], {"net": "mobilenet_v2", "photos": str(folder), "teacher": str(run)})
    (run / files.SPLIT).write_text("{")
    with pytest.raises(HandlensError, match="split"):
        list(learned.learned_by(recipe.teacher, recipe.weights))


def stored(run: Path, recipe: dict[str, str], at: Path) -> Path:
    """What is read of a run that went on from another."""
    shutil.copytree(run, at)
    facts = files.read_json(at / files.FACTS)
    files.write_json(at / files.FACTS, {**facts, "recipe": recipe})
    made = data_of(choose([10, 10], recipe), None)
    photos.write_split(at / files.SPLIT, made.splits, made.sha256, 0)
    return at


def test_added_photos_whose_folder_is_gone(folder: Path, run: Path, tmp_path: Path) -> None:
    """Splits that had none of them are whole; of a run that went on from there, too."""
    for index in range(6):
        small(tmp_path / "more" / "tulips" / f"{index}.png", "tulips", 40 + index)
    small(tmp_path / "last" / "daisy" / "0.png", "daisy", 50)
    recipes = [
        {"continue_run": str(run), "add": str(tmp_path / "more")},
        {"continue_run": str(tmp_path / "second"), "add": str(tmp_path / "last")},
    ]
    second, third = (
        stored(run, recipe, tmp_path / name) for recipe, name in zip(recipes, ("second", "third"), strict=True)
    )
    sizes = {
        name: len(part) for name, part in data_of(choose([10, 10], recipes[1]), third / files.SPLIT).splits.items()
    }
    (tmp_path / "more").rename(tmp_path / "moved")
    told = (
        rf"photos that {second} added are no longer in {tmp_path / 'more'}, of which it has 5 in train and 1 in valid"
    )
    for recipe, of in zip(recipes, (second, third), strict=True):
        left = data_of(choose([10, 10], recipe), of / files.SPLIT, asked=("test",))
        assert {*left.splits["test"].paths} and {left.sha256[path] for path in left.splits["test"].paths} == {
            *files.read_json(run / files.SPLIT)["test"].values()
        }
        assert len(left.splits["train"]) == 16 + (of == third)
        assert any(re.search(told, note) and note.endswith(": it goes without them") for note in left.notes)
        for asked in (("train",), ("validation",), ("train", "validation", "test")):
            with pytest.raises(HandlensError, match=rf"{told}.*; put them back, or say where .* in {second}.*json"):
                data_of(choose([10, 10], recipe), of / files.SPLIT, asked=asked)
    with pytest.raises(HandlensError, match="no longer in"):
        data_of(choose([10, 10], {"continue_run": str(second)}), None)
    facts = files.read_json(second / files.FACTS)
    files.write_json(second / files.FACTS, {**facts, "recipe": {**recipes[0], "add": str(tmp_path / "moved")}})
    again = data_of(choose([10, 10], recipes[1]), third / files.SPLIT)
    assert {name: len(part) for name, part in again.splits.items()} == sizes


def test_many_photos_that_come_to_train_take_no_longer_each(folder: Path) -> None:
    asked = []

    class Paths(list[str]):
        def __iter__(self) -> Iterator[str]:
            asked.append(1)
            return super().__iter__()

    splits = data(folder).splits
    assert len(_to_train(splits, Paths(splits["test"].paths))["train"]) == 18
    assert len(asked) == 1
