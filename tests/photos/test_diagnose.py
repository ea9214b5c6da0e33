"""Each fault is called by its name, and only where it is."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from handlens.errors import HandlensError
from handlens.photos import Photos, clean, drawn, examine, quality, scan
from handlens.photos.clean import leave_out, write_copy, write_list
from handlens.photos.diagnose import KINDS, Finding, diagnose, sides, statistics
from handlens.preprocess import open_photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve good drawn photos in two classes."""
    for name in ("daisy", "tulips"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            drawn.picture(name, index)[0].save(tmp_path / "photos" / name / f"{index}.jpg", quality=90)
    return tmp_path / "photos"


def found_in(folder: Path, splits: dict[str, str] | None = None) -> tuple[Photos, Any, list[Finding]]:
    photos = scan(folder)
    findings = examine(photos, with_quality=True)
    return photos, findings, diagnose(photos, findings, findings.near_duplicates(), splits)


def encoded(photo: Image.Image, format_: str, **more: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, format_, **more)
    return file.getvalue()


def test_a_series_is_no_label_conflict_and_is_not_left_out(folder: Path) -> None:
    whole = drawn.picture("daisy", 0)[0]
    for number in range(1, 11):
        frame = whole.crop((number // 2, number, 114 + number // 2, 114 + number))
        frame.save(folder / ("daisy", "tulips")[number % 2] / f"frame-{number}.png")
    for number in range(6, 60):
        drawn.picture("tulips", number)[0].save(folder / "tulips" / f"{number}.jpg")
        drawn.picture("daisy", number)[0].save(folder / "daisy" / f"{number}.jpg")
    photos, findings, listed = found_in(folder, {"daisy/0.jpg": "train", "tulips/frame-1.png": "test"})
    kinds = {finding.kind: finding for finding in listed}
    assert len(kinds["series"].photos) == 11 and set(kinds["series"].photos) == set(kinds["leak"].photos)
    assert "label-conflict" not in kinds
    assert len(leave_out(photos, findings, listed)) < 6


@pytest.mark.parametrize("other", ["daisy", "tulips"])
def test_many_copies_of_one_photo_are_told(folder: Path, other: str) -> None:
    for number in range(6, 60):
        for name in ("daisy", "tulips"):
            drawn.picture(name, number)[0].save(folder / name / f"{number}.jpg")
    whole = drawn.picture("daisy", 99)[0]
    for percent in range(50, 100, 5):
        whole.save(folder / ("daisy" if percent > 50 else other) / f"quality-{percent}.jpg", quality=percent)
    photos, findings, listed = found_in(folder)
    ((kind, paths, _),) = [finding for finding in listed if len(finding.photos) > 1]
    assert kind == ("near-duplicates" if other == "daisy" else "label-conflict")
    assert len(paths) == 10 and all("quality" in path for path in paths)
    assert len(leave_out(photos, findings, listed)) == (9 if other == "daisy" else 10)


def test_one_camera_makes_no_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(80):
        photo = drawn.picture("daisy", 0)[0].convert("RGB")
        left, top = rng.integers(0, 100, 2).tolist()
        draw = ImageDraw.Draw(photo)
        (draw.ellipse if number % 2 else draw.rectangle)((left, top, left + 26, top + 26), fill=(255, 240, 30))
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        photo.save(tmp_path / "ab"[number % 2] / f"{number}.png")
    photos, findings, listed = found_in(tmp_path)
    assert [finding.kind for finding in listed] == ["alike-by-nature"]
    assert leave_out(photos, findings, listed) == {}


def turned(photo: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo, "JPEG", exif=exif)


FAULTS: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "zero-byte": (".jpg", lambda photo: b""),
    "unreadable": (".jpg", lambda photo: b"<html>not found</html>"),
    "truncated": (".jpg", lambda photo: encoded(photo, "JPEG")[:-900]),
    "wrong-extension": (".jpg", lambda photo: encoded(photo, "PNG")),
    "animated": (".gif", lambda photo: encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(90)])),
    "rotated": (".jpg", turned),
    "grey": (".jpg", lambda photo: encoded(photo.convert("L"), "JPEG")),
    "alpha": (".png", lambda photo: encoded(photo.convert("RGBA"), "PNG")),
    "odd-size": (".png", lambda photo: encoded(photo.resize((20, 20)), "PNG")),
    "odd-shape": (".png", lambda photo: encoded(photo.crop((0, 50, 128, 80)), "PNG")),
    "blurred": (".png", lambda photo: encoded(photo.filter(ImageFilter.GaussianBlur(3)), "PNG")),
    "dark": (".png", lambda photo: encoded(photo.point(lambda value: value // 8), "PNG")),
    "bright": (".png", lambda photo: encoded(photo.point(lambda value: 220 + value // 8), "PNG")),
    "nearly-empty": (".png", lambda photo: encoded(Image.new("RGB", photo.size, (90, 120, 90)), "PNG")),
    "too-large": (".png", lambda photo: encoded(Image.new("1", (10_000, 5_001)), "PNG")),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_named(folder: Path, kind: str) -> None:
    suffix, make = FAULTS[kind]
    (folder / "daisy" / f"fault{suffix}").write_bytes(make(drawn.picture("roses", 3)[0]))
    of_kind = [finding for finding in found_in(folder)[2] if finding.kind == kind]
    assert [finding.photos for finding in of_kind] == [(f"daisy/fault{suffix}",)]
    assert of_kind[0].detail


def test_good_photos_have_no_fault_but_their_number(folder: Path) -> None:
    found = found_in(folder)[2]
    assert found == [Finding("few-photos", (), "daisy: 6"), Finding("few-photos", (), "tulips: 6")]
    assert {kind for kind, _ in FAULTS.items()} <= set(KINDS)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_file_cut_short_is_truncated_in_each_format(folder: Path, format_: str) -> None:
    whole = encoded(drawn.picture("roses", 3)[0], format_)
    (folder / "daisy" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    _, findings, found = found_in(folder)
    if not findings.broken:  # the decoder of this format takes what there is
        pytest.skip(f"Pillow reads half a {format_}")
    assert [finding.kind for finding in found if "daisy/cut.jpg" in finding.photos] == ["truncated"]


def test_conflicts_and_leaks(folder: Path) -> None:
    same = Image.open(folder / "daisy" / "0.jpg")
    same.resize((90, 90)).save(folder / "tulips" / "small.png")
    (folder / "tulips" / "copy.jpg").write_bytes((folder / "tulips" / "1.jpg").read_bytes())
    splits = {"daisy/0.jpg": "train", "tulips/small.png": "test", "tulips/1.jpg": "train", "tulips/copy.jpg": "train"}
    kinds = {finding.kind: finding for finding in found_in(folder, splits)[2]}
    assert set(kinds["label-conflict"].photos) == set(kinds["leak"].photos) == {"daisy/0.jpg", "tulips/small.png"}
    assert kinds["leak"].detail == "nearly the same: train, test"
    assert set(kinds["exact-duplicates"].photos) == {"tulips/1.jpg", "tulips/copy.jpg"}


def test_a_runs_split_names_sides_by_path_and_by_content(folder: Path) -> None:
    sha256 = examine(scan(folder)).sha256
    stored = {"version": 1, "train": {"daisy/0.jpg": sha256["daisy/0.jpg"]}, "test": {"moved": sha256["tulips/2.jpg"]}}
    (folder / "split.json").write_text(json.dumps(stored))
    assert sides(folder / "split.json", sha256) == {"daisy/0.jpg": "train", "tulips/2.jpg": "test"}


def test_classes(make_folder: Callable[..., Path]) -> None:
    photos = scan(make_folder({"Red Rose": 25, "red_rose": 21, "lily": 130}))
    found = diagnose(photos, examine(photos))
    assert Finding("similar-names", (), "'Red Rose', 'red_rose'") in found
    assert Finding("imbalance", (), "130 of lily, 21 of red_rose") in found
    assert not [finding for finding in found if finding.kind == "few-photos"]


def test_classes_without_photos_to_train_on(make_folder: Callable[..., Path]) -> None:
    photos = scan(make_folder({"train/a": 21, "train/b": 0, "test/a": 1, "test/c": 30}), keep_empty=True)
    found = [finding for finding in diagnose(photos, examine(photos)) if not finding.photos]
    assert found == [
        Finding("empty-class", (), "b: no photo"),
        Finding("empty-class", (), "c: no photo in train, 30 elsewhere"),
    ]
    ready = scan(make_folder({"train/a": 21, "train/c": 20, "test/a": 1}, root="ready"), keep_empty=True)
    assert not [finding for finding in diagnose(ready, examine(ready)) if finding.kind == "empty-class"]


def test_duplicates_in_two_classes_are_told_once(folder: Path) -> None:
    data = (folder / "daisy" / "1.jpg").read_bytes()
    (folder / "tulips" / "of-daisy.jpg").write_bytes(data)
    (folder / "daisy" / "again.jpg").write_bytes((folder / "daisy" / "2.jpg").read_bytes())
    Image.open(folder / "daisy" / "3.jpg").resize((90, 90)).save(folder / "tulips" / "small.png")
    photos, findings, found = found_in(folder)
    groups = {finding.photos: finding.kind for finding in found if len(finding.photos) > 1}
    assert groups == {
        ("daisy/1.jpg", "tulips/of-daisy.jpg"): "label-conflict",
        ("daisy/3.jpg", "tulips/small.png"): "label-conflict",
        ("daisy/2.jpg", "daisy/again.jpg"): "exact-duplicates",
    }
    assert len([finding for finding in found if len(finding.photos) > 1]) == 3
    out = leave_out(photos, findings, found)
    assert set(out) == {"daisy/1.jpg", "tulips/of-daisy.jpg", "daisy/3.jpg", "tulips/small.png", "daisy/again.jpg"}


def test_statistics(folder: Path) -> None:
    Image.new("RGB", (400, 100)).save(folder / "daisy" / "long.png")
    told = statistics(examine(scan(folder)))
    assert told["longer side, px"] == "128 to 400, median 128"
    assert told["longer for shorter side"] == "1 to 4, median 1"


def test_what_is_left_out(folder: Path) -> None:
    Image.open(folder / "daisy" / "0.jpg").resize((64, 64)).save(folder / "daisy" / "small.png")
    (folder / "tulips" / "of-daisy.jpg").write_bytes((folder / "daisy" / "1.jpg").read_bytes())
    (folder / "tulips" / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (128, 128)).save(folder / "tulips" / "black.png")
    photos, findings, found = found_in(folder)
    out = leave_out(photos, findings, found)
    assert set(out) == {"daisy/small.png", "daisy/1.jpg", "tulips/of-daisy.jpg", "tulips/empty.jpg"}
    assert out["daisy/small.png"] == "near-duplicates: of daisy/0.jpg"  # the larger one stays
    splits = {"daisy/small.png": "test", "daisy/0.jpg": "train"}
    assert "daisy/0.jpg" in leave_out(photos, findings, found, splits)  # what the test has stays before that


def test_the_best_of_many_duplicates_is_looked_for_once(folder: Path) -> None:
    photos = scan(folder)
    findings = examine(photos)
    looked: list[str] = []

    class Facts(dict[str, Any]):
        def __getitem__(self, path: str) -> Any:
            looked.append(path)
            return findings.facts["daisy/0.jpg"]

    many = Finding("exact-duplicates", tuple(f"{k:03}.jpg" for k in range(200)), "")
    out = leave_out(photos, dataclasses.replace(findings, facts=Facts()), [many])
    assert len(out) == 199 and "000.jpg" not in out
    assert len(looked) <= 2 * 200


def test_a_copy_has_the_rest_and_the_originals_stay(folder: Path, tmp_path: Path) -> None:
    (folder / "daisy" / "empty.jpg").write_bytes(b"")
    (folder / "daisy" / "named.jpg").write_bytes(encoded(drawn.picture("roses", 3)[0], "PNG"))
    (folder / "daisy" / "deep").mkdir()
    drawn.picture("roses", 4)[0].save(folder / "daisy" / "deep" / "0.jpg")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    photos, findings, found = found_in(folder)
    out = leave_out(photos, findings, found)
    target = tmp_path / "cleaned"
    assert write_copy(target, photos, findings, out) == 14
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    made = scan(target)
    assert set(made.paths) == set(photos.paths) - {"daisy/empty.jpg", "daisy/named.jpg"} | {"daisy/named.png"}
    assert not [one for one in found_in(target)[2] if one.kind in ("zero-byte", "wrong-extension")]
    with pytest.raises(HandlensError, match="exists already"):
        write_copy(target, photos, findings, out)
    with pytest.raises(HandlensError, match="lies within"):
        write_copy(folder / "cleaned", photos, findings, out)
    with pytest.raises(HandlensError, match="no photo would be left"):
        write_copy(tmp_path / "none", photos, findings, dict.fromkeys(photos.paths, ""))


def test_a_copy_that_fails_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    photos = scan(folder)
    findings = examine(photos)
    os.remove(folder / "tulips" / "5.jpg")
    with pytest.raises(OSError):
        write_copy(tmp_path / "cleaned", photos, findings, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_photos_of_a_csv_are_laid_out_by_class(folder: Path, tmp_path: Path) -> None:
    labels = {"daisy": "a/b", "tulips": "a_b"}
    rows = [f"photos/{name}/{k}.jpg,{labels[name]},{'test' if k else 'train'}" for name in labels for k in (0, 1)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    photos = scan(tmp_path / "all.csv")
    write_copy(tmp_path / "cleaned", photos, examine(photos), {})  # beside the CSV, which lists its photos
    made = scan(tmp_path / "cleaned")
    assert made.classes == ("a_b", "a_b-2")
    assert made.splits == ("train", "train", "test", "test")
    assert made.counts().tolist() == [2, 2]


def test_folders_of_classes_below_another_are_no_split(folder: Path, tmp_path: Path) -> None:
    rows = [f"photos/{name}/{k}.jpg,{name},{'test' if k else 'train'}" for name in ("daisy", "tulips") for k in (0, 1)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *rows]))
    photos = scan(tmp_path / "all.csv")
    write_copy(tmp_path / "cleaned", photos, examine(photos), {})
    made = scan(tmp_path / "cleaned")
    assert (made.classes, made.splits) == (("daisy", "tulips"), ("train", "train", "test", "test"))


@pytest.mark.parametrize(
    ("path", "side", "by_folder"),
    [
        ("daisy/1.jpg", "", True), ("daisy/deep/1.jpg", "", True), ("train/daisy/1.jpg", "train", True),
        ("1.jpg", "", False), ("roses/daisy/1.jpg", "", False), ("/daisy/1.jpg", "", False),
        ("../daisy/1.jpg", "train", False), ("D:/daisy/1.jpg", "train", False),  # on another drive of Windows
        ("Valid/daisy/1.jpg", "validation", True), ("images/daisy/1.jpg", "train", False),
        ("test/daisy/1.jpg", "train", False),
    ],
)  # fmt: skip
def test_only_photos_in_folders_of_their_classes_keep_their_places(path: str, side: str, by_folder: bool) -> None:
    assert clean._class_folder(path, "daisy", side) == by_folder


def test_lists(tmp_path: Path) -> None:
    out = {"a/one, two.jpg": "zero-byte: is empty", "b/3.jpg": "exact-duplicates: of b/2.jpg"}
    write_list(tmp_path / "out.csv", out)
    write_list(tmp_path / "out.txt", out)
    assert (tmp_path / "out.csv").read_text().splitlines()[:2] == [
        "path,reason",
        '"a/one, two.jpg",zero-byte: is empty',
    ]
    assert (tmp_path / "out.txt").read_text() == "a/one, two.jpg\nb/3.jpg\n"


def test_what_is_measured_is_cached_by_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = examine(scan(folder), with_quality=True).facts["daisy/0.jpg"]
    (folder / "daisy" / "0.jpg").rename(folder / "daisy" / "moved.jpg")
    monkeypatch.setattr("handlens.photos.quality.measure", lambda photo: pytest.fail("decoded again"))
    assert examine(scan(folder), with_quality=True).facts["daisy/moved.jpg"] == first
    assert examine(scan(folder)).facts["daisy/moved.jpg"] == first
    assert first.width == 128
    assert np.frombuffer(first.thumbnail, np.uint8).size == 1024


def test_quality_is_measured_only_where_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []
    measure = quality.measure
    monkeypatch.setattr("handlens.photos.quality.measure", lambda photo: measured.append(photo) or measure(photo))
    photos = scan(folder)
    without = examine(photos).facts
    assert not measured and {one.quality for one in without.values()} == {None}
    assert not [one for one in diagnose(photos, examine(photos)) if one.kind in ("dark", "bright", "blurred")]
    added = examine(photos, with_quality=True).facts  # photos that were seen without are looked at once more
    assert len(measured) == len(photos)
    assert {path: one._replace(quality=None) for path, one in added.items()} == without
    assert all(one.quality == measure(open_photo(folder / path)) for path, one in added.items())
    assert examine(photos).facts == added and len(measured) == len(photos)
