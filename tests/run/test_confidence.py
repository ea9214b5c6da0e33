"""Calibrated probabilities and the word unknown, the same wherever a classifier runs."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from handlens import bundle, checkpoint, compress, export
from handlens import run as run_room
from handlens.errors import HandlensError
from handlens.evaluate.calibration import softmax
from handlens.evaluate.unknown import Rejection
from handlens.nets.fold import fold_batch_norm
from handlens.preprocess import Preprocess

TEMPERATURE = 3.0


def faded(photos: Path, contract: Preprocess) -> np.ndarray:
    """The tiny photos, each more or less faded to grey: the less is left of one, the less it is like its class."""
    images = np.stack([contract.load(path) for path in sorted(photos.rglob("*.jpg"))])
    left = np.linspace(0, 1, len(images))[:, None, None, None]
    return (left * images + (1 - left) * 128).astype(np.uint8)


@pytest.fixture(scope="module")
def confident(split_run: Path, tiny_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a temperature, and a threshold in the middle of its photos' scores."""
    from handlens.train import Recipe

    folder = tmp_path_factory.mktemp("confident") / "run"
    shutil.copytree(split_run, folder)
    plain = run_room.load(folder)
    images = faded(tiny_photos, plain.preprocess)
    scores = Rejection(kind="energy", threshold=0).scores(*plain.infer(images))
    order = np.sort(scores)
    widest = 9 + int(np.diff(order[9:27]).argmax())  # where rounding decides nothing
    saved = checkpoint.load(folder)
    recipe = dataclasses.asdict(Recipe(net="mobilenet_v2", photos=str(tiny_photos)))
    checkpoint.save(
        folder,
        dataclasses.replace(
            saved,
            recipe=recipe,
            calibration={"temperature": TEMPERATURE},
            rejection={"kind": "energy", "threshold": float(order[widest : widest + 2].mean())},
        ),
    )
    return folder


def test_a_run_answers_with_its_temperature_and_threshold(confident: Path, tiny_photos: Path) -> None:
    classifier = run_room.load(confident)
    images = faded(tiny_photos, classifier.preprocess)
    probabilities, logits = classifier.infer(images)
    assert probabilities == pytest.approx(softmax(logits, TEMPERATURE), abs=1e-6)
    assert np.abs(probabilities - softmax(logits)).max() > 0.01
    answers = classifier.answers(images)
    assert 9 < sum(answer.unknown for answer in answers) < 28
    assert classifier.rejection is not None
    for answer in answers:
        assert answer.score is not None
        assert answer.unknown == (answer.score < classifier.rejection.threshold)
    paths = [*sorted(tiny_photos.rglob("*.jpg"))[:3], tiny_photos / "nope.jpg"]
    found = dict(classifier.answer_many(paths, top=1))
    together = classifier.answers(np.stack([classifier.preprocess.load(path) for path in paths[:3]]))
    for path, expected in zip(paths[:3], together, strict=True):
        answer = found[path]
        assert not isinstance(answer, HandlensError)
        assert answer.guesses[0].name == path.parent.name
        assert answer.score == pytest.approx(expected.score)  # one by one, rounding differs by processor
    assert isinstance(found[paths[3]], HandlensError)


RUNTIMES = [
    "onnx",
    *(pytest.param(to, marks=pytest.mark.slow) for to in ("litert", "executorch", "openvino")),
]


@pytest.mark.parametrize("to", RUNTIMES)
def test_every_runtime_decides_the_same(confident: Path, tiny_photos: Path, tmp_path: Path, to: str) -> None:
    made = compress.export(confident, to, out=tmp_path / "b.zip", photos=tiny_photos)
    assert made.bundle.calibration == {"temperature": TEMPERATURE}
    shipped, trained = run_room.load(tmp_path / "b.zip"), run_room.load(confident)
    assert shipped.rejection == trained.rejection
    images = faded(tiny_photos, trained.preprocess)
    expected, got = trained.answers(images), shipped.answers(images)
    probabilities, logits = shipped.infer(images)
    assert probabilities == pytest.approx(softmax(logits, TEMPERATURE), abs=1e-5)
    for golden in made.bundle.golden:
        image = trained.preprocess.load(golden.photo)[None]
        assert golden.probabilities == pytest.approx(trained.infer(image)[0][0], abs=1e-6)
    assert [answer.unknown for answer in got] == [answer.unknown for answer in expected]
    assert [answer.score for answer in got] == pytest.approx([answer.score for answer in expected], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "litert", "executorch", "openvino"])
def test_an_int8_file_divides_and_scores_in_float(confident: Path, tiny_photos: Path, to: str) -> None:
    trained = checkpoint.load(confident)
    images = faded(tiny_photos, trained.preprocess)
    facts = bundle.facts(trained.name, trained.classes, trained.preprocess)
    maker = importlib.import_module(f"handlens.compress.{to}")
    artifact = maker.quantizer(fold_batch_norm(trained.net), trained.preprocess, facts, images)("minmax")
    probabilities, logits = export.runner(to)(artifact)(images)
    assert probabilities == pytest.approx(softmax(logits, TEMPERATURE), abs=1e-5)


def test_runs_from_before_there_were_temperatures_answer_as_they_did(confident: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(confident, folder)
    from handlens import files

    facts = files.read_json(folder / "handlens.json")
    del facts["calibration"], facts["rejection"]
    files.write_json(folder / "handlens.json", facts)
    old = run_room.load(folder)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    probabilities, logits = old.infer(images)
    assert probabilities == pytest.approx(softmax(logits), abs=1e-6)
    assert old.answers(images)[0][1:] == (None, False)


@pytest.mark.parametrize(
    ("member", "value", "sentence"),
    [
        ("calibration", {"temperature": 0}, "no proper temperature"),
        ("calibration", {}, "no proper temperature"),
        ("calibration", {"temperature": True}, "no proper temperature"),
        ("calibration", 1.5, "no proper 'calibration'"),
        ("rejection", {"kind": "energy"}, "no proper 'rejection'"),
        ("rejection", {"kind": "distance", "threshold": 1.0}, "expected max-softmax or energy"),
        ("rejection", [], "no proper 'rejection'"),
    ],
)
def test_damaged_confidence_is_one_sentence(
    confident: Path, tmp_path: Path, member: str, value: object, sentence: str
) -> None:
    from handlens import files

    folder = tmp_path / "run"
    shutil.copytree(confident, folder)
    files.write_json(folder / "handlens.json", files.read_json(folder / "handlens.json") | {member: value})
    with pytest.raises(HandlensError, match=sentence):
        run_room.load(folder)
