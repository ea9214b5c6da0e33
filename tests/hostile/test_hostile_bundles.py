"""Bundles made to break a reader: each is refused in one sentence, with nothing written and no crash."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import shutil
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from handlens import bundle
from handlens.bundle import MANIFEST
from handlens.errors import HandlensError

Members = dict[str, bytes]


def members(path: Path) -> Members:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def good(tiny: ModuleType, tmp_path: Path) -> Members:
    """The members of a proper bundle."""
    bundle.write(tmp_path / "good", tiny.bundle())
    found = members(tmp_path / "good")
    shutil.rmtree(tmp_path / "good")
    return found


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path.parent / "escaped").exists()
    assert not [path.name for path in tmp_path.rglob("*") if path.name.endswith(".part") or path.name == "escaped"]


def as_folder(path: Path, content: Members) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, content: Members, *more: tuple[zipfile.ZipInfo | str, bytes], packed: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", packed) as zip_:
        for name, data in (*content.items(), *more):
            zip_.writestr(name, data)
    return path


def signed(manifest: dict[str, Any]) -> bytes:
    """A manifest with a right hash of itself: who forges a bundle can do that too."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return json.dumps(rest | {"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def refused(path: Path, *words: str) -> None:
    """`path` is refused in one sentence that holds the words and names the bundle."""
    before = sorted(str(file) for file in path.parent.rglob("*"))
    with pytest.raises(HandlensError) as error:
        bundle.read(path)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    assert len(sentence) < 600
    for word in words:
        assert word in sentence
    assert sorted(str(file) for file in path.parent.rglob("*")) == before


def test_the_good_one_is_read(good: Members, tmp_path: Path) -> None:
    assert bundle.read(as_folder(tmp_path / "b", good)) == bundle.read(as_zip(tmp_path / "b.zip", good))


# ---- what is in it ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", ["model.onnx", "golden/1.jpg", MANIFEST])
def test_a_missing_member(good: Members, tmp_path: Path, kind: str, name: str) -> None:
    del good[name]
    path = as_folder(tmp_path / "b", good) if kind == "folder" else as_zip(tmp_path / "b.zip", good)
    refused(path, "has no", name)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", ["run.py", "golden/9.jpg", "model.onnx.data", "Bundle.json"])
def test_one_too_many(good: Members, tmp_path: Path, kind: str, name: str) -> None:
    good[name] = b"import os"
    path = as_folder(tmp_path / "b", good) if kind == "folder" else as_zip(tmp_path / "b.zip", good)
    refused(path, "does not list", name)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", ["model.onnx", "golden/0.jpg"])
@pytest.mark.parametrize("change", ["flipped", "shorter", "longer", "empty"])
def test_a_changed_member(good: Members, tmp_path: Path, kind: str, name: str, change: str) -> None:
    data = good[name]
    middle = len(data) // 2
    good[name] = {
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "shorter": data[:-1],
        "longer": data + b"\0",
        "empty": b"",
    }[change]
    path = as_folder(tmp_path / "b", good) if kind == "folder" else as_zip(tmp_path / "b.zip", good)
    refused(path, name, "SHA-256 differs" if change == "flipped" else "bytes")


def test_swapped_golden_photos(good: Members, tmp_path: Path) -> None:
    good["golden/0.jpg"], good["golden/1.jpg"] = good["golden/1.jpg"], good["golden/0.jpg"]
    refused(as_folder(tmp_path / "b", good), "golden/0.jpg")


@pytest.mark.parametrize("field", ["classes", "card", "golden", "preprocess", "rejection", "net"])
def test_a_manifest_edited_by_hand(good: Members, tmp_path: Path, field: str) -> None:
    manifest = json.loads(good[MANIFEST])
    manifest[field] = {
        "classes": manifest["classes"][::-1],
        "card": {"test": {"top1": 1.0}},
        "golden": manifest["golden"][::-1],
        "preprocess": manifest["preprocess"] | {"resize": "squash"},
        "rejection": {"kind": "energy", "threshold": 0.5},
        "net": "another",
    }[field]
    good[MANIFEST] = json.dumps(manifest).encode()
    refused(as_folder(tmp_path / "b", good), "changed after it was written")


# ---- names and kinds of members --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "../escaped", "a/../../escaped", "/escaped", "//escaped", "..\\escaped", "C:/escaped", "c:escaped", "./escaped",
        "golden//0.jpg", "golden/./0.jpg", "a/..", "..", ".", "/", "~/escaped", "escaped\x1b[2J", "con",
        "golden/nul.jpg", "escaped.", "escaped ", " escaped", "x" * 300, "x/" * 150 + "x", "-rf", ".hidden", "évadé",
    ],
)  # fmt: skip
def test_a_name_that_is_none(good: Members, tmp_path: Path, name: str) -> None:
    refused(as_zip(tmp_path / "b.zip", good, (name, b"escaped")), "which is no name")
    manifest = json.loads(good[MANIFEST])
    manifest["files"][name] = {"sha256": hashlib.sha256(b"").hexdigest(), "size_bytes": 0}
    refused(as_folder(tmp_path / "b", good | {MANIFEST: signed(manifest)}), "'files' is improper")


