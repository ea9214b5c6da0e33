"""docs/phone-apps: the pixel contract in Kotlin gives Python's bytes, compiled and run where a compiler is at hand."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.preprocess import Preprocess

SOURCES = Path(__file__).parents[2] / "docs/phone-apps"
RUNNER = """
import handlens.*
import java.io.*

fun main() = DataInputStream(BufferedInputStream(File("in.bin").inputStream())).use { input ->
    File("out.bin").outputStream().use { out ->
        repeat(input.readInt()) {
            val contract = Contract(input.readInt(), input.readUTF(), input.readInt(), input.readUTF())
            val (width, height) = Pair(input.readInt(), input.readInt())
            out.write(fit(IntArray(width * height) { input.readInt() }, width, height, contract))
        }
    }
}
"""


def utf(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


@pytest.mark.slow
def test_kotlins_pixels_are_pythons(tmp_path: Path) -> None:
    kotlinc, java = shutil.which("kotlinc"), shutil.which("java")
    if kotlinc is None or java is None:
        pytest.skip("no Kotlin compiler or no Java is installed")
    random = np.random.default_rng(0)
    cases = []
    for width, height in ((1, 1), (31, 97), (50, 150), (64, 64), (48, 36), (333, 500), (700, 5)):
        photo = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        photo[: height // 2, : width // 3] = 255
        for resize, kernel in itertools.product(
            ("crop", "letterbox", "squash"), ("nearest", "bilinear", "bicubic", "lanczos")
        ):
            cases.append((photo, Preprocess(image_px=32, resize_px=36, resize=resize, interpolation=kernel)))  # type: ignore[arg-type]
    given = bytearray(len(cases).to_bytes(4, "big"))
    for photo, contract in cases:
        given += contract.image_px.to_bytes(4, "big") + utf(contract.resize)
        given += contract.resize_px.to_bytes(4, "big") + utf(contract.interpolation)
        given += photo.shape[1].to_bytes(4, "big") + photo.shape[0].to_bytes(4, "big")
        argb = 0xFF000000 | (photo.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))
        given += argb.astype(">u4").tobytes()
    (tmp_path / "in.bin").write_bytes(given)
    (tmp_path / "Main.kt").write_text(RUNNER)
    sources = [str(SOURCES / "android/Pixels.kt"), "Main.kt"]
    made = subprocess.run(
        [kotlinc, *sources, "-include-runtime", "-d", "fit.jar"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    subprocess.run([java, "-cp", "fit.jar", "MainKt"], cwd=tmp_path, check=True, timeout=120)
    out = np.fromfile(tmp_path / "out.bin", np.uint8).reshape(len(cases), 32, 32, 3)
    for (photo, contract), got in zip(cases, out, strict=True):
        assert np.array_equal(got, contract.fit(Image.fromarray(photo))), (photo.shape, contract)


def test_what_is_too_large_for_an_apps_memory_is_decoded_smaller() -> None:
    """Whatever it is stored as: a phone's own photos may be HEIC of 50 million pixels."""
    source = (SOURCES / "android/Classifier.kt").read_text("utf-8")
    assert "val large = info.size.width.toLong() * info.size.height > 16_000_000" in source
    assert 'if ((isJpeg || large) && contract.interpolation != "nearest") decoder.setTargetSampleSize(sample)' in source
    assert "more than 16 million pixels on Android" in (SOURCES.parent / "phone-apps.md").read_text("utf-8")
