"""The reader in the page gives the bytes that handlens gives."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlens.preprocess import Preprocess

PAGE = Path(__file__).parents[2] / "docs" / "pixel-contract.md"
CONTRACTS = {
    "crop": Preprocess(image_px=64, resize_px=73),
    "all of the shorter side": Preprocess(image_px=64, resize_px=64, interpolation="bicubic"),
    "letterbox": Preprocess(image_px=63, resize="letterbox", interpolation="lanczos"),
    "squash": Preprocess(image_px=64, resize="squash"),
    "nearest": Preprocess(image_px=31, resize_px=40, interpolation="nearest"),
}


@pytest.fixture(scope="module")
def pixels() -> Callable[..., np.ndarray]:
    (block,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.M)
        if "def pixels" in block
    )
    made: dict[str, Any] = {}
    exec(block, made)
    found: Callable[..., np.ndarray] = made["pixels"]
    return found


def photos() -> dict[str, bytes]:
    """Of every kind that the page speaks of, at sizes that do not divide evenly."""
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    rgb = small.resize((331, 217), Image.Resampling.BICUBIC)
    alpha = Image.fromarray(random.integers(0, 256, (217, 331), dtype=np.uint8))
    given: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "large": (small.resize((1501, 1103), Image.Resampling.BICUBIC), "JPEG", {}),
        "upright": (rgb.rotate(90, expand=True), "PNG", {}),
        "grey": (rgb.convert("L"), "JPEG", {}),
        "cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "palette": (rgb.quantize(40), "PNG", {}),
        "a transparent colour": (rgb.quantize(40), "PNG", {"transparency": 3}),
        "transparent": (Image.merge("RGBA", (*rgb.split(), alpha)), "PNG", {}),
        "transparent grey": (Image.merge("LA", (rgb.convert("L"), alpha)), "PNG", {}),
        "16 bits": (Image.fromarray(random.integers(0, 65536, (50, 71)).astype(np.uint16)), "PNG", {}),
        "one pixel": (small.resize((1, 1)), "PNG", {}),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        given[f"orientation {orientation}"] = rgb, "JPEG", {"exif": exif}
    made = {}
    for name, (image, kind, options) in given.items():
        file = io.BytesIO()
        image.save(file, kind, **options)
        made[name] = file.getvalue()
    return made


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_the_bytes_are_handlens_own(pixels: Callable[..., np.ndarray], contract: Preprocess, tmp_path: Path) -> None:
    for name, content in photos().items():
        path = tmp_path / name
        path.write_bytes(content)
        assert np.array_equal(pixels(path, contract.to_dict()), contract.load(path)), name
