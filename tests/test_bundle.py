"""Bundles: what is written comes back, whole or not at all; what stays out of golden photos."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from handlens import bundle, files
from handlens.bundle import Golden
from handlens.errors import HandlensError
from handlens.preprocess import Preprocess

COREML = {
    "model.mlpackage/Manifest.json": b"{}",
    "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": b"network",
    "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin": bytes(1000),
}


@pytest.mark.parametrize("name", ["flowers", "flowers.zip", "FLOWERS.ZIP"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "precision": "int8",
            "calibration": {"temperature": 1.5},
            "rejection": {"kind": "energy", "threshold": 0.25},
        },
        {"runtime": "litert", "artifact": {"model.tflite": b"\x00\xff" * 1000}, "golden": ()},
        {"runtime": "executorch", "artifact": {"model.pte": b"p"}, "precision": "float16"},
        {"runtime": "openvino", "artifact": {"model.xml": b"<net/>", "model.bin": b""}},
        {"runtime": "coreml", "artifact": COREML},
        {"preprocess": Preprocess(image_px=64, resize="letterbox", channels="bgr", mean=(0.1, 0.2, 0.3))},
    ],
)
def test_what_is_written_comes_back(tiny: ModuleType, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    written = tiny.bundle(**changes)
    bundle.write(tmp_path / "new" / name, written)
    found = bundle.read(tmp_path / "new" / name)
    assert dataclasses.asdict(found) == dataclasses.asdict(written)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]
    assert (tmp_path / "new" / name).is_file() == name.lower().endswith(".zip")
    assert bundle.is_bundle(tmp_path / "new" / name)


def test_the_same_content_gives_the_same_zip(tiny: ModuleType, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        bundle.write(tmp_path / name, tiny.bundle())
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_other_tools_read_it(tiny: ModuleType, tmp_path: Path) -> None:
    """The page on the format, followed with nothing of handlens."""
    import hashlib

    bundle.write(tmp_path / "b.zip", tiny.bundle())
    with zipfile.ZipFile(tmp_path / "b.zip") as zip_:
        manifest = json.loads(zip_.read("bundle.json"))
        assert set(zip_.namelist()) == {"bundle.json", *manifest["files"]}
        for name, entry in manifest["files"].items():
            assert hashlib.sha256(zip_.read(name)).hexdigest() == entry["sha256"]
            assert len(zip_.read(name)) == entry["size_bytes"]
    assert manifest["classes"] == ["blue sky", "花朵", "🌿 leaf"]
    assert manifest["format_version"] == 1
    stated = manifest.pop("manifest_sha256")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == stated


@pytest.mark.parametrize("repacked", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_unpacked_and_packed_again_by_other_tools(tiny: ModuleType, tmp_path: Path, repacked: int) -> None:
    bundle.write(tmp_path / "b.zip", tiny.bundle(runtime="coreml", artifact=COREML))
    with zipfile.ZipFile(tmp_path / "b.zip") as zip_:
        zip_.extractall(tmp_path / "b")
    found = bundle.read(tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "c.zip", "w", repacked) as zip_:
        for path in sorted((tmp_path / "b").rglob("*")):
            zip_.write(path, path.relative_to(tmp_path / "b"))  # with entries for the folders
    assert bundle.read(tmp_path / "c.zip") == found == bundle.read(tmp_path / "b.zip")


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_nothing_is_overwritten(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    for existing in ("file", "folder", "link"):
        path = tmp_path / existing / name
        path.parent.mkdir()
        if existing == "file":
            path.write_bytes(b"mine")
        elif existing == "folder":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
        with pytest.raises(HandlensError, match="exists"):
            bundle.write(path, tiny.bundle())
        assert list(path.parent.iterdir()) == [path]
    assert (tmp_path / "file" / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["b", "b.zip"])
def test_a_full_disk_leaves_nothing(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HandlensError, match="disk is full"):
        bundle.write(tmp_path / name, tiny.bundle())
    assert not list(tmp_path.iterdir())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "runtime": ({"runtime": "tensorrt", "artifact": {"model.engine": b""}}, "tensorrt"),
    "precision": ({"precision": "int4"}, "'int4', expected one of float32, float16, bfloat16, int8"),
    "artifact": ({"artifact": {"network.onnx": b""}}, "network.onnx for onnx, expected model.onnx"),
    "more": ({"artifact": {"model.onnx": b"", "run.py": b"print()"}}, "run.py"),
    "member": ({"artifact": {"../model.onnx": b""}}, "improper at '../model.onnx'"),
    "no class": ({"classes": (), "golden": ()}, "empty"),
    "same class": ({"classes": ("a", "a", "b")}, "twice"),
    "control": ({"classes": ("a", "b\x1b[2J", "c")}, "control"),
    "golden": ({"golden": (Golden(photo=b"", probabilities=(0.5, 0.5)),)}, "one probability for each class"),
    "net": ({"net": "my net"}, "'net'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_could_not_be_read_is_not_written(tiny: ModuleType, tmp_path: Path, case: str) -> None:
    changes, sentence = WRONG[case]
    with pytest.raises(HandlensError) as error:
        bundle.write(tmp_path / "b", tiny.bundle(**changes))
    assert sentence in error.value.message
    assert not list(tmp_path.iterdir())


def test_nan_in_a_card_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        bundle.write(tmp_path / "b", tiny.bundle(card={"top1": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_a_manifest_longer_than_one_that_is_read_is_not_written(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="more than"):
        bundle.write(tmp_path / "b", tiny.bundle(card={"note": " " * bundle.MANIFEST_LIMIT_BYTES}))
    assert not list(tmp_path.iterdir())


# ---- facts -----------------------------------------------------------------------------------------------------------
def test_facts_are_plain_json_in_ascii(tiny: ModuleType) -> None:
    text = bundle.facts("tiny", tiny.CLASSES, tiny.PREPROCESS)
    assert text.isascii()
    assert "\n" not in text
    values = json.loads(text)
    assert set(values) == {"format_version", "handlens_version", "net", "classes", "preprocess"}
    assert values["classes"] == list(tiny.CLASSES)
    assert Preprocess.from_dict(values["preprocess"]) == tiny.PREPROCESS


def test_facts_of_the_same_agree(tiny: ModuleType) -> None:
    bundle.compare_facts("b", tiny.bundle(), tiny.FACTS)
    older = tiny.bundle(handlens_version="0.0.9")
    bundle.compare_facts("b", older, bundle.facts("tiny", tiny.CLASSES, tiny.PREPROCESS, "0.0.9"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"net": "other"}, "other net"),
        ({"classes": ["花朵", "blue sky", "🌿 leaf"]}, "other classes"),
        ({"handlens_version": "9.9"}, "other handlens_version"),
        ({"more": 1}, "other more"),
        ({"format_version": 2}, "of format 2, this handlens reads format 1"),
        ({"format_version": None}, "of format None"),
    ],
)
def test_other_facts_are_named(tiny: ModuleType, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(HandlensError, match=named):
        bundle.compare_facts("b", tiny.bundle(), json.dumps(json.loads(tiny.FACTS) | changes))


@pytest.mark.parametrize("text", ["", "no json", "[]", "[" * 100_000, '{"format_version": 1}', "null"])
def test_facts_that_are_none(tiny: ModuleType, text: str) -> None:
    with pytest.raises(HandlensError):
        bundle.compare_facts("b", tiny.bundle(), text)


# ---- golden photos ---------------------------------------------------------------------------------------------------
def test_only_pixels_are_left_of_a_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "CameraMaker"
    exif[0x8825] = {1: "N", 2: (48.0, 12.0, 30.0)}
    source = np.zeros((100, 200, 3), np.uint8)
    source[:, :100] = (250, 10, 10)
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(source).save(file, "JPEG", quality=95, exif=exif, comment=b"my garden", icc_profile=profile)
    assert b"CameraMaker" in file.getvalue()
    assert b"my garden" in file.getvalue()
    stripped = bundle.strip(file.getvalue())
    with Image.open(io.BytesIO(stripped)) as photo:
        assert photo.format == "JPEG"
        assert photo.size == (100, 200)  # upright
        assert not photo.getexif()
        assert set(photo.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        top = np.asarray(photo.convert("RGB"))[20, 50]
    assert abs(top.astype(int) - (250, 10, 10)).max() < 12
    assert b"CameraMaker" not in stripped
    assert b"my garden" not in stripped


@pytest.mark.parametrize(("size", "expected"), [((2000, 1000), (512, 256)), ((100, 300), (100, 300))])
def test_large_photos_become_smaller(size: tuple[int, int], expected: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGBA", size, (0, 200, 0, 255)).save(file, "PNG")
    with Image.open(io.BytesIO(bundle.strip(file.getvalue()))) as photo:
        assert photo.size == expected
        assert photo.mode == "RGB"


def test_what_systems_leave_in_a_folder_that_was_looked_at_is_not_the_bundles(tiny: ModuleType, tmp_path: Path) -> None:
    bundle.write(tmp_path / "a", tiny.bundle())
    for name in (".DS_Store", "._bundle.json", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / name).write_bytes(b"x")
    assert bundle.read(tmp_path / "a").classes == tiny.bundle().classes
    (tmp_path / "a" / "other.bin").write_bytes(b"x")
    with pytest.raises(HandlensError, match=r"other\.bin"):
        bundle.read(tmp_path / "a")


# ---- the folder that appears whole -----------------------------------------------------------------------------------
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "deep" / "a") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "deep" / "a").exists()
    assert (tmp_path / "deep" / "a" / "x").read_text() == "x"
    with pytest.raises(RuntimeError), files.atomic_folder(tmp_path / "deep" / "b") as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


def test_a_folder_does_not_take_anothers_place(tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="in the way"), files.atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        (tmp_path / "a").mkdir()
    assert not list((tmp_path / "a").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