def test_a_name_cut_by_a_zero_byte(good: Members, tmp_path: Path) -> None:
    path = as_zip(tmp_path / "b.zip", good, ("modelxonnx", b"escaped"))
    path.write_bytes(path.read_bytes().replace(b"modelxonnx", b"model\0onnx"))
    refused(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(good: Members, tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("model.onnx")
    entry.external_attr = (kind | 0o777) << 16
    target = good.pop("model.onnx")
    refused(as_zip(tmp_path / "b.zip", good, (entry, target)), "a link or device")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("what", ["file", "folder", "outside", "dangling", "pipe", "manifest"])
def test_links_and_pipes_in_a_folder(good: Members, tmp_path: Path, what: str) -> None:
    path = as_folder(tmp_path / "b", good)
    model, aside = path / "model.onnx", tmp_path / "aside.onnx"
    if what == "folder":
        (path / "golden").rename(tmp_path / "golden")
        (path / "golden").symlink_to(tmp_path / "golden")
    elif what == "manifest":
        (path / MANIFEST).rename(tmp_path / "aside.json")
        (path / MANIFEST).symlink_to(tmp_path / "aside.json")
    elif what == "pipe":
        model.unlink()
        os.mkfifo(model)  # opening it would wait for ever
    else:
        model.rename(aside)
        model.symlink_to({"file": aside, "outside": "/etc/hostname", "dangling": "nowhere"}[what])
    refused(path, "a link or device")


def test_a_member_twice(good: Members, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = as_zip(tmp_path / "b.zip", good, ("model.onnx", b"another"))
    refused(path, "'model.onnx' twice")


def test_very_many_members(good: Members, tmp_path: Path) -> None:
    many = {f"golden/x{index}.jpg": b"" for index in range(2 * bundle.MOST_MEMBERS)}
    refused(as_zip(tmp_path / "b.zip", good | many), "more than 1,000 files")
    refused(as_folder(tmp_path / "b", good | many), "more than 1,000 files")
    manifest = json.loads(good[MANIFEST])
    manifest["files"] |= {name: {"sha256": "0" * 64, "size_bytes": 0} for name in many}
    refused(as_folder(tmp_path / "c", good | {MANIFEST: signed(manifest)}), "'files'")


def test_very_deep_folders(good: Members, tmp_path: Path) -> None:
    path = as_folder(tmp_path / "b", good)
    deep = path
    for _ in range(200):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "x").write_bytes(b"")
    refused(path, "does not list")


# ---- sizes -----------------------------------------------------------------------------------------------------------
def peak_mb(function: Callable[[], None]) -> float:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("told", ["truth", "what the manifest says"])
def test_a_zip_bomb(good: Members, tmp_path: Path, told: str) -> None:
    """A gigabyte of zeros packs into a megabyte; one that lies about it must not be unpacked to the end either."""
    manifest = json.loads(good[MANIFEST])
    size_bytes = len(good["model.onnx"])
    data = bytes(64 << 20)
    if told == "truth":
        manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        good[MANIFEST] = signed(manifest)
    path = as_zip(tmp_path / "b.zip", good | {"model.onnx": data}, packed=zipfile.ZIP_DEFLATED)
    if told != "truth":
        path.write_bytes(path.read_bytes().replace(struct.pack("<L", len(data)), struct.pack("<L", size_bytes)))
    assert peak_mb(lambda: refused(path)) < 8


def test_a_zip_that_says_less_than_it_holds(good: Members, tmp_path: Path) -> None:
    data = good["model.onnx"]
    path = as_zip(tmp_path / "b.zip", good | {"model.onnx": data + b"\0" * 77_777})
    both = struct.pack("<LL", len(data) + 77_777, len(data) + 77_777)
    told = path.read_bytes()
    assert told.count(both) == 2
    path.write_bytes(told.replace(both, struct.pack("<LL", len(data), len(data))))
    refused(path)


def test_more_than_fits_in_memory(good: Members, tmp_path: Path) -> None:
    """A file with holes: a terabyte that takes no room."""
    path = as_folder(tmp_path / "b", good)
    with (path / "model.onnx").open("r+b") as file:
        file.truncate(1 << 40)
    assert peak_mb(lambda: refused(path, "model.onnx", "bytes")) < 8
    manifest = json.loads(good[MANIFEST])
    manifest["files"]["model.onnx"]["size_bytes"] = 1 << 40
    (path / MANIFEST).write_bytes(signed(manifest))
    assert peak_mb(lambda: refused(path, "2,147,483,648 bytes")) < 8


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_huge_manifest(good: Members, tmp_path: Path, kind: str) -> None:
    good[MANIFEST] = b" " * (bundle.MANIFEST_LIMIT_BYTES + 1)
    path = as_folder(tmp_path / "b", good) if kind == "folder" else as_zip(tmp_path / "b.zip", good)
    assert peak_mb(lambda: refused(path, "more than")) < 8


# ---- the manifest ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"1", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}", b'{"format_version": 1}',
        b"[" * 200_000, b'{"a":' * 200_000, b'{"format_version": NaN}', b'{"format_version": 1, "format_version": 1}',
        b'{"card": "\\ud800"}', b'{"card": 1e999}', b'{"card": ' + b"9" * 100_000 + b"}", b"\x80\x04K\x01.",
    ],
)  # fmt: skip
def test_no_manifest(good: Members, tmp_path: Path, text: bytes) -> None:
    refused(as_folder(tmp_path / "b", good | {MANIFEST: text}))
    refused(as_zip(tmp_path / "b.zip", good | {MANIFEST: text}))


