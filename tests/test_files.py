"""Whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlens import files
from handlens.errors import HandlensError


def test_atomic_writes_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "花朵 🌼.txt"
    with files.atomic(path, "w") as file:
        file.write("é")
    assert path.read_bytes() == "é".encode()


def test_an_error_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), files.atomic(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_content_appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with files.atomic(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
    assert path.exists()


def test_full_disk_is_one_sentence_and_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HandlensError, match="disk is full"), files.atomic(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="needs /dev/full")
def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("w", buffering=1) as file:
        file.write("x" * 100_000)
    assert "disk is full" in str(files.disk_error(caught.value, "x"))


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(HandlensError, match="in the way"), files.atomic(tmp_path / "a" / "b.txt") as file:
        file.write(b"")


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(HandlensError, match="in the way"), files.atomic(tmp_path / "a") as file:
        file.write(b"")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name, old in (("there.csv", "old"), ("not yet.csv", "")):
        link, real = tmp_path / f"link to {name}", tmp_path / "real" / name
        link.symlink_to(Path("real", name))
        if old:
            real.write_text(old)
        files.check_place(link, ".csv")
        with files.atomic(link, "w") as file:
            file.write("new")
        assert link.is_symlink() and real.read_text() == "new"
    assert sorted(os.listdir(tmp_path / "real")) == ["not yet.csv", "there.csv"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    (tmp_path / "link.csv").symlink_to(pipe)
    for path in (pipe, tmp_path / "link.csv"):
        with pytest.raises(HandlensError, match="is a pipe or a device, expected the name of a file"):
            files.check_place(path, ".csv")
        with pytest.raises(HandlensError, match="is a pipe or a device"), files.atomic(path) as file:
            file.write(b"")
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["link.csv", "pipe.csv"]


def test_a_name_with_another_ending_is_refused_with_one_that_fits(tmp_path: Path) -> None:
    files.check_place(tmp_path / "A.HTM", ".html", ".htm")
    with pytest.raises(HandlensError) as caught:
        files.check_place(tmp_path / "my photo.jpg", ".html", ".htm")
    assert "my photo.jpg would be written, expected a name that ends in .html or .htm" in caught.value.message
    assert caught.value.hint == "name it 'my photo.html', say" or os.name == "nt"


def test_an_error_that_is_not_about_the_disk_comes_back_as_it_is() -> None:
    error = OSError(errno.EIO, "Input/output error")
    assert files.disk_error(error, "x") is error
    assert "may not be written" in str(files.disk_error(PermissionError(errno.EACCES, "no"), "x"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_new_files() -> None:
    with pytest.raises(HandlensError, match=r"/proc/a.json cannot be written: its folder takes no new files"):
        files.write_json("/proc/a.json", {})
    with pytest.raises(HandlensError, match="takes no new files"), files.atomic_folder("/proc/a"):
        pass


def test_a_file_that_is_missed_while_another_is_written_is_no_error_of_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "a"):
        (tmp_path / "below" / "nothing").read_bytes()


def test_a_name_that_windows_does_not_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(errno.EINVAL, "Invalid argument")
    assert files.disk_error(error, "16:30") is error
    monkeypatch.setattr(files, "WINDOWS", True)
    assert "16:30 is no name that Windows takes" in str(files.disk_error(error, "16:30"))


class InUse:
    """A rename that another program's hold refuses `refusals` times."""

    def __init__(self, refusals: int) -> None:
        self.refusals, self.tries = refusals, 0

    def __call__(self) -> None:
        self.tries += 1
        if self.tries <= self.refusals:
            raise PermissionError(errno.EACCES, "in use")


def test_windows_is_asked_again_while_a_file_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(files.time, "sleep", waits.append)
    elsewhere = InUse(1)
    with pytest.raises(PermissionError):
        files.patiently(elsewhere)
    assert (elsewhere.tries, waits) == (1, [])
    monkeypatch.setattr(files, "WINDOWS", True)
    for refusals, tries in ((0, 1), (2, 3), (6, 7)):
        move = InUse(refusals)
        files.patiently(move)
        assert move.tries == tries
    move = InUse(100)
    with pytest.raises(PermissionError):
        files.patiently(move)
    assert move.tries == 7
    assert 2 < sum(waits[-6:]) < 5


