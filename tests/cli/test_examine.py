"""`handlens examine`, as it is typed."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from handlens import cli, files, photos
from handlens.cli import screen
from handlens.errors import HandlensError, quoted
from handlens.evaluate import wrong_labels
from handlens.photos import Photos, drawn, near
from handlens.photos.diagnose import KINDS

RUN = CliRunner()


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn photos of each of two classes, one empty file, one near-duplicate in the other class, GPS in one."""
    root = tmp_path_factory.mktemp("flowers")
    for name in ("daisy", "tulips"):
        (root / name).mkdir()
        for index in range(6):
            drawn.picture(name, index)[0].save(root / name / f"{index}.jpg", quality=90)
    (root / "daisy" / "empty.jpg").write_bytes(b"")
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "SECRET PLACE", 6
    small = drawn.picture("daisy", 0)[0].resize((90, 90)).rotate(90)
    small.save(root / "tulips" / "small.jpg", exif=exif)
    return root


@pytest.fixture
def folder(flowers: Path, tmp_path: Path) -> Path:
    """A copy of `flowers`, to be changed."""
    return shutil.copytree(flowers, tmp_path / "photos")


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
    assert set(kinds) == {"zero-byte", "label-conflict", "few-photos", "rotated"}
    assert kinds["label-conflict"]["photos"] == ["daisy/0.jpg", "tulips/small.jpg"]
    with (tmp_path / "out.csv").open() as file:
        assert {row["path"] for row in csv.DictReader(file)} == {"daisy/empty.jpg", "daisy/0.jpg", "tulips/small.jpg"}
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "SECRET" not in html
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg|#)', html)  # nothing is fetched
    for picture in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html):
        assert b"Exif" not in __import__("base64").b64decode(picture)
    assert "label-conflict" in html
    table = examine(folder)
    assert "zero-byte" in table.stdout
    assert KINDS["label-conflict"] in table.stdout
    assert "--report FILE shows the first of each kind with thumbnails, --json lists all" in table.stderr


def test_a_long_search_for_copies_shows_a_bar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn.picture("daisy", 77)[0].save(folder / "tulips" / "77.png")  # not what another test has searched already
    shown: list[tuple[str, int, int]] = []
    monkeypatch.setattr(near, "_AT_ONCE", 1)
    monkeypatch.setattr(
        screen, "progress", lambda label, *_: nullcontext(lambda done, total=0: shown.append((label, done, total)))
    )
    examine(folder)
    ((done, total), *_) = [of[1:] for of in reversed(shown) if of[0] == "looking for copies"]
    assert done == total > 0


def test_fix_copies_what_is_good(folder: Path, tmp_path: Path) -> None:
    shown = examine(folder, "--fix", tmp_path / "cleaned")
    assert "11 of 14 photos copied to" in shown.stderr
    after = json.loads(examine(tmp_path / "cleaned", "--json").stdout)
    assert {finding["kind"] for finding in after["findings"]} == {"few-photos"}
    assert len(list(folder.rglob("*.jpg"))) == 14


def test_where_it_cannot_write_is_told_before_it_looks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "examine", lambda *_: pytest.fail("looked"))
    photo = folder / "daisy" / "0.jpg"
    before = photo.read_bytes()
    places = (("--fix", "a.xlsx"), ("--fix", "photos/cleaned"), ("--report", "photos"), ("--report", photo))
    for option, place in places:
        with pytest.raises(HandlensError):
            examine(folder, option, tmp_path / place)
    assert photo.read_bytes() == before


def test_a_class_without_photos_is_a_finding(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "roses").mkdir()
    (folder / "roses" / "notes.txt").write_text("none yet")
    shown = examine(folder, "--json", "--fix", tmp_path / "cleaned", "--report", tmp_path / "report.html")
    assert shown.exit_code == 0
    told = json.loads(shown.stdout)
    assert {"kind": "empty-class", "photos": [], "detail": "roses: no photo"} in told["findings"]
    assert [one["detail"] for one in told["findings"] if one["kind"] == "few-photos"] == ["daisy: 6", "tulips: 7"]
    assert not [one for one in told["findings"] if one["kind"] == "imbalance"]
    assert told["classes"] == {"daisy": 7, "roses": 0, "tulips": 7}
    assert "there is no photo to train on in 'roses'" in told["not_trainable"]
    assert sorted(path.name for path in (tmp_path / "cleaned").iterdir()) == ["daisy", "tulips"]
    assert "roses: no photo" in (tmp_path / "report.html").read_text("utf-8")
    assert "roses: no photo" in examine(folder).stdout
    rng = np.random.default_rng(0)
    monkeypatch.setattr("handlens.cli.examine._frozen", lambda *_: object())
    monkeypatch.setattr("handlens.cli.examine._features", lambda photos, *_: rng.normal(size=(len(photos), 3)))
    monkeypatch.setattr(wrong_labels, "suspects", lambda *_: [wrong_labels.Suspect(-1, 0, 0.9, 0.1)])
    shown = examine(folder, "--labels", "--json")  # random features tell nothing, and nothing is said by them
    assert "suspected labels are not looked for: the classifier that judges agrees with" in shown.stderr
    assert not [one for one in json.loads(shown.stdout)["findings"] if one["kind"] == "suspected-label"]
    monkeypatch.setattr(wrong_labels, "tells", lambda *_: True)
    told = json.loads(examine(folder, "--labels", "--json").stdout)  # the classes that there are keep their names
    assert "said to be tulips (10%), looks like daisy (90%)" in [finding["detail"] for finding in told["findings"]]


