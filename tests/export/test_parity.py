"""The parity gate lets through what answers the same, and says of each kind of mistake where it first shows.

The mistakes are made on purpose in a stand-in for an exporter, which runs the network in torch; one of them is made in
a real ONNX file, too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from handlens.errors import HandlensError
from handlens.evaluate.unknown import Rejection
from handlens.export import job, parity
from handlens.export.job import Source
from handlens.nets import Net
from handlens.nets.layers import Conv2d, modules_of
from handlens.preprocess import Preprocess
from handlens.run import Classifier, torch_runtime

Mistake = Callable[[Net, Preprocess], tuple[Net, Preprocess]]


def exporter(mistake: Mistake) -> parity.Convert:
    """A target that converts by `mistake` and runs what comes of it in torch."""
    return lambda net, contract: torch_runtime.predictor(*mistake(net, contract), "cpu")


def exported(source: Source, mistake: Mistake, **carried: Any) -> Classifier:
    """What the stand-in makes of the source's network, with the facts that its file carries."""
    reference = source.reference
    infer = exporter(mistake)(source.folded, reference.preprocess)
    given = {"classes": reference.classes, "preprocess": reference.preprocess, **carried}
    return Classifier(infer=infer, runtime="onnx", **given)


def judge(source: Source, mistake: Mistake, **carried: Any) -> parity.Parity:
    """Compare on the test split and pass the gate, or not."""
    file, photos = exported(source, mistake, **carried), source.splits["test"]
    found = parity.compare(source.reference, file, photos)
    parity.gate(found, source.reference, file, source.folded, photos, exporter(mistake))
    return found


