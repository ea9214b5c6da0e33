"""A tiny run with its splits, as the exporters and the gate take it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handlens import checkpoint, photos
from handlens.export.job import Source


@pytest.fixture(scope="session")
def split_run(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, tiny_photos: Path) -> Path:
    """The tiny run, with a split of the tiny photos. Not to be changed."""
    run = tmp_path_factory.mktemp("split") / "run"
    shutil.copytree(tiny_run, run)
    found = photos.scan(tiny_photos)
    sha256 = photos.examine(found).sha256
    photos.write_split(run / "split.json", photos.split(found, sha256, fractions=(0.5, 0.25, 0.25)), sha256, 0)
    return run


@pytest.fixture(scope="session")
def source(split_run: Path, tiny_photos: Path) -> Source:
    """What is exported of the tiny run."""
    found = photos.scan(tiny_photos)
    splits = photos.read_split(split_run / "split.json", found, photos.examine(found).sha256)
    return Source.of("tiny", checkpoint.load(split_run), splits)