def test_what_is_written_is_moved_patiently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[Callable[[], object]] = []
    monkeypatch.setattr(files, "patiently", lambda move: (moves.append(move), move()))
    with files.atomic(tmp_path / "a") as file:
        file.write(b"a")
    with files.atomic_folder(tmp_path / "b"):
        pass
    assert len(moves) == 2
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"名": [1, 2.5, None]})
    assert files.read_json(path) == {"名": [1, 2.5, None]}
    assert "名" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))
    assert files.read_json(path) == {"名": [1, 2.5, None]}
    with pytest.raises(HandlensError, match="does not exist"):
        files.read_json(tmp_path / "b.json")
    for damaged in (b'{"a": ', b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(HandlensError, match="is not JSON"):
            files.read_json(path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("daisy", "daisy"),
        ("花朵 🌼", "花朵 🌼"),
        ("a/b\\c", "a_b_c"),
        ("..", "_"),
        ("", "_"),
        (".hidden", "_.hidden"),
        ("CON", "_CON"),
        ("lpt1.txt", "_lpt1.txt"),
        ("what? ", "what_"),
        ("line\nbreak\0", "line_break_"),
        ("caf\udce9", "caf_"),
    ],
)
def test_safe_names(name: str, safe: str, tmp_path: Path) -> None:
    assert files.safe_name(name) == safe
    (tmp_path / safe).mkdir()
    assert os.listdir(tmp_path) == [safe]


def test_safe_names_fit_any_file_system() -> None:
    assert len(files.safe_name("🌼" * 100).encode()) <= 200


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
    monkeypatch.delenv("HANDLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "handlens"


def test_the_cache_folder_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    monkeypatch.setenv("HANDLENS_CACHE", "~/cc")
    assert files.cache_folder() == tmp_path / "cc"


@pytest.mark.parametrize("given", ["", "~/cc"])
def test_a_user_without_a_home_folder_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("HANDLENS_CACHE", given)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody's home is known
    with pytest.raises(HandlensError, match=r"no home folder .*; set HANDLENS_CACHE"):
        files.cache_folder()


def test_a_place_is_checked_before_the_work(tmp_path: Path) -> None:
    files.check_place(tmp_path / "new" / "deep" / "report.html")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_bytes(b"")
    files.check_place(tmp_path / "file")  # which would be replaced
    for place, said in (
        ("file/report.html", "file is no folder"),
        ("file/a/b", "file is no folder"),
        (".", "a folder"),
    ):
        with pytest.raises(HandlensError, match=said):
            files.check_place(tmp_path / place)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write everywhere")
def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(HandlensError, match="may not be written"):
        files.check_place(tmp_path / "locked" / "new" / "report.html")


def test_class_names_become_folders_that_stay_inside_and_apart() -> None:
    classes = ("../up", "a/b", "a:b", "unsure", "Rose", "rose", "CON")
    folders = files.folder_names(classes)
    assert len({folder.casefold() for folder in folders.values()}) == len(set(folders))
    assert all(os.path.basename(folder) == folder and folder not in ("", ".", "..") for folder in folders.values())
    assert folders["a/b"] == "a_b"
    assert folders["a:b"] == "a_b-2"
    assert {folders["Rose"], folders["rose"]} == {"Rose", "rose-2"}


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOENT, "photos/a.jpg does not exist, or not any more; check the path"),
        (errno.EACCES, "photos/a.jpg may not be read or written; change its permissions"),
        (errno.ENOSPC, "the disk is full: photos/a.jpg could not be written"),
        (errno.ENAMETOOLONG, "the name a.jpg... is longer than this disk takes"),
    ],
)
def test_a_file_that_could_not_be_used(number: int, sentence: str) -> None:
    assert str(files.used_error(OSError(number, "why", "photos/a.jpg"))).startswith(sentence)


def test_a_long_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="is longer than this disk takes; choose a shorter one"):
        files.make_folder(tmp_path / ("花" * 90))
