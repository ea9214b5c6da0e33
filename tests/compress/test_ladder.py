"""The ladder stops at the first good rung, in order, and says what was best when there is none.

The runtime is played by the float network, with as many wrong answers as each rung is told to give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from handlens import photos
from handlens.compress import ladder
from handlens.errors import HandlensError
from handlens.evaluate.metrics import wilson
from handlens.export import job
from handlens.export.job import Source
from handlens.run import Classifier


def ranked(net: Any, images: Any) -> list[tuple[str, float]]:
    """All layers from the last to the first: those without weights too."""
    return [(name, 1.0) for name, module in net.named_modules() if not [*module.children()]][::-1]


class Stage:
    """What the rungs make in place of files, {"what": observer and layers in float}; and how many answers are wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wrong: dict[Any, int] = {}  # by the rung's number, else "else"
        self.made: list[str] = []
        self.kept: list[tuple[str, ...]] = []
        self.unsure: set[int] = set()  # numbers of the rungs that are less sure of their wrong answers
        self.fails = 0  # the number of the rung of which no file can be made
        from handlens.compress import onnx, qat, repair, sensitivity

        monkeypatch.setattr(onnx, "OBSERVERS", ("minmax", "mse"))
        monkeypatch.setattr(onnx, "quantizer", self.quantizer)
        monkeypatch.setattr(repair, "equalise", lambda net: net)
        monkeypatch.setattr(repair, "correct_bias", lambda net, images, *kept: net)
        monkeypatch.setattr(sensitivity, "rank", ranked)
        monkeypatch.setattr(qat, "train", lambda net, *more, **options: net)
        monkeypatch.setattr(job, "classifier", self.classifier)
        monkeypatch.setattr(job, "latency", lambda exported, threads: {"median_ms": 1.5})  # measuring takes long

    def quantizer(self, net: Any, contract: Any, facts: str, images: np.ndarray, **options: Any) -> Any:
        def quantize(observer: str, keep_float: Collection[str] = ()) -> dict[str, bytes]:
            self.made.append(f"{observer} {len(keep_float)}")
            self.kept.append(tuple(keep_float))
            if len(self.made) == self.fails:
                raise HandlensError("this cannot be expressed")
            return {"what": self.made[-1].encode() * 10}

        return quantize

    def classifier(self, source: Source, artifact: Any, to: str, precision: str, threads: int = 0) -> Classifier:
        wrong = self.wrong.get(len(self.made), self.wrong.get("else", 0))
        seen, unsure = 0, len(self.made) in self.unsure

        def infer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal seen
            probabilities, logits = source.reference.infer(images)
            probabilities = (probabilities + 0.05 * unsure) / (1 + 0.05 * unsure * probabilities.shape[1])
            for row in range(len(images)):
                if seen < wrong:
                    probabilities[row] = np.roll(probabilities[row], 1)
                seen += 1
            return probabilities, logits

        reference = source.reference
        return Classifier(
            classes=reference.classes, preprocess=reference.preprocess, infer=infer, precision="int8", runtime=to
        )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def climb(source: Source, **options: Any) -> ladder.Climbed:
    return ladder.climb(source, "onnx", source.splits["validation"], **options)


def test_the_first_good_rung_ends_it(source: Source, stage: Stage) -> None:
    told: list[str] = []
    climbed = climb(source, tried=lambda rung: told.append(rung.name))
    assert told == [rung.name for rung in climbed.rungs] == ["per channel, minmax"]
    assert (climbed.rung.drop, climbed.rung.agreement, climbed.rung.kept) == (0.0, 1.0, ())
    assert climbed.artifact == {"what": b"minmax 0" * 10} and climbed.rung.size_bytes == 80
    assert climbed.rung.latency_ms == 1.5


