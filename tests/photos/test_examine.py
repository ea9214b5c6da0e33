"""Every photo is looked at once; what is broken is listed, and nothing is looked at twice."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.errors import HandlensError
from handlens.files import cache_folder
from handlens.photos import drawn, examine, scan, usable

Make = Callable[..., Path]
ROOM = sys.modules["handlens.photos.examine"]
pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each photo that is decoded."""
    calls: list[int] = []
    real = ROOM.open_photo
    monkeypatch.setattr(ROOM, "open_photo", lambda data: (calls.append(1), real(data))[1])
    return calls


def test_whole_photos(make_folder: Make) -> None:
    photos = scan(make_folder({"a": 3, "b": 2}))
    findings = examine(photos)
    assert findings.broken == []
    assert findings.duplicates == []
    assert findings.sha256 == {
        path: hashlib.sha256((photos.root / path).read_bytes()).hexdigest() for path in photos.paths
    }
    assert len(set(findings.pixels.values())) == 5
    assert usable(photos, findings).paths == photos.paths


def test_broken_photos_are_listed_and_left_out(make_folder: Make) -> None:
    root = make_folder({"a": 4, "b": 2})
    whole = (root / "a" / "000.png").read_bytes()
    (root / "a" / "000.png").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "001.png").write_bytes(b"")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    photos = scan(root)
    findings = examine(photos)
    reasons = dict(findings.broken)
    assert list(reasons) == ["a/000.png", "a/001.png", "a/gone.png"]
    assert reasons["a/000.png"].startswith("is damaged (")
    assert reasons["a/001.png"] == "is empty"
    assert reasons["a/gone.png"] == "cannot be read (No such file or directory)"
    assert findings.sha256["a/000.png"] == hashlib.sha256(whole[: len(whole) // 2]).hexdigest()
    assert "a/gone.png" not in findings.sha256
    assert set(findings.pixels) == {"a/002.png", "a/003.png", "b/000.png", "b/001.png"}
    assert usable(photos, findings).paths == ("a/002.png", "a/003.png", "b/000.png", "b/001.png")


def test_a_class_of_broken_photos_only(make_folder: Make) -> None:
    root = make_folder({"a": 2, "b": 2, "c": 1})
    for i in range(2):
        (root / "b" / f"00{i}.png").write_bytes(b"text")
    (root / "a" / "000.png").write_bytes(b"text")
    photos = scan(root)
    with pytest.raises(HandlensError, match=r"all photos of 'b' are broken \(the first: b/000.png is not a photo"):
        usable(photos, examine(photos))


def test_duplicates_are_equal_pixels_whatever_the_file(make_folder: Make) -> None:
    root = make_folder({"a": 3, "b": 1})
    first = Image.open(root / "a" / "000.png")
    first.save(root / "b" / "copy.bmp")  # another format, the same pixels
    (root / "b" / "same.png").write_bytes((root / "a" / "001.png").read_bytes())
    mirrored = Image.fromarray(np.asarray(first)[:, ::-1])
    mirrored.save(root / "b" / "mirrored.png")
    Image.fromarray(np.asarray(first).reshape(8, 6, 3)).save(root / "b" / "same bytes, other shape.png")
    findings = examine(scan(root))
    assert findings.duplicates == [["a/000.png", "b/copy.bmp"], ["a/001.png", "b/same.png"]]
    assert findings.sha256["a/000.png"] != findings.sha256["b/copy.bmp"]


def test_a_second_look_decodes_only_what_is_new(make_folder: Make, make_photo: Make, opened: list[int]) -> None:
    root = make_folder({"a": 3, "b": 2})
    first = examine(scan(root))
    assert len(opened) == 5
    assert examine(scan(root)) == first
    assert len(opened) == 5
    make_photo(root / "b" / "new.png")
    changed = root / "a" / "000.png"
    stamp = changed.stat()
    changed.write_bytes((root / "a" / "001.png").read_bytes())
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    second = examine(scan(root))
    assert len(opened) == 6  # the changed one has the content of another
    assert second.sha256["a/000.png"] == second.sha256["a/001.png"] != first.sha256["a/000.png"]
    examine(scan(root).select([0]))  # some of the photos: the others are remembered all the same
    examine(scan(root))
    assert len(opened) == 6
    stamp = changed.stat()
    changed.write_bytes(changed.read_bytes() + b"longer")
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a copy of an archive may have it
    assert examine(scan(root)).sha256["a/000.png"] != second.sha256["a/000.png"]
    assert len(opened) == 7


def test_broken_photos_are_looked_at_again(make_folder: Make, opened: list[int]) -> None:
    root = make_folder({"a": 2, "b": 1})
    (root / "a" / "000.png").write_bytes(b"HEIC, before its package was installed")
    for looks in (3, 4):
        assert len(examine(scan(root)).broken) == 1
        assert len(opened) == looks


DAMAGE = {
    "text": lambda cache: cache.write_text("not JSON"),
    "list": lambda cache: cache.write_text("[]"),
    "entries": lambda cache: cache.write_text(
        json.dumps(json.loads(cache.read_text()) | {"photos": {"a/000.png": [1, 2]}})
    ),
    "kinds": lambda cache: cache.write_text(json.dumps(json.loads(cache.read_text()) | {"photos": {"a/000.png": 7}})),
    "quality": lambda cache: cache.write_text(cache.read_text().replace(", null]", ", [0.5]]")),
    "version": lambda cache: cache.write_text(json.dumps(json.loads(cache.read_text()) | {"version": 3})),
    "another Pillow": lambda cache: cache.write_text(cache.read_text().replace(ROOM.PIL.__version__, "0.0")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_cache_that_cannot_be_trusted_is_not(make_folder: Make, opened: list[int], damage: str) -> None:
    photos = scan(make_folder({"a": 2, "b": 1}))
    first = examine(photos)
    (cache,) = (cache_folder() / "examined").iterdir()
    DAMAGE[damage](cache)
    assert examine(photos) == first
    assert len(opened) == 6
    assert examine(photos) == first
    assert len(opened) == 6


def test_no_room_for_the_cache_is_no_error(make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "file"))  # a file where a folder should be
    assert len(examine(scan(make_folder({"a": 2, "b": 1}))).sha256) == 3


def test_progress_and_ctrl_c(make_folder: Make, opened: list[int]) -> None:
    photos = scan(make_folder({"a": 4, "b": 2}))
    seen: list[tuple[int, int]] = []

    def stop_at_three(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(photos, progress=stop_at_three)
    assert seen == [(0, 6), (1, 6), (2, 6), (3, 6)]
    opened.clear()
    seen.clear()
    examine(photos, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]  # what was seen before Ctrl-C is not looked at again
    assert len(opened) == 3


def test_another_thread_may_clear_what_was_found(make_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cleared(dict[str, object]):
        def __setitem__(self, *_: object) -> None:
            self.clear()

    monkeypatch.setattr(ROOM, "_FOUND", Cleared())
    assert examine(scan(make_folder({"a": 2}))).near_duplicates() == []


TORN = {
    "not JSON": lambda value: "[",
    "no groups": lambda value: json.dumps({"version": value["version"]}),
    "a list": lambda value: json.dumps([value]),
    "other photos": lambda value: json.dumps({**value, "groups": [[0, 99]]}),
    "no version": lambda value: json.dumps({"groups": [], "by_nature": []}),
    "no numbers": lambda value: json.dumps({**value, "groups": [[True, False]]}),
    "deeper": lambda value: json.dumps({**value, "groups": [[[0]]]}),
    "another version": lambda value: json.dumps({**value, "version": 0}),
}


@pytest.mark.parametrize("torn", TORN)
def test_near_duplicates_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str) -> None:
    folder = tmp_path / "photos" / "daisy"
    folder.mkdir(parents=True)
    for index in range(12):
        drawn.picture("daisy", index)[0].save(folder / f"{index}.jpg", quality=90)
    drawn.picture("daisy", 0)[0].save(folder / "again.jpg", quality=50)

    def groups() -> list[list[str]]:
        monkeypatch.setattr(ROOM, "_FOUND", {})  # as a new process has it
        return examine(scan(tmp_path / "photos")).near_duplicates()

    expected, searched = [["daisy/0.jpg", "daisy/again.jpg"]], []
    assert groups() == expected
    alike = ROOM.near.alike
    monkeypatch.setattr(ROOM.near, "alike", lambda *given: searched.append(1) or alike(*given))
    assert groups() == expected and not searched
    (kept,) = (cache_folder() / "alike").iterdir()
    kept.write_text(TORN[torn](json.loads(kept.read_text())))
    assert groups() == expected and len(searched) == 1
    assert groups() == expected and len(searched) == 1


def test_the_shared_photos(shared: Path) -> None:
    folder = shared / "data" / "flower_photos"
    if not folder.is_dir():
        pytest.skip("no flower photos in the shared folder")
    photos = scan(folder)
    assert photos.counts().tolist() == [506, 718, 512, 559, 639]
    daisies = photos.select(np.flatnonzero(photos.labels == 0))
    findings = examine(daisies)
    assert findings.broken == []
    assert len(findings.pixels) == 506
