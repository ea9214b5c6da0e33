"""The embedded set: the same pictures each time, five telling classes, nothing half-drawn."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.errors import HandlensError
from handlens.evaluate.baseline import linear_baseline
from handlens.photos import drawn


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures a class, drawn by two processes."""
    return drawn.draw(tmp_path_factory.mktemp("drawn") / "flowers", 60, 64, seed=3, processes=2)


@pytest.mark.parametrize("name", drawn.CLASSES)
def test_a_picture_depends_on_its_seed_class_and_number_alone(name: str) -> None:
    def pixels(seed: int, index: int) -> np.ndarray:
        return np.asarray(drawn.picture(name, index, 48, seed)[0])

    first = pixels(0, 7)
    np.random.default_rng().random(3)
    np.random.seed(1)
    assert (pixels(0, 7) == first).all()
    assert (pixels(1, 7) != first).mean() > 0.5
    assert (pixels(0, 8) != first).mean() > 0.5


def test_classes_draw_different_random_numbers() -> None:
    corners = {np.asarray(drawn.picture(name, 0, 48)[0])[:4, :4].tobytes() for name in drawn.CLASSES}
    assert len(corners) == len(drawn.CLASSES)  # not the same background under another flower


@pytest.mark.parametrize("image_px", [32, 97, 160])
def test_a_picture_has_the_size_asked_for_and_is_no_plain_area(image_px: int) -> None:
    image, quality = drawn.picture("tulips", 0, image_px)
    assert image.size == (image_px, image_px)
    assert image.mode == "RGB"
    assert 50 <= quality <= 95
    assert np.asarray(image).std() > 10


def test_the_same_scene_at_another_size() -> None:
    """The size changes the grain, not what is drawn."""
    small, large = (drawn.picture("roses", 4, px)[0] for px in (64, 128))
    difference = np.abs(np.asarray(small, float) - np.asarray(large.resize((64, 64), Image.Resampling.BOX), float))
    other = np.abs(np.asarray(small, float) - np.asarray(drawn.picture("roses", 5, 64)[0], float))
    assert difference.mean() < 0.5 * other.mean()


def test_the_folder_holds_what_was_asked_for(small_set: Path) -> None:
    assert sorted(path.name for path in small_set.iterdir()) == sorted(drawn.CLASSES)
    assert [path.name for path in small_set.parent.iterdir()] == ["flowers"]  # no unfinished folder beside it
    for name in drawn.CLASSES:
        photos = sorted((small_set / name).iterdir())
        assert len(photos) == 60
        for photo in photos[:5]:
            with Image.open(photo) as image:
                image.load()
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))


def test_a_small_set_is_the_beginning_of_a_large_one(small_set: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    drawn.draw(tmp_path / "few", 2, 64, seed=3, processes=1, progress=lambda done, total: seen.append((done, total)))
    few, many = files_of(tmp_path / "few"), files_of(small_set)
    assert len(few) == 10
    assert few == {path: many[path] for path in few}
    assert seen == [(done, 10) for done in range(1, 11)]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert drawn.draw(str(tmp_path), 1, 32) == tmp_path
    assert len(files_of(tmp_path)) == 5


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(HandlensError, match="not an empty folder"):
        drawn.draw(tmp_path, 1, 32)
    with pytest.raises(HandlensError, match="not an empty folder"):
        drawn.draw(tmp_path / "mine.txt", 1, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "wrong",
    [{"photos_per_class": 0}, {"image_px": 31}, {"image_px": 5000}, {"seed": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(HandlensError, match=f"{next(iter(wrong))} is"):
        drawn.draw(tmp_path / "flowers", **wrong)
    assert not (tmp_path / "flowers").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_is_left_of_a_drawing_that_was_stopped(tmp_path: Path, processes: int) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn.draw(tmp_path / "flowers", 25, 32, processes=processes, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_fail_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "_WORKER", "raise SystemExit(1)")
    assert len(files_of(drawn.draw(tmp_path / "flowers", 20, 32, processes=2))) == 100

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(drawn, "picture", fail)
    with pytest.raises(HandlensError, match="the disk is full"):
        drawn.draw(tmp_path / "more", 20, 32, processes=2)
    assert [path.name for path in tmp_path.iterdir()] == ["flowers"]


def test_a_script_without_a_main_guard_may_draw(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from handlens.photos import drawn\nprint(drawn.draw('flowers', 20, 32, processes=2))\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.stdout, done.stderr) == ("flowers\n", "")
    assert len(files_of(tmp_path / "flowers")) == 100


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HandlensError, match="flowers"):
        drawn.draw(tmp_path / "file" / "flowers", 1, 32)


def test_a_linear_model_learns_a_little_and_not_much(small_set: Path) -> None:
    """Above chance (20 %): there is something to see. Far below a network: colours and places do not give it away."""
    images = [np.asarray(Image.open(path)) for path in sorted(small_set.rglob("*.jpg"))]
    labels = np.repeat(np.arange(5), 60)
    test = np.arange(300) % 3 == 0
    accuracy = linear_baseline(
        [image for image, out in zip(images, test, strict=True) if not out],
        labels[~test],
        [image for image, out in zip(images, test, strict=True) if out],
        labels[test],
    )
    assert 0.24 < accuracy < 0.5


def test_drawing_loads_no_torch() -> None:
    code = "import sys, handlens.photos.drawn as d; d.picture('daisy', 0, 32); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"