def test_rungs_are_chosen_on_validation_photos_alone(
    source: Source, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test photos choose nothing."""
    asked, real = [], ladder.parity.compare

    def compare(network: Classifier, exported: Classifier, judged: photos.Photos, *more: Any, **options: Any) -> Any:
        asked.append(judged.paths)
        return real(network, exported, judged, *more, **options)

    monkeypatch.setattr(ladder.parity, "compare", compare)
    stage.wrong = {1: 3}
    climb(source)
    assert asked == [source.splits["validation"].paths] * 2
    assert not {*source.splits["validation"].paths} & {*source.splits["test"].paths}


def test_photos_of_one_scene_make_a_rungs_interval_wide(
    source: Source, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_scene = SimpleNamespace(scenes=lambda paths: np.zeros(len(paths), int))
    monkeypatch.setattr(photos, "examine", lambda *_: one_scene)
    rung = climb(source).rung
    assert rung.top1_ci95 == wilson(rung.top1, 1.0)


def test_every_rung_in_its_order(source: Source, stage: Stage) -> None:
    stage.wrong = {"else": 3}
    with pytest.raises(ladder.NoRungError):
        climb(source)
    assert stage.made == [
        "minmax 0", "mse 0", "minmax 0", "minmax 2", "minmax 5", "minmax 10", "minmax 20", "minmax 0", "minmax 20",
        "None 0",
    ]  # fmt: skip


def test_what_changed_the_probabilities_least_is_done_together(source: Source, stage: Stage) -> None:
    """Top-1 and agreement are those of min-max, too; the divergence of mean squared errors is less."""
    stage.wrong, stage.unsure = {8: 0, "else": 3}, {2}
    climbed = climb(source)
    assert stage.made[5:] == ["minmax 10", "mse 0", "mse 20"]
    assert [rung.name for rung in climbed.rungs[-2:]] == [
        "equalised and bias corrected, mse", "20 layers in float, mse",
    ]  # fmt: skip
    assert climbed.rungs[0].divergence > climbed.rungs[1].divergence > 0 == climbed.rung.divergence
    assert len(set(climbed.rung.kept)) == 20


def test_layers_in_float_do_not_make_the_file_large(source: Source, stage: Stage) -> None:
    """The first in the ranking hold most of the weights, and are passed over."""
    stage.wrong = {"else": 3}
    with pytest.raises(ladder.NoRungError):
        climb(source)
    room = ladder.SIZE_SHARE * 4 * job.num_weights(source.folded) - 80  # bytes
    assert stage.kept[3] != tuple(name for name, _ in ranked(source.folded, None))[:2]
    for kept in stage.kept[3:7]:
        sizes = [ladder._weights(source.folded, name) for name in kept]
        assert min(sizes) > 0 and 3 * sum(sizes) <= room


def test_where_the_file_is_large_already_the_worst_layers_stay_float(
    source: Source, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "SIZE_SHARE", 0.0)
    stage.wrong = {"else": 3}
    with pytest.raises(ladder.NoRungError):
        climb(source)
    worst = [name for name, _ in ranked(source.folded, None) if ladder._weights(source.folded, name)]
    assert stage.kept[5] == tuple(worst[:10])


def test_the_correction_is_kept_if_it_helped(source: Source, stage: Stage) -> None:
    stage.wrong, stage.unsure = {7: 0, "else": 3}, {3}
    climbed = climb(source)
    assert climbed.rung.name == "20 layers in float, minmax, equalised and bias corrected"


def test_the_better_observer_goes_on(source: Source, stage: Stage) -> None:
    stage.wrong = {1: 4, 2: 2, 3: 3, "else": 0}
    climbed = climb(source)
    assert stage.made == ["minmax 0", "mse 0", "mse 0", "mse 2"]
    assert climbed.rung.kept == stage.kept[-1] and all(
        list(source.folded.get_submodule(name).parameters()) for name in climbed.rung.kept
    )
    assert "2 layers in float" in climbed.rung.name


def test_accuracy_alone_is_not_enough(source: Source, stage: Stage) -> None:
    """With so much loss allowed, a rung whose answers are too often others is still not good."""
    stage.wrong = {1: 2}
    climbed = climb(source, max_drop=1.0)
    assert [rung.agreement < 0.97 for rung in climbed.rungs] == [True, False]


def test_what_agrees_enough_is_kept_when_nothing_agrees_more(
    source: Source, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "MIN_AGREEMENT", 0.5)
    stage.wrong = {5: 2, "else": 3}
    climbed = climb(source, max_drop=1.0)
    assert len(climbed.rungs) == 9 and climbed.rung is climbed.rungs[4]
    assert climbed.artifact == {"what": b"minmax 5" * 10}


def test_the_weights_alone_where_nothing_else_is_good(source: Source, stage: Stage) -> None:
    stage.wrong = {10: 0, "else": 3}
    climbed = climb(source)
    assert (climbed.rung.name, climbed.rung.kept, stage.made[-1]) == ("weights only", (), "None 0")
    assert climbed.net is source.folded and len(climbed.rungs) == 10


def test_the_weights_alone_where_they_are_asked_for(source: Source, stage: Stage) -> None:
    assert [rung.name for rung in climb(source, weights_only=True).rungs] == ["weights only"]
    assert stage.made == ["None 0"]


def test_when_none_is_good_the_best_is_named(source: Source, stage: Stage) -> None:
    stage.wrong = {4: 2, "else": 4}
    with pytest.raises(ladder.NoRungError, match="the best, '2 layers in float, minmax', loses") as caught:
        climb(source)
    asked = "stayed within 2.78 points of top-1 (one answer of 36) with 97.2% of the answers the same"
    assert asked in str(caught.value)
    best = caught.value.best
    assert best.rung.kept == stage.kept[3] and len(best.rungs) == 10
    assert best.artifact == {"what": b"minmax 2" * 10}


def test_the_best_is_what_agrees_most_of_those_that_lose_no_more_than_is_allowed(
    source: Source, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has chance on its side gains points by other answers."""
    found = iter([(0.02, 0.9), (-0.05, 0.5), (0.0, 0.8), (0.3, 0.95), *[(0.0, 0.7)] * 9])

    def compare(*_: object, **__: object) -> SimpleNamespace:
        drop, agreement = next(found)
        return SimpleNamespace(top1=0.5, drop=drop, agreement=agreement, divergence=1.0)

    monkeypatch.setattr(ladder.parity, "compare", compare)
    with pytest.raises(ladder.NoRungError, match=r"loses 2\.00 points and agrees on 90\.0%"):
        climb(source)
    found = iter([(-0.05, 0.8), *[(0.0, 0.7)] * 12])
    with pytest.raises(ladder.NoRungError, match=r"gains 5\.00 points and agrees on 80\.0%"):
        climb(source)


@pytest.mark.parametrize(
    ("wrong", "options", "ways"),
    [
        (1, {"max_drop": 0.0}, "allow more with --max-drop, leave out --int8, or use --float16"),  # all but one agree
        (4, {"max_drop": 0.0}, "leave out --int8, or use --float16"),
        (4, {"weights_only": True}, "leave out --weights-only, leave out --int8, or use --float16"),
    ],
)
def test_what_is_said_to_be_tried_can_help(
    wrong: int, options: dict[str, Any], ways: str, source: Source, stage: Stage
) -> None:
    """No loss that is allowed makes up for answers that are too often others."""
    stage.wrong = {"else": wrong}
    with pytest.raises(ladder.NoRungError) as caught:
        climb(source, **options)
    assert caught.value.hint == ways


def test_core_ml_has_no_int8(source: Source) -> None:
    with pytest.raises(HandlensError, match="makes no INT8 file for coreml"):
        ladder.climb(source, "coreml", source.splits["validation"])


def test_calibration_photos_are_of_all_classes_alike(source: Source) -> None:
    part = source.splits["train"]
    few = [np.flatnonzero(part.labels == label)[: 6 - 2 * label] for label in range(3)]  # 6, 4 and 2 of them
    uneven = part.select(np.concatenate(few).tolist())
    images = ladder.calibration_images(uneven, source, 6)
    assert images.shape == (6, 32, 32, 3) and images.dtype == np.uint8
    predicted = source.reference.predict_batch(images).argmax(1)
    assert np.bincount(predicted, minlength=3).tolist() == [2, 2, 2]
    least = source.reference.predict_batch(ladder.calibration_images(uneven, source, 2)).argmax(1)
    assert sorted(least.tolist()) == [0, 1, 2]  # one of each class, where fewer are asked for


def test_the_first_calibration_photos_are_of_all_classes_too(source: Source, tiny_photos: Path) -> None:
    """Biases are corrected and layers ranked by the first of them alone."""
    images = ladder.calibration_images(photos.scan(tiny_photos), source, 36)
    predicted = source.reference.predict_batch(images).argmax(1)
    assert np.bincount(predicted[: ladder.RANKED_PHOTOS]).tolist() == [11, 11, 10]
    assert {tuple(np.bincount(predicted[at : at + 3])) for at in range(0, 36, 3)} == {(1, 1, 1)}


def test_calibration_photos_without_a_class_are_refused(source: Source) -> None:
    part = source.splits["train"]
    two = part.select(np.flatnonzero(part.labels != 1))
    with pytest.raises(HandlensError, match=f"the calibration photos have none of {part.classes[1]}"):
        ladder.calibration_images(two, source, 10)


def test_calibration_photos_of_other_classes_are_refused(source: Source, tmp_path: Path, tiny_photos: Path) -> None:
    import shutil

    for index, folder in enumerate(sorted(path for path in tiny_photos.iterdir() if path.is_dir())):
        shutil.copytree(folder, tmp_path / f"other {index}")
    with pytest.raises(HandlensError, match="other 0"):
        ladder.calibration_images(photos.scan(tmp_path), source, 10)


def test_four_views_of_each_photo(source: Source, stage: Stage) -> None:
    images = np.arange(2 * 32 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 48, 3)
    own, mirrored, moved, back = ladder.views(images)
    assert np.array_equal(own, images) and np.array_equal(mirrored, images[:, :, ::-1])
    assert np.array_equal(moved[:, 2:, 3:], images[:, :-2, :-3])
    assert np.array_equal(back[:, :-2, :-3], mirrored[:, 2:, 3:])
    assert np.array_equal(moved[:, :2, 3:], images[:, 2:0:-1, :-3])  # reflected
    asked: list[int] = []
    reference = source.reference

    def infer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(images))
        return reference.infer(images)

    object.__setattr__(source, "reference", dataclasses.replace(reference, infer=infer))
    stage.wrong = {1: 10**6, 2: 0}
    try:
        found = climb(source)
    finally:
        object.__setattr__(source, "reference", reference)
    assert [rung.agreement for rung in found.rungs] == [0, 1]
    # the network once a view and photo, for all rungs; the stage as often a rung
    assert sum(asked) == (1 + 2) * 4 * len(source.splits["validation"])


