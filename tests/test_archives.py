"""Unpacking archives: what comes out, and what must not."""

from __future__ import annotations

import errno
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from handlens.errors import HandlensError
from handlens.files import extract

CONTENT = {"set/daisy/a photo.jpg": b"one", "set/玫瑰/🌹.jpg": b"two" * 1000, "set/empty": b""}


def tar_of(path: Path, *members: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def zip_of(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zip_:
        for name, content in entries:
            zip_.writestr(name, content)
    return path


def unpacked(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["tgz", "tar", "tar.bz2", "tar.xz", "zip"])
def test_what_was_packed_comes_out(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        zip_of(archive, ("set/", b""), *CONTENT.items())
    else:
        mode = {"tgz": "w:gz", "tar": "w", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[suffix]
        with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
            tar.addfile(member("./set", tarfile.DIRTYPE))
            for name, content in CONTENT.items():
                tar.addfile(member(name, size=len(content)), io.BytesIO(content))
    assert extract(archive, tmp_path / "deep" / "out") == tmp_path / "deep" / "out"
    assert unpacked(tmp_path / "deep" / "out") == CONTENT
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


LINK = zipfile.ZipInfo("link")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16
BAD = {
    "parent": lambda path: tar_of(path, member("fine"), member("../escaped")),
    "inner parent": lambda path: tar_of(path, member("a/../../escaped")),
    "absolute": lambda path: tar_of(path, member("/tmp/escaped")),
    "backslash": lambda path: tar_of(path, member("..\\escaped")),
    "symlink": lambda path: tar_of(path, member("link", tarfile.SYMTYPE, "/etc")),
    "hard link": lambda path: tar_of(path, member("link", tarfile.LNKTYPE, "/etc/hostname")),
    "device": lambda path: tar_of(path, member("null", tarfile.CHRTYPE)),
    "pipe": lambda path: tar_of(path, member("pipe", tarfile.FIFOTYPE)),
    "zip parent": lambda path: zip_of(path, ("fine", b""), ("../escaped", b"")),
    "zip absolute": lambda path: zip_of(path, ("/tmp/escaped", b"")),
    "zip symlink": lambda path: zip_of(path, (LINK, b"/etc")),
    "twice": lambda path: tar_of(path, member("a"), member("a")),
    "too large": lambda path: tar_of(path, member("a", size=600), member("b", size=600)),
    "zip too large": lambda path: zip_of(path, ("bomb", b"\0" * 100_000)),
    "no archive": lambda path: path.write_bytes(b"text" * 1000),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: None,
}
WORDS = {"twice": "twice", "large": "more than 1,000 bytes", "archive": "no archive", "empty": "no archive"}
WORDS |= {"missing": "does not exist", "link": "a link or device", "device": "a link or", "pipe": "a link or"}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_is_refused_and_nothing_comes_out(tmp_path: Path, case: str) -> None:
    archive = tmp_path / "bad.archive"
    BAD[case](archive)
    words = WORDS.get(case.split()[-1].removeprefix("sym"), "leads outside")
    with pytest.raises(HandlensError, match=words):
        extract(archive, tmp_path / "out" / "set", limit_bytes=1000)
    assert list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else []) == []
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "out" / "escaped").exists()


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_truncated_archive(tmp_path: Path, make: object) -> None:
    archive = tmp_path / "a"
    if make is zip_of:
        zip_of(archive, ("a", b"some content" * 100))
    else:
        tar_of(archive, member("a", size=100_000))
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(HandlensError, match="broken or is no archive"):
        extract(archive, tmp_path / "out")


def test_a_damaged_archive(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", ("a", bytes(range(256)) * 4))
    content = bytearray(archive.read_bytes())
    content[60] ^= 255
    archive.write_bytes(content)
    with pytest.raises(HandlensError, match="broken"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", ("a", b"new"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    with pytest.raises(HandlensError, match="exists"):
        extract(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "a.zip", ("a", b"new"))

    def full(path: Path, mode: str = "r", **_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(HandlensError, match="the disk is full"):
        extract(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_of_two_at_once_the_second_keeps_what_the_first_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "a.zip", ("a", b"new"))
    plain = Path.rename

    def late(path: Path, target: Path) -> Path:
        target.mkdir()
        (target / "a").write_text("first")
        return plain(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert (extract(archive, tmp_path / "out") / "a").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out"]