def test_where_nothing_is_left_the_findings_are_shown_before_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        drawn.picture("daisy", 0)[0].save(tmp_path / "photos" / name / "0.png")
    given = [tmp_path / "photos", "--fix", tmp_path / "cleaned", "--report", tmp_path / "report.html"]
    for more, shown in (([], "the same pixels: a, b"), (["--json"], '"kind": "label-conflict"')):
        monkeypatch.setattr(sys, "argv", ["handlens", "examine", *map(str, given), *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert left.value.code == 2
        assert shown in out
        assert err.splitlines()[-1].startswith("handlens: of ") and "no photo would be left" in err
        assert not (tmp_path / "cleaned").exists()
    assert "2 photos in 2 classes" in (tmp_path / "report.html").read_text("utf-8")


def test_one_is_no_plural(tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    photo = drawn.picture("daisy", 0)[0]
    photo.save(tmp_path / "photos" / "a" / "0.png")
    (tmp_path / "photos" / "a" / "1.png").write_bytes(b"")
    assert "1 photo is better left out" in examine(tmp_path / "photos", "--report", tmp_path / "r.html").stderr
    html = (tmp_path / "r.html").read_text("utf-8")
    assert "2 photos in 1 class." in html and "1 of them is better left out" in html
    assert "lists 1 photo to leave out" in examine(tmp_path / "photos", "--fix", tmp_path / "out.txt").stderr


def test_what_cannot_be_done_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no photos were given" in refused(capsys, monkeypatch)
    assert "there is no folder" in refused(capsys, monkeypatch, tmp_path / "nowhere")
    assert "exists already" in refused(capsys, monkeypatch, folder, "--fix", folder)
    (tmp_path / "mine.csv").write_text("mine")
    assert "mine.csv exists already" in refused(capsys, monkeypatch, folder, "--fix", tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "mine"
    told = refused(capsys, monkeypatch, folder, "--fix", tmp_path / "foo.JSON")
    assert "foo.JSON ends in .JSON, expected a new folder or a list in .csv or .txt" in told
    assert not (tmp_path / "foo.JSON").exists()
    below = tmp_path / "mine.csv" / "new" / "a"
    assert "mine.csv is no folder" in refused(capsys, monkeypatch, folder, "--fix", below)
    assert "mine.csv is no folder" in refused(capsys, monkeypatch, folder, "--report", below / "r.html")
    assert "is a folder, expected the name of a file" in refused(capsys, monkeypatch, folder, "--report", tmp_path)
    assert "lies within" in refused(capsys, monkeypatch, folder, "--fix", folder / "cleaned")
    (tmp_path / "none" / "a").mkdir(parents=True)
    assert "has no photos" in refused(capsys, monkeypatch, tmp_path / "none")
    (tmp_path / "none" / "a" / "1.jpg").write_bytes(b"")
    assert "none of the photos" in refused(capsys, monkeypatch, tmp_path / "none")
    Image.new("RGB", (40, 40)).save(tmp_path / "none" / "a" / "1.jpg")
    told = refused(capsys, monkeypatch, folder, "--labels", "--weights", "none")
    assert "need features, and --weights is none" in told
    told = refused(capsys, monkeypatch, folder, "--fix", tmp_path / "x.htm", "--report", tmp_path / "a/../x.htm")
    assert "--fix and --report are both" in told and not (tmp_path / "x.htm").exists()
    inside = tmp_path / "new" / "deep" / "r.html"
    told = refused(capsys, monkeypatch, folder, "--fix", tmp_path / "new", "--report", inside)
    assert f"--report {inside} lies within --fix {tmp_path / 'new'}" in told and not (tmp_path / "new").exists()
    assert "suspected labels need two classes" in refused_labels(capsys, monkeypatch, tmp_path / "none")


def refused_labels(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    from handlens.cli import examine as command

    monkeypatch.setattr(command, "_frozen", lambda *_: object())
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
    assert "1 of 5 photos copied to" in examine(tmp_path / "photos", "--fix", tmp_path / "one").stderr
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


@pytest.mark.parametrize("sizes", [(40, 40), (95, 12), (20, 20, 20, 20, 20)])
def test_features_that_cannot_tell_the_classes_apart_blame_nobody(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    told = {"noise": 0, "signal": 0}
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(size=(len(labels), 8))
        for name, features in (("noise", noise), ("signal", noise + 3 * np.eye(8)[labels])):
            told[name] += wrong_labels.tells(wrong_labels.out_of_fold(features, labels), labels)
    assert told == {"noise": 0, "signal": 5}


def test_copies_do_not_make_a_classifier_that_tells_classes_apart() -> None:
    """Six photos of ten right in each of two classes are chance, and so are they with each saved twenty times."""
    labels = np.repeat([0, 1], 200)
    right = np.tile(np.repeat([1, 1, 1, 0, 1, 1, 0, 1, 0, 0], 20), 2)
    probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
    assert wrong_labels.tells(probabilities, labels)
    assert not wrong_labels.tells(probabilities, labels, np.arange(400) // 20)


def test_copies_with_the_same_wrong_label_are_judged_together() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 60)
    features = np.eye(3)[truth].repeat(30, 1) * 0.6 + rng.normal(size=(180, 90))
    labels = truth.copy()
    changed = rng.choice(180, 15, replace=False)
    labels[changed] = (labels[changed] + 1) % 3
    features, labels = np.concatenate([features, features[changed]]), np.concatenate([labels, labels[changed]])
    groups = np.concatenate([np.arange(180), changed])
    found = {one.photo for one in wrong_labels.suspects(wrong_labels.out_of_fold(features, labels, groups), labels)}
    alone = {one.photo for one in wrong_labels.suspects(wrong_labels.out_of_fold(features, labels), labels)}
    assert len(found & {*changed.tolist()}) >= 10 > len(alone & {*changed.tolist()})


def test_too_few_photos_are_told_before_weights_are_looked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from handlens.cli import examine as command

    for path in (folder / "tulips").glob("[2-9].jpg"):
        path.unlink()
    monkeypatch.setattr(command, "_frozen", lambda *_: pytest.fail("weights"))
    with pytest.raises(HandlensError, match="two classes with at least 5 different whole photos each"):
        examine(folder, "--labels")


def test_a_small_class_does_not_change_how_the_others_are_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from handlens.cli import examine as command

    (folder / "roses").mkdir()
    drawn.picture("roses", 0)[0].save(folder / "roses" / "0.png")
    for px in (120, 110, 100, 90, 80):  # one photo again
        drawn.picture("roses", 0)[0].resize((px, px)).save(folder / "roses" / f"{px}.png")
    seen = {}

    def judged(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
        seen.update(labels=labels, groups=groups)
        return np.eye(2)[labels]

    monkeypatch.setattr(command, "_frozen", lambda *_: object())
    monkeypatch.setattr(command, "_features", lambda photos, *_: np.zeros((len(photos), 2), np.float32))
    monkeypatch.setattr(wrong_labels, "out_of_fold", judged)
    shown = examine(folder, "--labels")
    assert "suspected labels are not looked for in 'roses': fewer than 5 different photos" in shown.stderr
    assert "the classifier that judges agrees with 100% of the labels" in shown.stderr
    assert np.bincount(seen["labels"]).tolist() == [6, 7]
    assert len(np.unique(seen["groups"])) == 12  # tulips/small.jpg goes with daisy/0.jpg


def test_without_cleanlab_the_rest_of_what_a_run_shows_is_there(
    split_run: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setattr("handlens.cli.examine._features", lambda *_: pytest.fail("features that nothing is done with"))
    found = examine(tiny_photos, "--run", split_run)
    assert found.exit_code == 0, found.stderr
    assert "suspected labels are not looked for: " in found.stderr and "cleanlab" in found.stderr
    assert "36 photos in 3 classes" in found.stdout


def test_what_labels_need_is_told_before_the_photos_are_looked_at(
    tiny_photos: Path, split_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "examine", lambda *_: pytest.fail("too late"))
    with pytest.raises(HandlensError, match="there is no run folder nope"):
        examine(tiny_photos, "--run", "nope")
    with pytest.raises(HandlensError, match="mobilenet_v9"):
        examine(tiny_photos, "--labels", "--net", "mobilenet_v9")
    with pytest.raises(HandlensError, match="--net and --weights are for --labels, and --run has a network"):
        examine(tiny_photos, "--run", split_run, "--net", "mobilenet_v2")
    with pytest.raises(HandlensError, match="--net and --weights are for --labels"):
        examine(tiny_photos, "--net", "mobilenet_v2")
    for missing, extra in (("cleanlab", "labels"), ("sklearn", "evaluate"), ("torch", "train")):
        with monkeypatch.context() as hidden, pytest.raises(HandlensError, match=rf"handlens\[{extra}\]"):
            hidden.setitem(sys.modules, missing, None)
            examine(tiny_photos, "--labels")


def test_what_only_lacks_a_package_is_not_called_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (folder / "daisy" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    told = json.loads(examine(folder, "--json").stdout)
    (one,) = [finding for finding in told["findings"] if finding["kind"] == "needs-package"]
    assert one["photos"] == ["daisy/phone.heic"] and 'pip install "handlens[heic]"' in one["detail"]
    assert "daisy/phone.heic" not in told["leave_out"]
    with pytest.raises(HandlensError, match=r"daisy/phone\.heic is HEIC, which needs .*no copy is made without it"):
        examine(folder, "--fix", folder.parent / "cleaned")
    assert not (folder.parent / "cleaned").exists()
    for path in (folder / "daisy").glob("*.jpg"):
        path.unlink()
    with pytest.raises(HandlensError, match=r'broken .*pip install "handlens\[heic\]".*install it') as caught:
        photos.usable(found := photos.scan(folder), photos.examine(found))
    assert caught.value.hint == "install it, or remove the class"


def test_labels_are_judged_by_features_that_have_not_seen_them(
    split_run: Path, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those below a head's extra layer, which was fitted to the labels; they are in the cache, too."""
    import torch

    from handlens import checkpoint, nets
    from handlens.train import features

    found = checkpoint.load(split_run)
    net = nets.replace_head(found.net, 3, hidden=7)
    arguments = {**found.arguments, "head_hidden": 7}
    recipe = {"mode": "head", "net": found.name, "photos": str(tiny_photos)}
    changed = dataclasses.replace(found, net=net, arguments=arguments, recipe=recipe)
    shutil.copytree(split_run, tmp_path / "run")
    checkpoint.save(tmp_path / "run", changed)
    seen: list[torch.Tensor] = []
    real = features.Frozen.features
    monkeypatch.setattr(features.Frozen, "features", lambda own, *a, **k: seen.append(r := real(own, *a, **k)) or r)
    examine(tiny_photos, "--run", tmp_path / "run", "--json")
    assert seen[0].shape[-1] == 1280


def test_photos_of_a_run_that_were_moved(
    split_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = files.read_json(split_run / "handlens.json")
    facts["recipe"]["photos"] = str(tmp_path / "gone")
    files.write_json(tmp_path / "run" / "handlens.json", facts)
    told = refused(capsys, monkeypatch, "--run", tmp_path / "run")
    assert told.startswith(f"handlens: the photos of {tmp_path / 'run'} are no longer in {tmp_path / 'gone'}; ")
    assert told.endswith(f"name where they are now: handlens examine PHOTOS --run {quoted(tmp_path / 'run')}")


def test_a_class_of_one_photo_does_not_hide_the_rest(split_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(tiny_photos, folder)
    (folder / "new").mkdir()
    drawn.picture("daisy", 0)[0].save(folder / "new" / "0.png")
    shutil.copy(folder / "花朵" / "00.jpg", folder / "花朵" / "again.jpg")
    found = examine(folder, "--run", split_run)
    assert found.exit_code == 0 and "38 photos in 4 classes" in found.stdout
    for name in ("blue sky", "🌿 leaf"):
        shutil.rmtree(folder / name)
    found = examine(folder, "--run", split_run)
    assert found.exit_code == 0 and "14 photos in 2 classes" in found.stdout
    assert "suspected labels are not looked for: suspected labels need two classes" in found.stderr
    assert "--labels" not in found.stderr
    for name in ("no-such-run", "photos"):  # however little is to be looked for
        with pytest.raises(HandlensError, match=f"(there is no run folder .*no-such-run|{name} is no finished run)"):
            examine(folder, "--run", tmp_path / name)
