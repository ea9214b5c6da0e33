"""Files made to break a reader: each gives a photo or one sentence, never a crash, a hang or a filled memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlens.errors import HandlensError, PhotoError
from handlens.evaluate import unknown
from handlens.photos import batches, examine, read_split, scan
from handlens.preprocess import Preprocess, open_photo

FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
}


def encoded(format_: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, format_, **FORMATS[format_], **({} if format_ in ("BMP", "GIF") else {"exif": exif})
    )
    return file.getvalue()


def a_photo_or_a_sentence(data: bytes) -> None:
    try:
        photo = open_photo(data)
    except PhotoError as error:
        assert error.message.startswith("the photo ")
    else:
        assert photo.mode == "RGB"
        assert Preprocess(image_px=8, resize_px=8).fit(photo).shape == (8, 8, 3)


@pytest.mark.parametrize("format_", FORMATS)
def test_flipped_bytes(format_: str) -> None:
    whole = np.frombuffer(encoded(format_), np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(150):
        data = whole.copy()
        where = rng.integers(0, min(len(data), 400), rng.integers(1, 9))  # mostly in the headers
        data[where] = rng.integers(0, 256, len(where))
        a_photo_or_a_sentence(data.tobytes())


@pytest.mark.parametrize("format_", FORMATS)
def test_cut_short(format_: str) -> None:
    whole = encoded(format_)
    for length in np.linspace(0, len(whole) - 1, 60).astype(int):
        a_photo_or_a_sentence(whole[:length])


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


IDAT = b"IDAT", zlib.compress(bytes(64))
HOSTILE = {
    "pixel bomb.png": png(header(60000, 60000), IDAT, (b"IEND", b"")),
    "no pixels.png": png(header(0, 0), IDAT, (b"IEND", b"")),
    "text bomb.png": png(header(4, 4), (b"zTXt", b"k\0\0" + zlib.compress(bytes(80 << 20))), IDAT, (b"IEND", b"")),
    "endless chunk.png": png(header(4, 4))[:-4] + b"\x7f\xff\xff\xffIDAT",
    "pixel bomb.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;",
    "pixel bomb.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "pixel bomb.jpg": bytes.fromhex("ffd8ffc0001108ffffffff03012200021101031101ffda000c03010002110311003f00ffd9"),
    "circle.tif": b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8),
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n(touched) (w) file closefile\n%%EOF\n",
    "page.png": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "brand.heic": struct.pack(">I", 24) + b"ftypheic" + bytes(range(200)),
    "noughts.jpg": bytes(4096),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(PhotoError) as caught:
        Preprocess().load(tmp_path / name)
    assert caught.value.message.startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_no_other_program_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a photo started a program")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(PhotoError, match="is not a photo"):
        open_photo(HOSTILE["postscript.jpg"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good photos and all that is hostile."""
    for name in ("good", "bad"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(2):
        (tmp_path / "photos" / "good" / f"{i}.jpg").write_bytes(encoded("JPEG"))
    for name, data in HOSTILE.items():
        (tmp_path / "photos" / "bad" / name).write_bytes(data)
    return tmp_path / "photos"


def test_a_folder_of_hostile_files_is_examined_to_the_end(folder: Path) -> None:
    photos = scan(folder)
    findings = examine(photos)
    assert {path for path, _ in findings.broken} == {f"bad/{name}" for name in HOSTILE}
    assert findings.duplicates == [["good/0.jpg", "good/1.jpg"]]
    left = photos.without([path for path, _ in findings.broken])
    assert sum(len(labels) for _, labels in batches(left, Preprocess(image_px=8, resize_px=8), 4)) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_no_photo(folder: Path) -> None:
    os.mkfifo(folder / "good" / "pipe.jpg")  # who opens it waits for ever
    assert "good/pipe.jpg" not in scan(folder).paths
    (folder / "all.csv").write_text("path,label\ngood/pipe.jpg,a\n")
    with pytest.raises(HandlensError, match=r"row 2 .* does not exist"):
        scan(folder / "all.csv")


def test_a_folder_with_the_name_of_a_photo(folder: Path) -> None:
    (folder / "good" / "folder.jpg").mkdir()
    assert "good/folder.jpg" not in scan(folder).paths


def test_a_name_with_a_line_break(folder: Path) -> None:
    (folder / "good" / "two\nlines.jpg").write_bytes(encoded("JPEG"))
    assert "good/two\nlines.jpg" in scan(folder).paths
    assert "good/two\nlines.jpg" in examine(scan(folder)).sha256


def test_a_name_that_is_not_utf8(folder: Path) -> None:
    try:
        with open(os.fsencode(folder / "good") + b"/\xff\xfe.jpg", "wb") as file:
            file.write(encoded("JPEG"))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(HandlensError, match=r"'good/\\udcff\\udcfe\.jpg' .* is not valid UTF-8"):
        scan(folder)


def test_a_folder_whose_name_is_not_utf8(folder: Path) -> None:
    root = folder.parent / os.fsdecode(b"gr\xfcn")
    try:
        (root / "below" / "good").mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes no such name")
    (root / "below" / "good" / "a.jpg").write_bytes(encoded("JPEG"))
    for look in (scan, unknown.look):
        with pytest.raises(HandlensError, match=r"the name of '.*gr\\udcfcn/below' is not valid UTF-8; rename it"):
            look(root / "below")
    (folder / "good" / os.fsdecode(b"gr\xfcn.jpg")).write_bytes(encoded("JPEG"))
    with pytest.raises(HandlensError, match=r"the name of 'gr\\udcfcn.jpg' in .*good is not valid UTF-8"):
        unknown.look(folder / "good")


CSVS: dict[str, bytes] = {
    "null": b"path,label\ngood/0.jpg,a\0b\n",
    "endless cell": b'path,label\ngood/0.jpg,"' + b"x" * 200_000,
    "binary": bytes(range(256)) * 10,
    "same column twice": b"path,label,label\ngood/0.jpg,a,b\n",
    "outside": b"path,label\n../../../../../../etc/none.jpg,a\n",
}


@pytest.mark.parametrize("name", CSVS)
def test_hostile_csvs(folder: Path, name: str) -> None:
    (folder / "all.csv").write_bytes(CSVS[name])
    with pytest.raises(HandlensError) as caught:
        scan(folder / "all.csv")
    assert len(str(caught.value)) < 600


SPLITS: dict[str, Callable[[], str]] = {
    "deep": lambda: "[" * 100_000,
    "endless number": lambda: '{"version": ' + "9" * 10_000 + "}",
    "not a number": lambda: '{"version": NaN}',
    "long list": lambda: (
        '{"version": 1, "train": {' + ",".join(f'"{i}": "x"' for i in range(9999)) + '}, "validation": {}, "test": {}}'
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_hostile_splits(folder: Path, name: str) -> None:
    (folder / "split.json").write_text(SPLITS[name]())
    with pytest.raises(HandlensError) as caught:
        read_split(folder / "split.json", scan(folder), {})
    assert len(str(caught.value)) < 600
