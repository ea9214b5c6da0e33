"""Sets keep what they promise, and paired tests find what is there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import multinomial

from handlens.errors import HandlensError
from handlens.evaluate import Scores, conformal, paired
from handlens.evaluate.calibration import softmax


def drawn(count: int, seed: int, sharpness: float = 3.0) -> Scores:
    """Answers that are too sure of themselves, and labels drawn by milder ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 6))
    labels = np.array([rng.choice(6, p=row) for row in softmax(logits)])
    return Scores(
        probabilities=softmax(logits * sharpness),
        labels=labels,
        classes=tuple("abcdef"),
        paths=tuple(map(str, range(count))),
    )


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.95])
def test_the_promise_is_kept_on_average(coverage: float) -> None:
    held = [conformal.judge(drawn(200, s), drawn(200, 1000 + s), coverage)["coverage"] for s in range(40)]
    assert coverage - 0.01 < np.mean(held) < coverage + 0.02


def test_what_is_said() -> None:
    found = conformal.judge(drawn(200, 0), drawn(100, 1), 0.9)
    assert found["promised"] == 0.9
    assert sum(found["sizes"].values()) == 100
    assert found["mean_size"] == pytest.approx(sum(int(k) * v for k, v in found["sizes"].items()) / 100)
    assert found["coverage_ci95"][0] < found["coverage"] < found["coverage_ci95"][1]


def test_sets_of_each_photo() -> None:
    known, scores = drawn(200, 0), drawn(100, 1)
    found = conformal.judge(known, scores, 0.9)
    sets = conformal.sets(scores, found["threshold"])
    assert [one["photo"] for one in sets] == list(scores.paths)
    sizes = [len(one["classes"]) for one in sets]
    assert {str(size): sizes.count(size) for size in set(sizes)} == found["sizes"]
    held = sum("abcdef"[label] in one["classes"] for label, one in zip(scores.labels, sets, strict=True))
    assert held / 100 == found["coverage"]
    assert all(one["classes"][:1] in ([], ["abcdef"[best]]) for best, one in zip(scores.predicted, sets, strict=True))
    by_hand = right([1, 0])
    assert [one["classes"] for one in conformal.sets(by_hand, 0.2)] == [["a", "b"], ["b", "a"]]
    assert [one["classes"] for one in conformal.sets(by_hand, 0.9)] == [[], []]


def test_what_cannot_be_promised() -> None:
    with pytest.raises(HandlensError, match=r"18 validation photos cannot promise a coverage of 0.95, 19 are needed"):
        conformal.threshold(drawn(18, 0), 0.95)
    conformal.threshold(drawn(19, 0), 0.95)
    for coverage in (0, 1, 95):
        with pytest.raises(HandlensError, match="expected a share"):
            conformal.threshold(drawn(50, 0), coverage)


def right(which: list[int]) -> Scores:
    """Ten photos of class 0, of which these are answered rightly."""
    table = np.tile([0.2, 0.8], (len(which), 1))
    table[np.array(which, bool)] = [0.8, 0.2]
    labels = np.zeros(len(which), np.int64)
    return Scores(probabilities=table, labels=labels, classes=("a", "b"), paths=tuple(map(str, range(len(which)))))


def test_mcnemar_by_hand() -> None:
    found = paired.compare(right([1] * 8 + [0] * 12), right([1] * 7 + [0] + [1] * 7 + [0] * 5))
    assert (found["only_first"], found["only_second"]) == (1, 7)
    assert found["p_value"] == pytest.approx(2 * (1 + 8) / 2**8)  # 0 or 1 of 8 coins, either way
    assert found["difference"] == pytest.approx(0.3)
    assert found["verdict"].startswith("these photos do not show that either is better")
    low, high = found["difference_ci95"]
    assert low < 0.3 < high


def test_the_interval_of_a_difference_by_hand() -> None:
    """Bonett and Price's of 21 pairs, of which 1 and 7 differ, and of 10 that are alike."""
    assert paired.interval(7, 1, 21) == pytest.approx((-0.508, -0.013), abs=5e-4)
    assert paired.interval(1, 7, 21) == pytest.approx((0.013, 0.508), abs=5e-4)
    assert paired.interval(0, 0, 10) == pytest.approx((-1.96 * 2**0.5 / 12, 1.96 * 2**0.5 / 12))
    assert paired.interval(0, 36, 36)[1] == 1.0
    assert paired.interval(36, 0, 36)[0] == -1.0


