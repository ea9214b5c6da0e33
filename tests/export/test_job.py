"""The float artifact that a ladder begins with is converted once; golden photos are those that hold."""

from __future__ import annotations

import copy
import dataclasses
import functools
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from handlens import bundle, export, nets
from handlens.errors import HandlensError
from handlens.evaluate.metrics import wilson
from handlens.export import job, parity
from handlens.export.job import Source
from handlens.run import onnx_runtime

pytest.importorskip("onnx")


def test_one_conversion_serves_all_weights_of_the_same_layers(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    real, converted = export.convert, []

    def convert(net: Any, *more: Any) -> dict[str, bytes]:
        converted.append(net)
        return real(net, *more)

    monkeypatch.setattr(export, "convert", convert)
    other = copy.deepcopy(source.folded)
    with torch.no_grad():
        other.classifier[-1].bias += torch.arange(source.folded.num_classes)
    plain, changed, again = source.float32("onnx"), source.float32("onnx", other), source.float32("onnx", source.folded)
    assert plain is again
    assert converted == [source.folded]
    px = source.reference.preprocess.image_px
    photo = np.random.default_rng(0).integers(0, 256, (1, px, px, 3), dtype=np.uint8)
    before, after = (onnx_runtime.start(artifact, 1)[0](photo)[1] for artifact in (plain, changed))
    assert np.allclose(after - before, np.arange(source.folded.num_classes), atol=1e-4)

    wider = copy.deepcopy(source.folded)
    wider.classifier[-1] = torch.nn.Linear(wider.classifier[-1].in_features, 7)
    source.float32("onnx", wider)
    assert converted == [source.folded, wider]


def test_a_file_that_was_never_run_says_so(source: Source, tmp_path: Path) -> None:
    """Core ML's: its card has the network's own figures, and none of the file's answers or times."""
    artifact = {"model.mlpackage/Manifest.json": b"{}"}
    made = job.finish(source, artifact, "coreml", "float32", tmp_path / "bundle.zip")
    card = bundle.read(tmp_path / "bundle.zip").card
    assert made.parity is card["parity"] is None
    assert card["test"].keys() == {"network"} and card["test"]["network"]["top1"] == 1
    assert not card.keys() & {"latency", "float32", "ladder"}


def test_the_card_names_what_made_and_ran_the_file(source: Source, tmp_path: Path) -> None:
    card = job.finish(source, source.float32("onnx"), "onnx", "float32", tmp_path / "bundle.zip").bundle.card
    assert card["versions"].keys() == {"python", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert card["versions"]["onnxruntime"] == metadata.version("onnxruntime")


def test_the_weights_are_those_of_the_exported_file(source: Source, tmp_path: Path) -> None:
    """Without the auxiliary classifiers, which only training runs."""
    with_them, without = (nets.create("googlenet", 5, aux=aux) for aux in (True, False))
    assert job.num_weights(with_them) == job.num_weights(without) == sum(x.numel() for x in without.parameters())
    other = dataclasses.replace(source, folded=with_them)
    card = job.card(other, {}, "onnx", "float32", None, None, None, 0, "")
    assert card["weights_float32_bytes"] == 4 * job.num_weights(without)


def test_the_card_says_how_many_threads_there_were(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert job.latency(source.reference, 0, runs=3)["threads"] == 1
    assert job.latency(source.reference, 2, runs=3)["threads"] == 2


@pytest.mark.parametrize(
    ("others", "sentence"), [(0, ""), (1, ""), (4, ""), (5, "answers 5 of 200 test photos otherwise than the network")]
)
def test_bfloat16_gives_the_answers_of_all_but_two_in_a_hundred(source: Source, others: int, sentence: str) -> None:
    """Whatever becomes of top-1: these photos are labelled wrongly, and those answered otherwise are won."""
    expected = np.tile(np.array([0.9, 0.1], np.float32), (200, 1))
    got = expected.copy()
    got[:others] = 0.1, 0.9
    found = parity.Parity(
        precision="bfloat16", classes=("a", "b"), paths=tuple(map(str, range(200))), labels=np.ones(200, int),
        expected=expected, got=got, expected_logits=expected, got_logits=got,
    )  # fmt: skip
    if not sentence:
        job._judge(found, 0.005)
        return
    with pytest.raises(HandlensError, match=f"{sentence}.*leave out --bfloat16"):
        job._judge(found, 0.005)


def test_golden_photos_are_those_that_the_exported_file_answers_alike(source: Source) -> None:
    """INT8 may answer a few otherwise, and `check` and `serve` would refuse the bundle for one of them."""
    shipped: Any = SimpleNamespace(precision="int8", classes=source.checkpoint.classes)
    every = job.golden(source, None, shipped)
    seen = [source.reference.preprocess.load(one.photo)[None] for one in every]

    def infer(image: np.ndarray, all_wrong: bool = False) -> tuple[np.ndarray, np.ndarray]:
        probabilities, logits = source.reference.infer(image)
        wrong = all_wrong or any(np.array_equal(image, other) for other in seen[1:3])
        return (np.roll(probabilities, 1, 1) if wrong else probabilities), logits

    kept = job.golden(source, dataclasses.replace(source.reference, infer=infer), shipped)
    assert set(every) - set(kept) == {every[1], every[2]}
    with pytest.raises(HandlensError, match="answers no test photo as the network does"):
        wrong = functools.partial(infer, all_wrong=True)
        job.golden(source, dataclasses.replace(source.reference, infer=wrong), shipped)
    shipped = SimpleNamespace(precision="float32", classes=source.checkpoint.classes)
    with pytest.raises(HandlensError, match=r"\.jpg, made smaller, the exported file says .* it was not kept"):
        job.golden(source, dataclasses.replace(source.reference, infer=infer), shipped)


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [("int8", "points of top-1 below the network"), ("float32", "unknown, or known, otherwise than the network")],
)
def test_what_is_judged_is_judged_before_a_bundle_is_written(
    source: Source, precision: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = dataclasses.replace(source.checkpoint, rejection={"kind": "energy", "threshold": 3.0})
    artifact = source.float32("onnx")

    def infer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probabilities, logits = source.reference.infer(images)
        return (np.roll(probabilities, 1, 1), logits) if precision == "int8" else (probabilities, logits - 100)

    file = dataclasses.replace(source.reference, infer=infer, runtime="onnx", precision=precision)
    monkeypatch.setattr(job, "classifier", lambda *_: file)
    monkeypatch.setattr(parity, "gate", lambda *_: None)  # which lets INT8 pass, and is tested by itself
    judged = dataclasses.replace(source, checkpoint=saved)
    with pytest.raises(HandlensError, match=sentence):
        job.finish(judged, artifact, "onnx", precision, tmp_path / "bundle.zip")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("precision", "wrong", "kept"), [("float32", 1, False), ("int8", 1, True), ("int8", 2, False)])
def test_a_heap_is_answered_as_single_photos_are(
    source: Source, precision: str, wrong: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runtimes answer many photos on a network of its own for each thread, which may go wrong by itself."""
    module = job.runtime_of("onnx")
    begun = module.start_shared
    test = source.splits["test"]
    spoilt = [source.reference.preprocess.load(test.path(index)) for index in range(wrong)]

    def start_shared(artifact: Any) -> Any:
        infer, facts = begun(artifact)

        def answer(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            probabilities, logits = infer(photos)
            for row, photo in enumerate(photos):
                if any((photo == other).all() for other in spoilt):
                    probabilities[row] = np.roll(probabilities[row], 1)
            return probabilities, logits

        return answer, facts

    monkeypatch.setattr(module, "start_shared", start_shared)
    monkeypatch.setattr(job, "AGREEMENT", 1 - 1.5 / len(test))
    out = tmp_path / "b.zip"
    if kept:
        job.finish(source, source.float32("onnx"), "onnx", precision, out)
        assert out.is_file()
        return
    with pytest.raises(HandlensError, match=rf"many photos at once, .* answers {wrong} of {len(test)} test photos"):
        job.finish(source, source.float32("onnx"), "onnx", precision, out)
    assert not out.exists()


def test_the_bundle_is_judged_on_the_test_split_and_has_the_runs_confidence(source: Source, tmp_path: Path) -> None:
    test = source.splits["test"].select(range(0, 9, 2))  # fewer than there are of validation
    calibration = {"temperature": 1.5, "num_photos": 90, "loss_before": 0.3, "loss_after": 0.2}
    rejection = {"kind": "energy", "threshold": 3.0}
    saved = dataclasses.replace(source.checkpoint, calibration=calibration, rejection=rejection)
    judged = dataclasses.replace(source, checkpoint=saved, splits={**source.splits, "test": test})
    made = job.finish(judged, source.float32("onnx"), "onnx", "float32", tmp_path / "bundle.zip")
    assert made.parity and made.parity.paths == test.paths
    shipped = bundle.read(tmp_path / "bundle.zip")
    assert (shipped.calibration, shipped.rejection) == (calibration, rejection)


def test_the_cards_intervals_count_photos_of_one_scene_once(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_scene = SimpleNamespace(scenes=lambda paths: np.zeros(len(paths), int))
    monkeypatch.setattr(job.photos_room, "examine", lambda *_: one_scene)
    job.finish(source, source.float32("onnx"), "onnx", "float32", tmp_path / "bundle.zip")
    for found in bundle.read(tmp_path / "bundle.zip").card["test"].values():
        assert found["top1_ci95"] == list(wilson(found["top1"], 1))


def test_golden_photos_say_nothing_of_where_they_were_taken(source: Source, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "52 N 13 E"
    test = source.splits["test"]
    for path in test.paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.open(test.root / path).save(tmp_path / path, exif=exif)
    marked = dataclasses.replace(source, splits={"test": dataclasses.replace(test, root=tmp_path)})
    shipped: Any = SimpleNamespace(precision="float32", classes=source.checkpoint.classes)
    found = job.golden(marked, None, shipped)
    assert b"52 N" in (tmp_path / test.paths[0]).read_bytes()
    assert found and not any(b"52 N" in one.photo for one in found)
