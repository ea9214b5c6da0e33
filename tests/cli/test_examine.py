"""`handlens examine`, as it is typed."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from handlens import cli, files
from handlens.errors import HandlensError
from handlens.evaluate import wrong_labels
from handlens.photos import Photos, drawn
from handlens.photos.diagnose import KINDS

RUN = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six drawn photos of each of two classes, one empty file, one near-duplicate in the other class, GPS in one."""
    for name in ("daisy", "tulips"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            drawn.picture(name, index)[0].save(tmp_path / "photos" / name / f"{index}.jpg", quality=90)
    (tmp_path / "photos" / "daisy" / "empty.jpg").write_bytes(b"")
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "SECRET PLACE", 6
    small = drawn.picture("daisy", 0)[0].resize((90, 90)).rotate(90)
    small.save(tmp_path / "photos" / "tulips" / "small.jpg", exif=exif)
    return tmp_path / "photos"


def examine(*arguments: object) -> Result:
    return RUN.invoke(cli.app, ["examine", *map(str, arguments)], catch_exceptions=False)


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["handlens", "examine", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    return told


def test_json_table_report_and_list(folder: Path, tmp_path: Path) -> None:
    shown = examine(folder, "--json", "--report", tmp_path / "report.html", "--fix", tmp_path / "out.csv")
    told = json.loads(shown.stdout)
    assert told["num_photos"] == 14
    kinds = {finding["kind"]: finding for finding in told["findings"]}
    assert set(told["findings"][0]) == {"kind", "photos", "detail"}
    assert set(kinds) == {"zero-byte", "label-conflict", "near-duplicates", "few-photos", "rotated"}
    assert kinds["label-conflict"]["photos"] == ["daisy/0.jpg", "tulips/small.jpg"]
    with (tmp_path / "out.csv").open() as file:
        assert {row["path"] for row in csv.DictReader(file)} == {"daisy/empty.jpg", "daisy/0.jpg", "tulips/small.jpg"}
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "SECRET" not in html
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg|#)', html)  # nothing is fetched
    for picture in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html):
        assert b"Exif" not in __import__("base64").b64decode(picture)
    assert "label-conflict" in html
    table = examine(folder).stdout
    assert "zero-byte" in table
    assert KINDS["label-conflict"] in table


def test_fix_copies_what_is_good(folder: Path, tmp_path: Path) -> None:
    shown = examine(folder, "--fix", tmp_path / "cleaned")
    assert "11 of 14 photos were copied" in shown.stderr
    after = json.loads(examine(tmp_path / "cleaned", "--json").stdout)
    assert {finding["kind"] for finding in after["findings"]} == {"few-photos"}
    assert len(list(folder.rglob("*.jpg"))) == 14


def test_what_cannot_be_done_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no photos were given" in refused(capsys, monkeypatch)
    assert "there is no folder" in refused(capsys, monkeypatch, tmp_path / "nowhere")
    assert "exists already" in refused(capsys, monkeypatch, folder, "--fix", folder)
    assert "lies within" in refused(capsys, monkeypatch, folder, "--fix", folder / "cleaned")
    (tmp_path / "none" / "a").mkdir(parents=True)
    assert "has no photos" in refused(capsys, monkeypatch, tmp_path / "none")
    (tmp_path / "none" / "a" / "1.jpg").write_bytes(b"")
    assert "none of the photos" in refused(capsys, monkeypatch, tmp_path / "none")
    Image.new("RGB", (40, 40)).save(tmp_path / "none" / "a" / "1.jpg")
    assert "suspected labels need two classes" in refused_labels(capsys, monkeypatch, tmp_path / "none")


def refused_labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    from handlens.cli import examine as command

    monkeypatch.setattr(command, "_features", lambda photos, *_: np.zeros((len(photos), 2), np.float32))
    return refused(capsys, monkeypatch, folder, "--labels")


def test_one_photo_and_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    photo = drawn.picture("daisy", 0)[0]
    photo.save(tmp_path / "photos" / "a" / "0.png")
    found = examine(tmp_path / "photos")
    assert "1 photo in 1 class" in found.stdout
    assert "these photos cannot be trained on: " in found.stderr and "has one class only (a)" in found.stderr
    assert "has one class only (a)" in json.loads(examine(tmp_path / "photos", "--json").stdout)["not_trainable"]
    for index in range(1, 5):
        photo.save(tmp_path / "photos" / "a" / f"{index}.png")
    assert "; 4 were left out" in examine(tmp_path / "photos", "--fix", tmp_path / "one").stderr
    assert [path.name for path in (tmp_path / "one").rglob("*.png")] == ["0.png"]


def test_a_runs_split_and_suspected_labels(
    split_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo under a wrong name, and a copy of a train photo among the test's."""
    import shutil

    from handlens.cli import examine as command
    from handlens.preprocess import Preprocess

    real = command._features

    def colours(photos: Photos, *given: Any) -> np.ndarray:
        assert real(photos, *given).shape == (len(photos), 1280)
        load = Preprocess(image_px=8, resize_px=8).load  # a random network's features know too little of these
        return np.stack([load(photos.path(k)).mean((0, 1)) for k in range(len(photos))])

    monkeypatch.setattr(command, "_features", colours)
    folder = tmp_path / "photos"
    shutil.copytree(tiny_photos, folder)
    (folder / "blue sky" / "03.jpg").rename(folder / "花朵" / "moved.jpg")
    stored = files.read_json(split_run / "split.json")
    trained, tested = next(iter(stored["train"])), next(iter(stored["test"]))
    shutil.copytree(split_run, tmp_path / "run")
    shutil.copy(folder / trained, folder / tested)
    sha256 = files.sha256_of(folder / tested)
    stored["test"][tested] = sha256
    files.write_json(tmp_path / "run" / "split.json", stored)
    told = json.loads(examine(folder, "--run", tmp_path / "run", "--json").stdout)
    kinds = {finding["kind"]: finding for finding in told["findings"]}
    assert set(kinds["leak"]["photos"]) >= {tested}
    suspected = {
        finding["photos"][0]: finding["detail"] for finding in told["findings"] if "suspected" in finding["kind"]
    }
    assert "looks like blue sky" in suspected["花朵/moved.jpg"]


def test_out_of_fold_probabilities_find_changed_labels() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 60)
    features = np.eye(3)[truth].repeat(4, 1) * 4 + rng.normal(size=(180, 12))
    labels = truth.copy()
    changed = rng.choice(180, 12, replace=False)
    labels[changed] = (labels[changed] + 1) % 3
    probabilities = wrong_labels.out_of_fold(features, labels)
    assert np.allclose(probabilities.sum(1), 1)
    suspects = wrong_labels.suspects(probabilities, labels)
    assert len({one.photo for one in suspects} & set(changed.tolist())) >= 10
    assert len(suspects) <= 16
    assert all(one.probably == truth[one.photo] for one in suspects if one.photo in changed)
    assert [one.own_probability for one in suspects] == sorted(one.own_probability for one in suspects)


def test_without_cleanlab_the_rest_of_what_a_run_shows_is_there(
    split_run: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    found = examine(tiny_photos, "--run", split_run)
    assert found.exit_code == 0, found.stderr
    assert "suspected labels are not looked for: " in found.stderr and "cleanlab" in found.stderr
    assert "36 photos in 3 classes" in found.stdout
    with pytest.raises(HandlensError, match="there is no run folder nope"):  # which is no reason to go on
        examine(tiny_photos, "--run", "nope")


def test_cleanlab_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from handlens.errors import NotHereError

    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(NotHereError, match=r"handlens\[labels\]"):
        wrong_labels.suspects(np.eye(2), np.arange(2))
