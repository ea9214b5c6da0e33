"""Small folders of photos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakePhotos = Callable[..., Path]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setenv("HANDLENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def make_photo() -> Callable[..., Path]:
    """Write a small photo whose pixels depend on its path (or on `content`); the suffix says in which format."""

    def make(path: Path, content: str | None = None) -> Path:
        seed = hashlib.sha256((content or path.as_posix()).encode()).digest()
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(seed)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def make_folder(tmp_path: Path, make_photo: Callable[..., Path]) -> MakePhotos:
    """Make `root/class/N.png` for each count given; contents depend on class and number, not on the root."""

    def make(counts: dict[str, int], root: str = "photos") -> Path:
        for name, count in counts.items():
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                make_photo(tmp_path / root / name / f"{i:03d}.png", content=f"{name}/{i}")
        return tmp_path / root

    return make
