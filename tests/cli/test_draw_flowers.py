"""`handlens draw-flowers`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from handlens import cli, photos


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["handlens", "draw-flowers", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("name", ["flowers", "my flowers 花 🌼"])
def test_the_folder_can_be_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / name
    code, out, err = run(monkeypatch, capsys, folder, "--photos-per-class", 2, "--image-px", 40, "--seed", 1, "--json")
    assert (code, err) == (0, "")
    found = photos.scan(folder)
    assert json.loads(out) == {
        "folder": str(folder), "classes": list(found.classes), "photos_per_class": 2, "num_photos": len(found),
        "image_px": 40, "seed": 1,
    }  # fmt: skip
    assert found.counts().tolist() == [2] * 5


def test_it_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, tmp_path / "flowers", "--photos-per-class", 1, "--image-px", 32)
    assert (code, err) == (0, "")
    assert "1 pictures each of daisy, dandelion" in out
    assert str(tmp_path / "flowers") in out.replace("\n", "")


def test_a_folder_in_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("")
    code, out, err = run(monkeypatch, capsys, tmp_path, "--photos-per-class", 1)
    assert (code, out) == (2, "")
    assert "not an empty folder" in err