def test_where_left_and_right_matter_no_photo_is_mirrored(
    source: Source, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirrored arrow is of another class: what INT8 loses on it would count as a gain."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    own, down_left, down_right, up_left = ladder.views(images, mirrors=False)
    assert np.array_equal(own, images)
    assert np.array_equal(down_left[:, 2:, :-3], images[:, :-2, 3:])
    assert np.array_equal(down_right[:, 2:, 3:], images[:, :-2, :-3])
    assert np.array_equal(up_left[:, :-2, :-3], images[:, 2:, 3:])
    assert {view.shape for view in (down_left, down_right, up_left)} == {images.shape}
    asked, real = [], ladder.views
    told: dict[str, Any] = {}
    from handlens.compress import qat

    def views(images: np.ndarray, mirrors: bool = True) -> list[np.ndarray]:
        asked.append(mirrors)
        return real(images, mirrors)

    monkeypatch.setattr(ladder, "views", views)
    monkeypatch.setattr(qat, "train", lambda net, *more, **options: told.update(options) or net)
    stage.wrong = {"else": 3}
    for flip in (True, False):
        recipe = {**source.checkpoint.recipe, "flip": flip}
        arrows = dataclasses.replace(source, checkpoint=dataclasses.replace(source.checkpoint, recipe=recipe))
        with pytest.raises(ladder.NoRungError):
            climb(arrows)
        assert {*asked} == {flip} and told["flip"] is flip
        asked.clear()


def test_a_rung_that_cannot_be_made_is_told_and_left(source: Source, stage: Stage) -> None:
    stage.wrong, stage.fails = {1: 3, "else": 0}, 2
    told: list[ladder.Rung] = []
    found = climb(source, tried=told.append)
    assert [rung.failed for rung in told] == ["", "this cannot be expressed", ""] and found.rungs == told
    assert found.rung is told[2]
    stage.made, stage.fails = [], 1
    with pytest.raises(HandlensError, match="this cannot be expressed"):  # a net that the target cannot express at all
        climb(source)


def test_of_few_photos_one_answer_may_differ(source: Source, stage: Stage) -> None:
    """36 answers: one is 2.8 %, more than the hundredth that may differ of many."""
    stage.wrong = {1: 1}
    for max_drop, allowed in ((1.0, 1.0), (0.005, 1 / 36)):
        stage.made = []
        climbed = climb(source, max_drop=max_drop)
        rung = climbed.rung
        assert len(climbed.rungs) == 1 and rung.agreement == 35 / 36 and rung.drop == pytest.approx(1 / 36)
        assert (rung.allowed_drop, rung.wanted_agreement) == (allowed, 35 / 36)
    stage.made = []
    lost, kept = climb(source, max_drop=0.0).rungs  # which says that none may be lost
    assert kept.drop == 0
    for rung in (lost, kept):  # a quarter of a photo apart
        assert rung.top1_ci95 == wilson(9 * rung.top1, 9)