def none(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    return net, contract


def swapped_channels(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    return net, dataclasses.replace(contract, channels="bgr")


def wrong_mean(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    return net, dataclasses.replace(contract, mean=(0.0, 0.0, 0.0))


def wrong_padding(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    """The convolutions of stride 2 pad as TensorFlow does, which the network did not learn."""
    changed = copy.deepcopy(net)
    for conv in modules_of(changed, Conv2d):
        assert isinstance(conv, Conv2d)
        if conv.stride[0] == 2:
            conv.same, conv.padding = True, (0, 0)
    return changed, contract


def corrupted_weight(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    """The last convolution's weights have the wrong sign."""
    changed = copy.deepcopy(net)
    *_, last = modules_of(changed, torch.nn.Conv2d)
    with torch.no_grad():
        last.weight.mul_(-1)  # type: ignore[operator, union-attr]
    return changed, contract


def wrong_bias(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    changed = copy.deepcopy(net)
    with torch.no_grad():
        if changed.classifier[-1].in_features > 1:  # not that of a probe, which has none
            changed.classifier[-1].bias.add_(torch.tensor([3.0, 0.0, -3.0]))
    return changed, contract


def shifted_logits(net: Net, contract: Preprocess) -> tuple[Net, Preprocess]:
    """All by as much: the probabilities stay."""
    changed = copy.deepcopy(net)
    with torch.no_grad():
        if changed.classifier[-1].in_features > 1:
            changed.classifier[-1].bias.add_(0.5)
    return changed, contract


def test_the_same_network_passes(source: Source) -> None:
    found = judge(source, none)
    assert found.greatest < 1e-4 and found.agreement == 1 and not found.differing()
    assert found.drop == 0 and found.drop_standard_error == 0
    assert len(found.paths) == len(source.splits["test"])


@pytest.mark.parametrize(
    ("mistake", "where", "hint"),
    [
        (swapped_channels, "first to differ: normalisation", "channel order"),
        (wrong_mean, "first to differ: normalisation", "mean and std"),
        (wrong_padding, "first to differ: stage 1 of", "padding"),
        (corrupted_weight, "first to differ: stage 5 of 5", "a weight"),
        (wrong_bias, "first to differ: logits", "the classifier is converted otherwise"),
        (shifted_logits, "first to differ: logits", "the classifier is converted otherwise"),
    ],
    ids=["swapped channels", "wrong mean", "wrong padding", "corrupted weight", "wrong bias", "shifted logits"],
)
def test_a_mistake_is_stopped_and_found(source: Source, mistake: Mistake, where: str, hint: str) -> None:
    with pytest.raises(HandlensError) as caught:
        judge(source, mistake)
    sentence = str(caught.value)
    assert where in sentence and hint in sentence and "was not kept" in sentence
    assert any(path in sentence for path in source.splits["test"].paths)  # the photos that differ are named


def test_permuted_classes_are_told_from_wrong_logits(source: Source) -> None:
    with pytest.raises(HandlensError, match="first to differ: the order of the classes"):
        judge(source, none, classes=source.reference.classes[::-1])


def test_another_resize_shows_in_the_pixels(source: Source) -> None:
    contract = dataclasses.replace(source.reference.preprocess, resize_px=96)
    with pytest.raises(HandlensError) as caught:
        judge(source, none, preprocess=contract)
    assert "first to differ: the pixels (the two contracts have resize_px 36 and 96)" in caught.value.message
    assert caught.value.hint == "the file must carry the network's own pixel contract"


def test_a_file_changed_after_the_conversion(source: Source) -> None:
    file = exported(source, corrupted_weight)
    where, hint = parity.first_difference(
        source.splits["test"].path(0), source.reference, file, source.folded, exporter(none), tolerance=1e-2
    )
    assert where.startswith("the finished file") and "export again" in hint


@pytest.mark.parametrize(("precision", "advice"), [("float16", "leave out --float16"), ("float32", "try another --to")])
def test_rounding_that_adds_up_blames_no_other_program(source: Source, precision: str, advice: str) -> None:
    def rounded(net: Net, contract: Preprocess) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Of each layer a little is lost, as float16 would."""
        infer = torch_runtime.predictor(net, contract, "cpu")
        return lambda images: tuple(0.99 * values for values in infer(images))  # type: ignore[return-value]

    infer = rounded(source.folded, source.reference.preprocess)
    file = dataclasses.replace(exported(source, none), infer=infer, precision=precision)
    where, hint = parity.first_difference(
        source.splits["test"].path(0), source.reference, file, source.folded, rounded, tolerance=1e-1
    )
    assert where.startswith("no part by itself") and advice in hint


def test_other_classes_are_refused(source: Source) -> None:
    file = exported(source, none, classes=("a", "b", "c"))
    with pytest.raises(HandlensError, match="the exported file names the classes a, b, c"):
        parity.compare(source.reference, file, source.splits["test"])


def test_photos_that_cannot_be_counted_are_refused(source: Source) -> None:
    file, photos = exported(source, none), source.splits["test"]
    for others in (photos.without(photos.paths), dataclasses.replace(photos, classes=photos.classes[::-1])):
        with pytest.raises(HandlensError, match=f"there are {len(others)} photos of the classes .* in its order"):
            parity.compare(source.reference, file, others)


def answers(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def a_parity(precision: str, expected: np.ndarray, got: np.ndarray, labels: list[int]) -> parity.Parity:
    paths = tuple(f"{index}.jpg" for index in range(len(labels)))
    return parity.Parity(
        precision=precision, classes=("a", "b"), paths=paths, labels=np.array(labels), expected=expected, got=got,
        expected_logits=np.log(expected), got_logits=np.log(got),
    )  # fmt: skip


def test_what_is_called_unknown_is_compared() -> None:
    rejection = Rejection(kind="max-softmax", threshold=0.7)
    expected = answers([0.9, 0.1], [0.71, 0.29], [0.705, 0.295], [0.5, 0.5])
    got = answers([0.9, 0.1], [0.69, 0.31], [0.695, 0.305], [0.6, 0.4])
    labels = [0, 0, 0, 0]
    assert a_parity("int8", expected, got, labels).unknown_otherwise(rejection).tolist() == [1, 2]
    assert a_parity("float32", expected, got, labels).unknown_otherwise(rejection).tolist() == []  # so near to it
    far = answers([0.9, 0.1], [0.6, 0.4], [0.71, 0.29], [0.6, 0.4])
    assert a_parity("float32", answers([0.9, 0.1], [0.8, 0.2], [0.71, 0.29], [0.6, 0.4]), far, labels
                    ).unknown_otherwise(rejection).tolist() == [1]  # fmt: skip


def test_a_file_that_calls_others_unknown_is_not_kept(source: Source, tmp_path: Any) -> None:
    saved = dataclasses.replace(source.checkpoint, rejection={"kind": "energy", "threshold": 3.0})
    judged = dataclasses.replace(source, checkpoint=saved)
    made = job.finish(judged, judged.float32("onnx"), "onnx", "float32", tmp_path / "fine.zip")
    assert made.bundle.card["parity"]["unknown_alike"] == 1
    moved = dataclasses.replace(
        made.parity, got_logits=made.parity.got_logits - 2 * made.parity.got_logits.max(1, keepdims=True)
    )
    with pytest.raises(HandlensError, match=r"calls \d+ of \d+ test photos unknown, or known, otherwise") as caught:
        job._judge_unknown(moved, Rejection(**saved.rejection))
    assert all(path in caught.value.message for path in moved.paths[:2])


def test_a_near_tie_may_fall_either_way_but_no_further() -> None:
    tie = a_parity("float32", answers([0.5004, 0.4996]), answers([0.4998, 0.5002]), [0])
    assert tie.close.all() and not tie.differing()
    clear = a_parity("float32", answers([0.51, 0.49]), answers([0.4998, 0.5002]), [0])
    (difference,) = clear.differing()
    assert (difference.expected, difference.got, round(difference.greatest, 4)) == ("a", "b", 0.0102)
    assert not a_parity("float16", answers([0.51, 0.49]), answers([0.505, 0.495]), [0]).differing()


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 0.01), ("float16", 0.1)])
@pytest.mark.parametrize("largest", [0.5, 20.0])
def test_logits_may_differ_by_a_part_of_the_largest(precision: str, allowed: float, largest: float) -> None:
    probabilities, logits = answers([0.9, 0.1]), answers([largest, 0.1])
    found = a_parity(precision, probabilities, probabilities, [0])
    found = dataclasses.replace(found, expected_logits=logits)
    for part, differs in ((0.9, False), (1.1, True)):
        off = logits - part * allowed * max(1.0, largest)
        assert bool(dataclasses.replace(found, got_logits=off).differing()) == differs


def test_int8_is_not_held_to_equal_probabilities() -> None:
    found = a_parity("int8", answers([0.9, 0.1], [0.8, 0.2]), answers([0.6, 0.4], [0.4, 0.6]), [0, 0])
    assert not found.differing() and found.agreement == 0.5 and found.drop == 0.5


def test_the_greatest_difference_is_named_first() -> None:
    expected, got = answers(*[[0.9, 0.1]] * 3), answers([0.4, 0.6], [0.1, 0.9], [0.3, 0.7])
    found = a_parity("float32", expected, got, [0, 0, 0])
    assert (
        [one.photo for one in found.differing()] == [one.photo for one in found.lost()] == ["1.jpg", "2.jpg", "0.jpg"]
    )


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_answers_that_are_no_numbers_pass_in_no_precision(precision: str) -> None:
    """They are no guess of the first class, which is where NumPy finds their maximum."""
    found = a_parity(precision, answers([0.9, 0.1], [0.2, 0.8]), answers([np.nan, np.nan], [0.2, 0.8]), [0, 1])
    (difference,) = found.differing()
    assert difference.photo == "0.jpg" and difference.expected == "a" and difference.greatest == np.inf
    assert found.guessed.tolist() == [-1, 1] and found.agreement == found.top1 == found.drop == 0.5


def test_an_int8_file_whose_answers_are_no_numbers_is_not_kept() -> None:
    found = a_parity("int8", answers([0.9, 0.1], [0.2, 0.8]), answers([np.nan, np.nan], [0.2, 0.8]), [0, 1])
    with pytest.raises(HandlensError, match=r"the INT8 file's answers to 1 of 2 test photos are no numbers \(0\.jpg\)"):
        job._judge(found, max_drop=1.0)


def test_an_int8_file_that_lost_too_much_names_what_it_lost() -> None:
    """Ten of the photos that only the network gets right, the greatest difference first."""
    sure, unsure = [0.9, 0.1], [0.6, 0.4]
    expected, got = answers(*[sure] * 13, unsure), answers(*[sure] * 2, *[[0.3, 0.7]] * 11, [0.45, 0.55])
    found = a_parity("int8", expected, got, [0] * 13 + [1])  # the last is won
    with pytest.raises(HandlensError, match="points of top-1 below the network") as caught:
        job._judge(found, max_drop=0.0)
    _, _, lost = caught.value.message.partition("right before and wrong now: ")
    assert lost.startswith("2.jpg: a 0.9000, exported b 0.7000; 3.jpg: ") and lost.endswith("0.7000 and 1 more")
    assert lost.count(".jpg") == 10 and "13.jpg" not in lost


def test_the_error_of_a_drop_is_paired() -> None:
    # of 8 photos two are lost and one is won: variance of the differences (1, 1, -1, 0 ...) over 8
    expected = answers(*[[0.9, 0.1]] * 7, [0.1, 0.9])
    got = answers(*[[0.9, 0.1]] * 5, *[[0.1, 0.9]] * 2, [0.9, 0.1])
    found = a_parity("int8", expected, got, [0] * 8)
    assert found.drop == pytest.approx(1 / 8)
    assert found.drop_standard_error == pytest.approx(((2 + 1) / 8 - (1 / 8) ** 2) ** 0.5 / 8**0.5)


def test_a_real_file_with_swapped_channels_is_stopped(source: Source, tmp_path: Any) -> None:
    from handlens import export
    from handlens.export import job

    def convert(net: Net, contract: Preprocess, *more: Any, **options: Any) -> dict[str, bytes]:
        return real(net, dataclasses.replace(contract, channels="bgr"), *more, **options)

    real = export.convert
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export, "convert", convert)
        artifact = convert(source.folded, source.reference.preprocess, "onnx", source.facts)
        with pytest.raises(HandlensError, match="first to differ: normalisation"):
            job.finish(source, artifact, "onnx", "float32", tmp_path / "bundle")
    assert not any(tmp_path.iterdir())


def test_photos_of_a_second_batch_are_named(source: Source) -> None:
    test = source.splits["test"]
    found = parity.compare(source.reference, source.reference, test, batch_size=4)
    assert found.paths == test.paths
    assert found.labels.tolist() == test.labels.tolist()


def test_an_int8_file_may_lose_as_much_as_is_allowed() -> None:
    """Eight of 50, which floats find to be a little more than 0.16."""
    sure, wrong = [0.9, 0.1], [0.1, 0.9]
    found = a_parity("int8", answers(*[sure] * 50), answers(*[sure] * 42, *[wrong] * 8), [0] * 50)
    assert found.drop > 0.16 == pytest.approx(found.drop)
    job._judge(found, max_drop=0.16)
    with pytest.raises(HandlensError, match=r"16\.0 points of top-1 below the network, where 15\.9 are allowed"):
        job._judge(found, max_drop=0.159)