@pytest.mark.parametrize("version", [0, 2, -1, 1.0, 1.5, "1", True, None, [1], {}, 10**400])
def test_another_version(good: Members, tmp_path: Path, version: Any) -> None:
    manifest = json.loads(good[MANIFEST]) | {"format_version": version}
    refused(as_folder(tmp_path / "b", good | {MANIFEST: signed(manifest)}), "of format", "reads format 1")


NONSENSE = [None, True, -1, 3.5, 10**400, "", "x", "x" * 5000, "\x1b[2J", [], [1], [[]], {}, {"a": 1}, {"": None}]
FIELDS = (
    "format_version", "handlens_version", "runtime", "precision", "net", "classes", "preprocess", "card", "golden",
    "calibration", "rejection", "files", "manifest_sha256",
)  # fmt: skip
FINE = {  # nonsense that is not: a card may hold it
    "card": [{}, {"a": 1}, {"": None}],
    "calibration": [None],
    "rejection": [None],
    "net": ["x"],
    "handlens_version": ["x"],
}


@pytest.mark.parametrize(
    "rejection",
    [
        {"kind": "energy"},
        {"kind": "energy", "threshold": None},
        {"kind": "energy", "threshold": True},
        {"kind": "energy", "threshold": 1e10},
        {"kind": "distance", "threshold": 1.0},
        {"kind": ["energy"], "threshold": 1.0},
        {"kind": "energy", "threshold": 1.0, "more": 1},
    ],
)
def test_a_rejection_that_decides_nothing(good: Members, tmp_path: Path, rejection: dict[str, Any]) -> None:
    manifest = json.loads(good[MANIFEST]) | {"rejection": rejection}
    refused(as_folder(tmp_path / "b", good | {MANIFEST: signed(manifest)}), "rejection")


@pytest.mark.parametrize("temperature", [0, -1.0, True, "1", None, 10**400])
def test_a_temperature_that_nothing_can_be_divided_by(good: Members, tmp_path: Path, temperature: Any) -> None:
    manifest = json.loads(good[MANIFEST]) | {"calibration": {"temperature": temperature}}
    refused(as_folder(tmp_path / "b", good | {MANIFEST: signed(manifest)}), "calibration")


def is_fine(field: str, value: Any) -> bool:
    return any(type(value) is type(fine) and value == fine for fine in FINE.get(field, []))


@pytest.mark.parametrize("field", FIELDS)
def test_nonsense_in_a_field(good: Members, tmp_path: Path, field: str) -> None:
    path = as_folder(tmp_path / "b", good)
    proper = json.loads(good[MANIFEST])
    for value in NONSENSE:
        sign = signed if field != "manifest_sha256" else lambda manifest: json.dumps(manifest).encode()
        (path / MANIFEST).write_bytes(sign(proper | {field: value}))
        if is_fine(field, value):
            bundle.read(path)
        else:
            refused(path)
    del proper[field]
    (path / MANIFEST).write_bytes(signed(proper) if field != "manifest_sha256" else json.dumps(proper).encode())
    refused(path, field if field != "format_version" else "format None")


def test_an_unknown_field(good: Members, tmp_path: Path) -> None:
    manifest = json.loads(good[MANIFEST]) | {"postprocess": "import os"}
    refused(as_folder(tmp_path / "b", good | {MANIFEST: signed(manifest)}), "'postprocess'", "no field")


