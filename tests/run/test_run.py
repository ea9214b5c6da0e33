"""Photos in, guesses out."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlens import checkpoint, nets, photos, run
from handlens.errors import HandlensError, PhotoError
from handlens.preprocess import Preprocess
from handlens.run import torch_runtime


def test_a_run_in_the_home_folder(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tiny_run.parent))
    assert run.load(f"~/{tiny_run.name}").classes == run.load(tiny_run).classes


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"threads": -1}, "threads is -1, expected 1 to 1024, or 0"),
        ({"threads": 1_000_000}, "threads is 1000000, expected 1 to 1024, or 0"),
        ({"threads": "2"}, "threads is '2', expected"),
        ({"device": "banana"}, "cannot compute on the device 'banana' .*; give \"cpu\""),
        ({"device": "cuda:99"}, "cannot compute on the device 'cuda:99'"),
        ({"device": "meta"}, "cannot compute on the device 'meta'"),
    ],
)
def test_threads_and_devices_that_there_cannot_be(tiny_run: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(HandlensError, match=told):
        run.load(tiny_run, **wrong)


def test_guesses_are_the_classes_best_first(tiny_run: Path, tiny_photos: Path) -> None:
    classifier = run.load(tiny_run)
    guesses = classifier.predict(tiny_photos / "花朵" / "00.jpg", top=2)
    assert guesses[0].name == "花朵"
    assert len(guesses) == 2
    assert guesses[0].probability > guesses[1].probability > 0
    everything = classifier.predict((tiny_photos / "花朵" / "00.jpg").read_bytes())
    assert sum(guess.probability for guess in everything) == pytest.approx(1, abs=1e-5)
    assert {guess.name for guess in everything} == set(classifier.classes)


def test_probabilities_are_those_of_the_network_itself(tiny_run: Path, tiny_photos: Path) -> None:
    classifier = run.load(tiny_run)
    net = checkpoint.load(tiny_run).net
    images, _ = next(photos.batches(photos.scan(tiny_photos), classifier.preprocess, 8))
    with torch.no_grad():
        expected = net(torch.from_numpy(classifier.preprocess.normalise(images))).softmax(1).numpy()
    probabilities = classifier.predict_batch(images)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("error", [TypeError, OSError, None], ids=["Windows", "no library", "macOS"])
def test_a_system_without_glibc_keeps_memory_as_it_does(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    asked = []

    def library(name: str | None) -> object:
        asked.append(name)
        if error:
            raise error
        return object()  # without mallopt

    monkeypatch.setattr(ctypes, "CDLL", library)
    torch_runtime.keep_freed_memory()
    assert asked == [None]


@pytest.mark.parametrize(("found", "taken"), [("mps", "cpu"), ("cuda", "cuda"), ("xpu", "xpu"), (None, "cpu")])
def test_apples_graphics_are_not_taken_unasked(monkeypatch: pytest.MonkeyPatch, found: str | None, taken: str) -> None:
    device = torch.device(found) if found else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    assert torch_runtime.default_device() == torch.device(taken)


def test_many_photos_in_order_with_the_unreadable_among_them(tiny_run: Path, tiny_photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((tiny_photos / "花朵" / "00.jpg").read_bytes()[:200])
    good = sorted(tiny_photos.rglob("*.jpg"))
    paths = [broken, *good[:20], tmp_path / "missing.jpg", *good[20:]]
    seen: list[tuple[int, int]] = []
    classifier = run.load(tiny_run)
    answers = list(
        classifier.predict_many(paths, top=1, batch_size=7, progress=lambda done, total: seen.append((done, total)))
    )
    assert [path for path, _ in answers] == paths
    for path, answer in answers:
        if path in (broken, tmp_path / "missing.jpg"):
            assert isinstance(answer, PhotoError)
        else:
            assert not isinstance(answer, PhotoError)
            assert [guess.name for guess in answer] == [path.parent.name]
            assert answer[0].probability == pytest.approx(classifier.predict(path)[0].probability, abs=1e-5)
    assert seen[-1] == (len(paths), len(paths))
    assert len(seen) == -(-len(paths) // 7)


def test_a_batch_of_unreadable_photos_only(tiny_run: Path, tmp_path: Path) -> None:
    answers = list(run.load(tiny_run).predict_many([tmp_path / "a.jpg", tmp_path / "b.jpg"]))
    assert all(isinstance(answer, PhotoError) for _, answer in answers)


def test_one_photo_or_no_batch_is_refused_where_many_are_expected(tiny_run: Path) -> None:
    classifier = run.load(tiny_run)
    with pytest.raises(HandlensError, match=r"'ab\.jpg' is one photo, expected a list"):
        list(classifier.predict_many(Path("ab.jpg")))  # type: ignore[arg-type]
    with pytest.raises(HandlensError, match=r"'ab\.jpg' is one photo, expected a list"):
        list(classifier.predict_many("ab.jpg"))
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {size}, expected at least 1"):
            list(classifier.predict_many(["ab.jpg"], batch_size=size))


def test_stopping_early_ends_the_threads(tiny_run: Path, tiny_photos: Path) -> None:
    import threading

    before = threading.active_count()
    answers = run.load(tiny_run).predict_many(sorted(tiny_photos.rglob("*.jpg")), batch_size=2)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before


@pytest.mark.parametrize("name", ["nope", "empty"])
def test_no_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HandlensError, match=r"no run|no finished run"):
        run.load(tmp_path / name)


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "recipe.toml").write_text("")
    with pytest.raises(HandlensError) as refused:
        run.load(folder)
    assert refused.value.hint == f"go on with `handlens train --resume --out '{folder}'`"


def test_importing_the_room_loads_no_torch() -> None:
    code = "import sys, handlens.run, handlens.evaluate; print('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.fixture
def weight_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of weights for three classes at 32 px with TensorFlow's padding."""
    from handlens.nets.weights import WeightFile

    torch.manual_seed(0)
    net = nets.create("mobilenet_v2", 3, width=0.1, padding="tensorflow").eval()
    path = tmp_path / "weights.safetensors"
    known = WeightFile(
        path=path,
        net="mobilenet_v2",
        arguments={"width": 0.1, "padding": "tensorflow"},
        preprocess=Preprocess(image_px=32, resize_px=36, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        num_classes=3,
        source="handlens",
        label="weights.safetensors",
    )
    monkeypatch.setattr("handlens.nets.weights.find", lambda net, weights, progress=None: known)
    monkeypatch.setattr("handlens.nets.weights.load", lambda file: net)
    return path


def test_weights_take_the_folders_classes_in_sorted_order(weight_file: Path) -> None:
    classifier = run.from_weights("mobilenet_v2", weight_file, ("b", "c", "a"))
    assert classifier.classes == ("a", "b", "c")
    assert "sorted order" in classifier.note
    assert classifier.preprocess.mean == (0.5, 0.5, 0.5)


def test_weights_without_photos_number_their_classes(weight_file: Path) -> None:
    classifier = run.from_weights("mobilenet_v2", weight_file)
    assert classifier.classes == ("0", "1", "2")
    assert "numbers" in classifier.note


def test_a_guess_at_what_weights_were_made_for_is_told(weight_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from handlens.nets import weights

    known = weights.find("mobilenet_v2", "a")
    assert "are a guess" not in run.from_weights("mobilenet_v2", weight_file).note
    guessed = dataclasses.replace(known, guess="those of mobilenetv2_100.ra_in1k")
    monkeypatch.setattr("handlens.nets.weights.find", lambda net, weights, progress=None: guessed)
    note = run.from_weights("mobilenet_v2", weight_file).note
    assert "; weights.safetensors is one whose pixels and padding are a guess, those of mobilenetv2_100.ra_in1k" in note


def test_weights_of_another_number_of_classes(weight_file: Path) -> None:
    with pytest.raises(HandlensError, match="gives 3 classes, the photos have 2"):
        run.from_weights("mobilenet_v2", weight_file, ("a", "b"))


def test_weights_without_a_classifier(weight_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from handlens.nets import weights

    backbone = dataclasses.replace(weights.find("", ""), num_classes=None)
    monkeypatch.setattr("handlens.nets.weights.find", lambda net, weights, progress=None: backbone)
    with pytest.raises(HandlensError, match="no classifier"):
        run.from_weights("mobilenet_v2", weight_file)
