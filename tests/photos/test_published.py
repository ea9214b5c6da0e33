"""The published sets, from small archives made here and served on loopback."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from handlens.errors import HandlensError
from handlens.files import cache_folder
from handlens.photos import published as room
from handlens.photos import scan

Make = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP, in place of where the sets are published; the cache is empty."""
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "site"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    monkeypatch.setattr(room, "FLOWERS102", address)
    monkeypatch.setattr(room, "FLOWER_PHOTOS", (address + "flower_photos.tgz", room.FLOWER_PHOTOS[1]))
    yield tmp_path / "site"
    server.shutdown()
    server.server_close()


def packed(names: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return file.getvalue()


def offer_flower_photos(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed(["flower_photos/LICENSE.txt", *(f"flower_photos/{c}/{i}.jpg" for c in "ab" for i in range(3))])
    (site / "flower_photos.tgz").write_bytes(data)
    monkeypatch.setattr(room, "FLOWER_PHOTOS", (room.FLOWER_PHOTOS[0], hashlib.sha256(data).hexdigest()))


def test_flower_photos(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_flower_photos(site, monkeypatch)
    monkeypatch.setitem(room.PUBLISHED, "flower_photos", 6)
    seen: list[tuple[int, int]] = []
    photos = scan("flower_photos", progress=lambda done, total: seen.append((done, total)))
    assert photos.classes == ("a", "b")
    assert len(photos) == 6
    size = (site / "flower_photos.tgz").stat().st_size
    assert seen[-1] == (size, size)
    (site / "flower_photos.tgz").unlink()
    assert scan("flower_photos").paths == photos.paths  # the second time from the cache
    assert sorted(path.name for path in (cache_folder() / "photos").iterdir()) == ["flower_photos"]


def test_a_set_with_another_number_of_photos(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer_flower_photos(site, monkeypatch)
    with pytest.raises(HandlensError, match="flower_photos has 6 photos, expected 3670"):
        scan("flower_photos")
    assert not (cache_folder() / "photos" / "flower_photos").exists()


def test_a_file_with_another_hash(site: Path) -> None:
    (site / "flower_photos.tgz").write_bytes(packed(["flower_photos/a/1.jpg"]))
    with pytest.raises(HandlensError):
        scan("flower_photos")
    assert not (cache_folder() / "photos" / "flower_photos").exists()


def test_no_such_file_at_the_publisher(site: Path) -> None:
    with pytest.raises(HandlensError):
        scan("flower_photos")


def test_a_folder_of_that_name_comes_first(make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_folder({"mine": 1, "yours": 1}, root="flower_photos")
    monkeypatch.chdir(tmp_path)
    assert scan("flower_photos").classes == ("mine", "yours")


def offer_flowers102(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    (site / "102flowers.tgz").write_bytes(packed([f"jpg/image_{i:05d}.jpg" for i in range(1, 8)]))
    savemat(site / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 1, 102, 102, 77]], np.uint8)})
    ids = {"trnid": [[1, 3, 5]], "valid": [[2, 4]], "tstid": [[6, 7]]}
    savemat(site / "setid.mat", {name: np.array(value, np.uint16) for name, value in ids.items()})
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in site.iterdir()}
    monkeypatch.setattr(room, "FLOWERS102_FILES", {name: hashes[name] for name in room.FLOWERS102_FILES})


def test_flowers102(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    offer_flowers102(site, monkeypatch)
    monkeypatch.setitem(room.PUBLISHED, "flowers102", 7)
    photos = scan("flowers102")
    assert photos.classes == ("blackberry lily", "passion flower", "pink primrose")
    names = {path: (photos.classes[label], split) for path, label, split in zip(
        photos.paths, photos.labels, photos.splits or (), strict=True
    )}  # fmt: skip
    assert names["jpg/image_00001.jpg"] == ("passion flower", "train")
    assert names["jpg/image_00004.jpg"] == ("pink primrose", "validation")
    assert names["jpg/image_00006.jpg"] == ("blackberry lily", "test")
    assert len(names) == 7
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert scan("flowers102").paths == photos.paths  # scipy was needed once only


def test_flowers102_without_scipy(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(HandlensError, match=r'needs scipy.*pip install "handlens\[evaluate\]"'):
        scan("flowers102")


def test_the_names_of_flowers102_are_torchvisions() -> None:
    from torchvision.datasets import Flowers102

    assert room.FLOWERS102_NAMES.split(", ") == [name.rstrip("?") for name in Flowers102.classes]
