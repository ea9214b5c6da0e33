"""`handlens draw-flowers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from handlens import photos

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", ["flowers", "my flowers 花 🌼"])
def test_the_folder_can_be_scanned(tmp_path: Path, command: Run, name: str) -> None:
    folder = tmp_path / name
    code, out, err = command("draw-flowers", folder, "--photos-per-class", 2, "--image-px", 40, "--seed", 1, "--json")
    assert (code, err) == (0, "")
    found = photos.scan(folder)
    assert json.loads(out) == {
        "folder": str(folder), "classes": list(found.classes), "photos_per_class": 2, "num_photos": len(found),
        "image_px": 40, "seed": 1,
    }  # fmt: skip
    assert found.counts().tolist() == [2] * 5


def test_it_says_what_it_did(tmp_path: Path, command: Run) -> None:
    code, out, err = command("draw-flowers", tmp_path / "flowers", "--photos-per-class", 1, "--image-px", 32)
    assert (code, err) == (0, "")
    assert "1 pictures each of daisy, dandelion" in out
    assert str(tmp_path / "flowers") in out.replace("\n", "")


def test_a_folder_in_use_is_refused(tmp_path: Path, command: Run) -> None:
    (tmp_path / "mine.txt").write_text("")
    code, out, err = command("draw-flowers", tmp_path, "--photos-per-class", 1)
    assert (code, out) == (2, "")
    assert "not an empty folder" in err
