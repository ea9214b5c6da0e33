"""What is found in folders and CSVs, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handlens import files
from handlens.errors import HandlensError
from handlens.photos import Photos, check_trainable, scan
from handlens.photos.scan import photos_below

Make = Callable[..., Path]


def test_one_subfolder_a_class(make_folder: Make) -> None:
    photos = scan(make_folder({"tulips": 2, "daisy": 3, "Roses": 1}))
    assert photos.classes == ("Roses", "daisy", "tulips")  # sorted as Python and torchvision sort
    assert photos.paths == (
        "Roses/000.png", "daisy/000.png", "daisy/001.png", "daisy/002.png", "tulips/000.png", "tulips/001.png",
    )  # fmt: skip
    assert photos.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert photos.labels.dtype == np.int64
    assert photos.counts().tolist() == [1, 3, 2]
    assert photos.splits is None
    assert len(photos) == 6
    assert photos.path(1).is_file()


def test_nested_files_count_and_rubbish_does_not(make_folder: Make, make_photo: Make) -> None:
    root = make_folder({"a": 1, "b": 1})
    make_photo(root / "a" / "2024" / "may" / "x.JPG")
    make_photo(root / "a" / ".thumbnails" / "x.jpg")
    make_photo(root / "a" / "._000.png")
    make_photo(root / "__MACOSX" / "a" / "x.jpg")
    make_photo(root / ".cache" / "x.jpg")
    make_photo(root / "overview.png")
    for name in ("a/Thumbs.db", "a/notes.txt", "b/.DS_Store", "LICENSE.txt"):
        (root / name).write_bytes(b"x")
    photos = scan(root)
    assert photos.classes == ("a", "b")
    assert photos.paths == ("a/000.png", "a/2024/may/x.JPG", "b/000.png")


RUNS = ("handlens.json", "bundle.json", "recipe.toml split.json")
OTHERS = ("numbers.json figure.png", "site.json sw.js", files.MADE)


@pytest.mark.parametrize("names", [*RUNS, *OTHERS])
def test_what_was_made_among_the_photos_is_none_of_them(make_folder: Make, make_photo: Make, names: str) -> None:
    for layout in ({"a": 2, "b": 1}, {"train/a": 2, "train/b": 1, "test/a": 1}):
        root = make_folder(layout, root=f"{len(layout)} {names}")
        before = scan(root)
        for folder in ("runs/first", "runs/five/seed-0", "a run", next(iter(layout)) + "/tried"):
            make_photo(root / folder / "curves.png")
            for name in names.split():
                (root / folder / name).write_bytes(b"")
        found = scan(root)
        assert (found.classes, found.paths, found.splits) == (before.classes, before.paths, before.splits)
    make_photo(root / "runs" / "loose.png")
    with pytest.raises(HandlensError, match="has split folders and also 'runs'"):
        scan(root)
    assert "curves.png" in photos_below(root / "a run")  # named by itself


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "HEIF"])
def test_suffixes(make_folder: Make, suffix: str) -> None:
    root = make_folder({"a": 1})
    (root / "a" / f"x.{suffix}").write_bytes(b"scan opens no photo")
    assert f"a/x.{suffix}" in scan(root).paths


def test_names_of_every_kind(make_folder: Make, make_photo: Make) -> None:
    root = make_folder({"雏菊": 1, "🌼 wild": 1, "a b": 1}, root="my photos 📷")
    make_photo(root / "雏菊" / "花 1.png")
    assert set(scan(root).classes) == {"雏菊", "🌼 wild", "a b"}
    assert "雏菊/花 1.png" in scan(root).paths
    assert scan(str(root)).path(0).is_file()


def test_named_splits(make_folder: Make) -> None:
    root = make_folder({"train/a": 3, "train/b": 2, "val/a": 1, "val/b": 1, "test/b": 1})
    photos = scan(root)
    assert photos.classes == ("a", "b")
    assert photos.splits == ("train",) * 5 + ("validation",) * 2 + ("test",)
    assert photos.labels.tolist() == [0, 0, 0, 1, 1, 0, 1, 1]
    assert photos.paths[0] == "train/a/000.png"
    check_trainable(photos)


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("valid", "validation"),
        ("validation", "validation"),
        ("Val", "validation"),
        ("test", "test"),
        ("Testing", "test"),
    ],
)
def test_other_names_of_splits(make_folder: Make, folder: str, split: str) -> None:
    photos = scan(make_folder({"train/a": 1, "train/b": 1, f"{folder}/a": 1}))
    assert set(photos.splits or ()) == {"train", split}


def test_training_and_testing_are_splits_and_named_as_they_are(make_folder: Make) -> None:
    photos = scan(make_folder({"Training/a": 2, "Training/b": 2, "Testing/a": 1}))
    assert (photos.classes, photos.splits) == (("a", "b"), ("train",) * 4 + ("test",))
    with pytest.raises(HandlensError, match="Training has a class without photos: 'b'"):
        scan(make_folder({"Training/a": 2, "Training/b": 0, "Testing/a": 1}, root="empty"))
    with pytest.raises(HandlensError, match="Testing has the class 'c'") as caught:
        scan(make_folder({"Training/a": 2, "Testing/c": 1}, root="other"))
    assert "other/Training/c or remove it" in caught.value.hint


def test_train_alone_and_empty_classes_elsewhere(make_folder: Make) -> None:
    assert scan(make_folder({"train/a": 1, "train/b": 1})).splits == ("train", "train")
    assert len(scan(make_folder({"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 0}, root="other"))) == 3


def test_empty_classes_are_kept_where_that_is_wanted(make_folder: Make) -> None:
    photos = scan(make_folder({"a": 2, "b": 0, "c": 3}), keep_empty=True)
    assert (photos.classes, photos.counts().tolist()) == (("a", "b", "c"), [2, 0, 3])
    root = make_folder({"train/a": 1, "train/b": 0, "test/a": 1, "test/c": 1, "test/d": 0}, root="splits")
    photos = scan(root, keep_empty=True)
    assert (photos.classes, photos.counts().tolist()) == (("a", "b", "c"), [2, 0, 1])
    with pytest.raises(HandlensError, match="no photo to train on in 'b', 'c'"):
        check_trainable(photos)
    with pytest.raises(HandlensError, match="has no photos"):
        scan(make_folder({"a": 0, "b": 0}, root="none"), keep_empty=True)


def test_a_class_may_be_called_train(make_folder: Make) -> None:
    photos = scan(make_folder({"train": 2, "plane": 1, "ship/test": 1}))
    assert photos.classes == ("plane", "ship", "train")
    assert photos.splits is None


FOLDERS = {  # what is there: what is said
    "nothing": ({}, "has no photos: it is empty"),
    "empty class": ({"a": 2, "b": 0, "c": 3}, "a class without photos: 'b'"),
    "fewer photos than classes": ({"a": 1, "b": 0, "c": 0, "d": 0}, "1 photo in 4 class folders.*'b', 'c', 'd'"),
    "empty class in train": ({"train/a": 1, "train/b": 0, "test/a": 1}, "train has .*'b'"),
    "unknown class in test": ({"train/a": 1, "train/b": 1, "test/c": 1}, "test has the class 'c'"),
    "splits and more": ({"train/a": 1, "test/a": 1, "extra/a": 1}, "has split folders and also 'extra'"),
    "splits without classes": ({"train": 3, "test": 2}, "train has 3 photos in no class folder"),
    "loose photos in test": ({"train/a": 1, "train/b": 1, "test": 4}, "test has 4 photos in no class folder"),
    "no photos in splits": ({"train/a": 0, "test/a": 0}, "has no photos"),
    "loose photos": ({".": 3}, "has 3 photos but no class folders"),
    "control character": ({"roses\r": 1, "b": 2}, r"a class with a control character in its name: 'roses\\r'"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_make_no_sense(make_folder: Make, tmp_path: Path, name: str) -> None:
    counts, words = FOLDERS[name]
    (tmp_path / "photos").mkdir()
    with pytest.raises(HandlensError, match=words) as caught:
        scan(make_folder(counts))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_what_was_found_instead(make_folder: Make) -> None:
    root = make_folder({"a": 0, "b": 0})
    for name in ("a/1.mp4", "a/2.MP4", "b/read me"):
        (root / name).write_bytes(b"x")
    with pytest.raises(HandlensError, match=r"has no photos: found files with \.mp4 \(2\), no suffix \(1\)"):
        scan(root)


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="no photos were given"):
        scan("")
    with pytest.raises(HandlensError, match=r"there is no folder .*nowhere"):
        scan(tmp_path / "nowhere")
    with pytest.raises(HandlensError, match=r"did you mean flower_photos\?"):
        scan("flower_photo")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(HandlensError, match="is a file, expected a folder of photos or a CSV"):
        scan(tmp_path / "a.jpg")


def test_a_folder_that_may_not_be_read(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 1, "b": 1})
    walk = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(HandlensError, match="b may not be read"):
        scan(root)


def test_links_that_lead_in_a_circle(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 1, "b": 1})
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    visits: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **given: (visits.append(path), real(path, **given))[1])
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    assert scan(root).paths == ("a/000.png", "b/000.png", "b/gone.png")  # examine reports the link to nothing
    assert len([path for path in visits if Path(path) != root]) == 3  # a, the link back to a, b


# Training needs more --------------------------------------------------------------------------------------------------


def test_one_class_only(make_folder: Make) -> None:
    photos = scan(make_folder({"a": 3}))
    with pytest.raises(HandlensError, match=r"one class only \(a\), expected at least two"):
        check_trainable(photos)


def test_one_folder_too_high(make_folder: Make) -> None:
    root = make_folder({"flowers/a": 3, "flowers/b": 3})
    with pytest.raises(HandlensError, match=r"did you mean .*flowers\?"):
        check_trainable(scan(root))


def test_too_few_photos(make_folder: Make) -> None:
    photos = scan(make_folder({"a": 2, "b": 2}))
    with pytest.raises(HandlensError, match=r"no class of .* has three different photos"):
        check_trainable(photos)
    with pytest.raises(HandlensError, match="1 photo for 2 classes"):
        check_trainable(photos.select([0]))
    with pytest.raises(HandlensError, match="no photo to train on in 'b'"):
        check_trainable(photos.select([0, 1]))
    check_trainable(scan(make_folder({"a": 3, "b": 1}, root="enough")))


# A table of photos ----------------------------------------------------------------------------------------------------


@pytest.fixture
def table(make_folder: Make) -> Callable[..., Path]:
    root = make_folder({"x": 4, "with space, comma": 1})

    def write(text: str, encoding: str = "utf-8") -> Path:
        (root / "photos.csv").write_bytes(text.encode(encoding))
        return root / "photos.csv"

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(table: Callable[..., Path], encoding: str, newline: str) -> None:
    rows = ["path,label", "x/000.png,tulpe", '"with space, comma/000.png", Gänseblümchen ', "", "x/001.png,tulpe"]
    file = table(newline.join(rows) + newline, encoding)
    photos = scan(file)
    assert photos.root == file.parent
    assert photos.classes == ("Gänseblümchen", "tulpe")
    assert photos.paths == ("x/000.png", "with space, comma/000.png", "x/001.png")
    assert photos.labels.tolist() == [1, 0, 1]
    assert photos.splits is None


def test_csv_with_splits_other_columns_and_another_order(table: Callable[..., Path]) -> None:
    photos = scan(table("Split,who,Label,Path\ntrain,me,a,x/000.png\nval,me,b,x/001.png\nTEST,me,b,x/002.png\n"))
    assert photos.splits == ("train", "validation", "test")
    assert photos.paths == ("x/000.png", "x/001.png", "x/002.png")


def test_csv_with_absolute_paths(table: Callable[..., Path], tmp_path: Path, make_photo: Make) -> None:
    outside = make_photo(tmp_path / "elsewhere" / "y.png")
    file = table(f"path,label\n{(tmp_path / 'photos' / 'x' / '000.png').resolve()},a\n{outside},b\n")
    photos = scan(file)
    assert photos.paths == ("x/000.png", outside.as_posix())
    assert all(photos.path(i).is_file() for i in range(2))


@pytest.mark.parametrize("name", ["Bild 9.41\u202fPM.png", "nbsp\xa0.png", "全角\u3000.png", "می\u200cروم.png"])
def test_csv_with_any_names(table: Callable[..., Path], make_photo: Make, tmp_path: Path, name: str) -> None:
    make_photo(tmp_path / "photos" / name)
    assert scan(table(f"path,label\n{name},{Path(name).stem}\nx/000.png,b\n")).paths[0] == name
    with pytest.raises(HandlensError, match="control character"):
        scan(table("path,label\nx/000.png,b\x1b[0m\n"))


CSVS = {
    "": "first row of .* is '', expected the header path,label",
    "x/000.png,a\n": "first row of .* is 'x/000.png,a'",
    "path;label\nx/000.png;a\n": "first row of .* is 'path;label', .*; save it with commas between the columns",
    'Path;"Label";split\r\nx/000.png;a;test\r\n': "first row of .* is 'Path;.*; save it with commas",
    '"path"\t"label"\nx/000.png\ta\n': "first row of .*; save it with commas",
    "sep=,\npath,label\nx/000.png,a\n": "first row of .* is 'sep=,', .*; remove the first line",
    "Fotos/Rose.png,Rose\n": "first row of .* is 'Fotos/Rose.png,Rose', expected the header path,label",
    "path,label\n": "has no photos, only a header",
    "path,label\nx/000.png\n": "row 2 of .* has 1 cell, expected 2",
    "path,label\nx/000.png,a\nx/001.png,\n": "row 3 of .* has no label",
    "path,label\n,a\n": "row 2 of .* has no path",
    "path,label\nx/000.png,a\n\nx/009.png,a\n": "row 4 of .* names x/009.png, which does not exist",
    "path,label\nx/000.png,a\nx/001.png,a\n./x/000.png,b\n": "row 4 of .* names x/000.png again, after row 2",
    "path,label,split\nx/000.png,a,trained\n": "row 2 of .* has the split 'trained', expected 'train', 'valid",
    "path,label,split\nx/000.png,a,train\nx/001.png,a,\n": "row 3 of .* has the split ''",
    'path,label\nx/000.png,"a\n': "row 2 of .* cannot be read",
    "path,label\nx,a\n": "row 2 of .* names x, a folder; a row is for one photo",
}


@pytest.mark.parametrize("text", CSVS)
def test_csvs_that_make_no_sense(table: Callable[..., Path], text: str) -> None:
    with pytest.raises(HandlensError, match=CSVS[text]):
        scan(table(text))


@pytest.mark.parametrize(("mark", "label"), [("", "a"), ('"', " a ")])
def test_csv_with_spaces(table: Callable[..., Path], mark: str, label: str) -> None:
    assert scan(table(f"{mark}path{mark},{mark}label{mark}\nx/000.png,{mark} a {mark}\n")).classes == (label,)


def test_csv_in_another_encoding(table: Callable[..., Path]) -> None:
    with pytest.raises(HandlensError, match=r"photos\.csv is not UTF-8 text; save it as"):
        scan(table("path,label\nx/000.png,Gänseblümchen\n", "latin-1"))


# The value ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three() -> Photos:
    return Photos(
        root=Path("r"),
        paths=("a/1", "b/1", "b/2", "c/1"),
        labels=np.array([0, 1, 1, 2]),
        classes=("a", "b", "c"),
        splits=("train", "train", "test", "train"),
    )


def test_select_and_without(three: Photos) -> None:
    chosen = three.select(np.array([3, 1]))
    assert (chosen.paths, chosen.labels.tolist(), chosen.splits) == (("c/1", "b/1"), [2, 1], ("train", "train"))
    assert chosen.classes == three.classes
    assert three.without(["b/1", "unknown"]).paths == ("a/1", "b/2", "c/1")
    assert three.select([]).counts().tolist() == [0, 0, 0]
    assert three.select(three.labels == 1).paths == ("b/1", "b/2")


def test_classes_are_matched_by_name(three: Photos) -> None:
    matched = three.as_classes(["c", "x", "b", "a"])
    assert matched.labels.tolist() == [3, 2, 2, 0]
    assert matched.classes == ("c", "x", "b", "a")
    assert [matched.classes[i] for i in matched.labels] == [three.classes[i] for i in three.labels]
    assert three.as_classes(three.classes).labels.tolist() == three.labels.tolist()


def test_other_classes_are_refused_by_name(three: Photos) -> None:
    with pytest.raises(HandlensError) as refused:
        three.as_classes(["Z", "b", "lily"])
    assert refused.value.message == f"{three.root} has classes that are not among the expected ones: 'a', 'c'"
    assert refused.value.hint.startswith("those are 'Z', 'b', 'lily': rename the folders, or ")
    with pytest.raises(HandlensError, match="rename 'b' to 'bb'"):
        three.as_classes(["a", "bb", "c"])


COMPOSED, APART = "gr\u00fcn", "gru\u0308n"  # one name, as most write it and as a zip of macOS may have it


@pytest.mark.parametrize(("name", "known"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_name_that_is_composed_otherwise_is_the_same(make_folder: Make, name: str, known: str) -> None:
    matched = scan(make_folder({"a": 1, name: 2})).as_classes([known, "a"])
    assert (matched.classes, matched.labels.tolist()) == ((known, "a"), [1, 0, 0])
    photos = scan(make_folder({"train/a": 1, f"train/{known}": 2, f"val/{name}": 1, f"test/{name}": 1}, root="splits"))
    assert (photos.classes, photos.counts().tolist()) == (("a", known), [1, 4])
    assert all(photos.path(index).is_file() for index in range(len(photos)))


def test_names_that_are_told_apart_by_their_composition_stay_apart(three: Photos) -> None:
    photos = dataclasses.replace(three, classes=(COMPOSED, APART, "c"))
    assert photos.as_classes([APART, "c", COMPOSED]).labels.tolist() == [{0: 2, 1: 0, 2: 1}[k] for k in three.labels]


def test_photos_and_pixels_load_no_torch() -> None:
    code = (
        "import sys, handlens.photos, handlens.preprocess; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