def inside(value: Any) -> Iterator[list[str | int]]:
    """The way to every value within a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield [key]
        yield from ([key, *rest] for rest in inside(value[key]))


def test_nonsense_anywhere(good: Members, tmp_path: Path) -> None:
    """Each value in the manifest, however deep, in turn replaced or removed: read or refused, never a crash."""
    path = as_folder(tmp_path / "b", good)
    proper = json.loads(good[MANIFEST])
    del proper["manifest_sha256"]
    ways = list(inside(proper))
    assert len(ways) > 60
    num_refused = 0
    for way in ways:
        for value in (..., *NONSENSE):
            manifest = copy.deepcopy(proper)
            at = manifest
            for key in way[:-1]:
                at = at[key]
            if value is ...:
                del at[way[-1]]
            else:
                at[way[-1]] = value
            (path / MANIFEST).write_bytes(signed(manifest))
            try:
                bundle.read(path)
            except HandlensError as error:
                num_refused += 1
                assert "\n" not in str(error)
    assert num_refused > 0.8 * len(ways) * len(NONSENSE)


@pytest.mark.parametrize(
    ("golden", "words"),
    [
        ([{"photo": "golden/0.jpg", "probabilities": [0.5, 0.5]}], "one probability for each class"),
        ([{"photo": "golden/0.jpg", "probabilities": [0.9, 0.9, 0.9]}], "summing to 1"),
        ([{"photo": "golden/0.jpg", "probabilities": [2, -1, 0]}], "probability"),
        ([{"photo": "golden/0.jpg", "probabilities": [1, 0, False]}], "probability"),
        ([{"photo": "../../etc/passwd", "probabilities": [1, 0, 0]}], "not about the photos"),
        ([{"photo": "model.onnx", "probabilities": [1, 0, 0]}], "not about the photos"),
        ([{"photo": MANIFEST, "probabilities": [1, 0, 0]}], "not about the photos"),
        ([{"photo": "golden/0.jpg", "probabilities": [1, 0, 0]}] * 3, "a photo of its own"),
        ([], "not about the photos"),
    ],
)
def test_golden_answers_that_are_none(good: Members, tmp_path: Path, golden: Any, words: str) -> None:
    manifest = json.loads(good[MANIFEST]) | {"golden": golden}
    refused(as_folder(tmp_path / "b", good | {MANIFEST: signed(manifest)}), words)


# ---- damaged containers ----------------------------------------------------------------------------------------------
def test_no_bundle_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no bundle.json")
    for name, data in {"empty.zip": b"", "text.zip": b"text" * 100, "exe.zip": b"MZ\x90\0" + bytes(500)}.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, "no zip")
    refused(as_zip(tmp_path / "other.zip", {"word/document.xml": b"<w/>"}), "no bundle.json")


def test_a_zip_with_a_password(good: Members, tmp_path: Path) -> None:
    path = as_zip(tmp_path / "b.zip", good)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 1)
    path.write_bytes(data)
    refused(path, "damaged or no zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_packing(good: Members, tmp_path: Path, method: int) -> None:
    refused(as_zip(tmp_path / "b.zip", good, packed=method), "unusual")


def test_a_zip_cut_anywhere(good: Members, tmp_path: Path) -> None:
    whole = as_zip(tmp_path / "whole.zip", good).read_bytes()
    path = tmp_path / "b.zip"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_flipped_bytes(good: Members, tmp_path: Path, packed: int) -> None:
    """Anywhere, and often in the headers at the end: the right bundle or a sentence."""
    whole = as_zip(tmp_path / "whole.zip", good, packed=packed).read_bytes()
    expected = bundle.read(tmp_path / "whole.zip")
    path, chance = tmp_path / "b.zip", random.Random(0)
    num_refused = 0
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            where = chance.randrange(len(data)) if turn % 3 else len(data) - 1 - chance.randrange(700)
            data[where] = chance.randrange(256)
        path.write_bytes(data)
        try:
            assert bundle.read(path) == expected
        except HandlensError as error:
            num_refused += 1
            assert "\n" not in str(error)
    assert num_refused > 150


def test_what_cannot_be_opened(good: Members, tmp_path: Path) -> None:
    if os.name == "nt" or os.geteuid() == 0:
        pytest.skip("for this user everything can be opened")
    path = as_folder(tmp_path / "b", good)
    (path / "model.onnx").chmod(0)
    refused(path, "cannot be read")


def test_a_member_that_vanishes_meanwhile(good: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_folder(tmp_path / "b", good)
    sizes = bundle._folder_members

    def then_gone(root: Path) -> dict[str, int]:
        found = sizes(root)
        (root / "model.onnx").unlink()
        return found

    monkeypatch.setattr(bundle, "_folder_members", then_gone)
    with pytest.raises(HandlensError, match="cannot be read"):
        bundle.read(path)


def test_nothing_is_unpickled(good: Members, tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "escaped"),))

    payload = io.BytesIO()
    pickle.dump(Payload(), payload)
    for name in good:
        refused(as_zip(tmp_path / f"{name.replace('/', '-')}.zip", good | {name: payload.getvalue()}))