@pytest.mark.parametrize(("first", "second"), [(0.005, 0.005), (0.02, 0.0), (0.05, 0.1), (0.1, 0.1), (0.02, 0.4)])
def test_the_interval_holds_the_difference_as_often_as_it_says(first: float, second: float) -> None:
    """All that 60 photos can show, weighted by how probable it is. The plain normal interval: 70 % for the second."""
    share = [first, second, 1 - first - second]
    held = sum(
        multinomial.pmf([b, c, 60 - b - c], 60, share)
        for b in range(61)
        for c in range(61 - b)
        if paired.interval(b, c, 60)[0] <= second - first <= paired.interval(b, c, 60)[1]
    )
    assert held > 0.935


@pytest.mark.parametrize(("gain", "words"), [(1, "B is really better than A"), (-1, "B is really worse than A")])
def test_a_real_difference_is_said_to_be_one(gain: int, words: str) -> None:
    some, more = right([1] * 5 + [0] * 15), right([1] * 17 + [0] * 3)
    found = paired.compare(*((some, more) if gain > 0 else (more, some)))
    assert found["verdict"].startswith(words)
    assert found["p_value"] < 0.001


def test_the_same_answers() -> None:
    same = right([1, 0, 1] * 20)
    found = paired.compare(same, same)
    assert found["p_value"] == 1.0
    assert found["verdict"].startswith("A and B get the same photos right")
    assert found["verdict"].endswith("10 points with 60 photos")
    alike = paired.compare(right([1] * 6), right([1] * 6))
    assert alike["verdict"].endswith("100 points with 6 photos")
    assert found["difference_ci95"] == [-found["difference_ci95"][1], pytest.approx(0.0447, abs=1e-4)]


def test_the_least_number_of_photos_that_can_tell() -> None:
    assert paired.compare(right([0]), right([1]))["verdict"].startswith("1 photo is too few to tell")
    few = paired.compare(right([0] * 5), right([1] * 5))
    assert few["p_value"] > paired.SIGNIFICANT
    assert few["verdict"].startswith("5 photos are too few to tell")
    assert paired.compare(right([0] * 6), right([1] * 6))["verdict"].startswith("B is really better than A")


def test_other_photos_are_refused() -> None:
    with pytest.raises(HandlensError, match="same photos and classes only"):
        paired.compare(right([1, 0]), right([1, 0, 1]))


def test_the_threshold_by_hand() -> None:
    own = np.linspace(0.05, 0.95, 19)
    known = Scores(
        probabilities=np.stack([own, 1 - own], 1), labels=np.zeros(19, int), classes=("a", "b"),
        paths=tuple(map(str, range(19))),
    )  # fmt: skip
    # of 20 with one to come, two may fall short at 90 % and one at 95 %: so many are at most as probable
    assert [conformal.threshold(known, coverage) for coverage in (0.9, 0.95)] == [own[1], own[0]]


def test_photos_of_one_scene_decide_once() -> None:
    first, second = right([1] * 8 + [0] * 40), right([1] * 48)
    assert "really better" in paired.compare(first, second)["verdict"]
    scenes = np.arange(48) // 8
    found = paired.compare(*(dataclasses.replace(one, scenes=scenes) for one in (first, second)))
    assert "do not show that either is better: of the photos that only one gets right, B has 5" in found["verdict"]
    assert found["p_value"] == pytest.approx(2 / 2**5)
    assert (found["only_second"], found["num_photos"], found["effective_num_photos"]) == (40, 48, 6)
    assert found["difference"] == pytest.approx(40 / 48)
    assert found["difference_ci95"] == pytest.approx(paired.interval(0, 5, 6))
    assert found["repetition"].startswith("42 of the 48")
    # A scene is for the one that gets more of it right, and for neither where both get as many.
    split = right([1, 1, 0, 0] * 2 + [0] * 40), right([0, 0, 1, 1, 0, 0, 1, 0] + [0] * 40)
    found = paired.compare(*(dataclasses.replace(one, scenes=np.arange(48) // 4) for one in split))
    assert "B has 0 and A 1" in found["verdict"]


def test_an_interval_that_says_otherwise_than_the_test_is_told_of() -> None:
    found = paired.compare(right([0] * 5 + [1] * 15), right([1] * 20))
    assert found["p_value"] > 0.05 and found["difference_ci95"][0] > 0
    assert "the interval is approximate, and the test decides" in found["verdict"]
    found = paired.compare(right([0] * 3 + [1] * 17), right([1] * 20))
    assert found["difference_ci95"][0] < 0 and "approximate" not in found["verdict"]
