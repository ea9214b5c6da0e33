"""Figures against their definitions, written out anew, and against published intervals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from handlens.errors import HandlensError
from handlens.evaluate import Scores
from handlens.evaluate.metrics import students, wilson


def scores(probabilities: object, labels: object, classes: int | tuple[str, ...] = 3) -> Scores:
    names = tuple(f"class {index}" for index in range(classes)) if isinstance(classes, int) else classes
    table = np.asarray(probabilities, dtype=np.float32)
    return Scores(
        probabilities=table,
        labels=np.asarray(labels),
        classes=names,
        paths=tuple(f"{i}.jpg" for i in range(len(table))),
    )


def sure(predicted: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted] * 0.8 + 0.2 / classes


def test_by_hand() -> None:
    found = scores(sure([0, 0, 1, 1, 1, 0]), [0, 0, 1, 1, 0, 1])
    assert found.top1 == pytest.approx(4 / 6)
    assert found.confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    first, second, third = found.per_class
    assert first == {
        "name": "class 0", "precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3), "support": 3,
        "precision_ci95": list(wilson(2, 3)), "recall_ci95": list(wilson(2, 3)),
    }  # fmt: skip
    assert second["support"] == 3
    assert third == {
        "name": "class 2", "precision": None, "recall": None, "f1": None, "support": 0, "precision_ci95": None,
        "recall_ci95": None,
    }  # fmt: skip
    own = 0.8 + 0.2 / 3
    assert found.loss == pytest.approx(-(4 * math.log(own) + 2 * math.log(0.2 / 3)) / 6, rel=1e-5)


def test_a_figure_is_none_only_where_nothing_defines_it() -> None:
    unseen, unsaid = scores(sure([0, 2]), [0, 0]).per_class[2], scores(sure([0, 0]), [0, 2]).per_class[2]
    figures = ("precision", "recall", "f1", "support")
    assert [unseen[name] for name in figures] == [0.0, None, 0.0, 0]  # no photo, and one that was taken for it
    assert [unsaid[name] for name in figures] == [None, 0.0, 0.0, 1]  # a photo, which was taken for another
    assert (unseen["recall_ci95"], unsaid["precision_ci95"]) == (None, None)
    assert unseen["precision_ci95"] == list(wilson(0, 1)) == unsaid["recall_ci95"]


def test_random_answers_against_sums_written_out() -> None:
    random = np.random.default_rng(0)
    table, labels = random.dirichlet(np.ones(8), 300), random.integers(0, 8, 300)
    found = scores(table, labels, 8)
    predicted = [max(range(8), key=lambda k: row[k]) for row in found.probabilities]
    assert found.top1 == sum(p == t for p, t in zip(predicted, labels, strict=True)) / 300
    assert (
        found.top5
        == sum(sum(p > row[t] for p in row) < 5 for row, t in zip(found.probabilities, labels, strict=True)) / 300
    )
    for k, line in enumerate(found.per_class):
        hit = sum(p == t == k for p, t in zip(predicted, labels, strict=True))
        assert line["precision"] == pytest.approx(hit / predicted.count(k))
        assert line["recall"] == pytest.approx(hit / (labels == k).sum())
        assert line["f1"] == pytest.approx(2 * hit / (predicted.count(k) + (labels == k).sum()))
    figures = precision_recall_fscore_support(labels, found.predicted, labels=range(8))
    assert [[line[name] for line in found.per_class] for name in ("precision", "recall", "f1", "support")] == [
        pytest.approx(figure) for figure in figures
    ]
    assert found.confusion.sum() == 300
    assert found.confusion.trace() == round(300 * found.top1)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, Table I, method 3 (score without continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilsons_interval_of_trials_that_succeed_in_part() -> None:
    """The two ends are the shares at whose own spread the observed one is 1.96 standard deviations away."""
    for end in wilson(8.25, 12):
        assert abs(8.25 / 12 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 12), rel=1e-6)
    assert wilson(0, 12)[0] == 0 and wilson(12.0, 12)[1] == 1


def test_intervals_of_top1_and_top5() -> None:
    found = scores(sure([0, 1, 2, 3, 4, 5, 5], 6), [0, 1, 2, 3, 4, 5, 4], 6)
    assert found.top1_ci95 == wilson(6, 7)
    assert found.top5_ci95 == wilson(round(7 * (found.top5 or 0)), 7)


@pytest.mark.parametrize(("classes", "given"), [(2, False), (5, False), (6, True)])
def test_top5_only_for_more_than_five_classes(classes: int, given: bool) -> None:
    found = scores(sure([0, 1], classes), [0, 1], classes)
    assert (found.top5 is not None) == (found.top5_ci95 is not None) == given


def test_equal_probabilities_do_not_pass_for_right() -> None:
    found = scores(np.full((8, 8), 1 / 8), range(8), 8)
    assert found.top1 == 1 / 8
    assert found.top5 == 5 / 8


def test_what_is_mixed_up_most_comes_first() -> None:
    found = scores(sure([1, 1, 1, 0, 2, 2, 2]), [0, 0, 1, 2, 2, 1, 1]).confusions(2)
    assert [(line["class"], line["taken_for"], line["num_photos"]) for line in found] == [
        ("class 0", "class 1", 2), ("class 1", "class 2", 2),
    ]  # fmt: skip
    assert found[1]["share"] == 2 / 3
    assert scores(sure([0, 1]), [0, 1]).confusions() == []


def test_mistakes_are_sorted_by_confidence() -> None:
    table = [[0.6, 0.4, 0], [0.9, 0.1, 0], [0.5, 0.3, 0.2], [0.99, 0.01, 0]]
    assert scores(table, [1, 1, 2, 0]).mistakes().tolist() == [1, 0, 2]


def test_to_dict_is_json_with_what_scripts_rely_on() -> None:
    found = scores(sure([0, 1, 1]), [0, 1, 0], ("<script>", "🌼", "花朵")).to_dict()
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read == found
    assert {"top1", "top1_ci95", "top5", "num_photos", "per_class", "classes", "confusion"} <= set(read)
    assert 0 <= read["top1"] <= 1
    assert read["top5"] is None
    assert read["num_photos"] == 3
    assert list(read["per_class"]) == read["classes"] == ["<script>", "🌼", "花朵"]
    assert set(read["per_class"]["🌼"]) == {
        "precision", "recall", "f1", "support", "precision_ci95", "recall_ci95",
    }  # fmt: skip
    assert read["confusions"] == [
        {"class": "<script>", "taken_for": "🌼", "num_photos": 1, "share": 0.5, "share_ci95": list(wilson(1, 2))}
    ]
    assert {"ece", "ece_ci95", "ece_by_chance", "brier", "bins"} == set(read["calibration"])
    assert read["per_class"]["花朵"]["recall"] is None


def test_students_interval_by_hand() -> None:
    assert students([0.70, 0.80, 0.75]) == pytest.approx((0.6258, 0.8742), abs=1e-4)  # 4.3027 * 0.05 / sqrt(3)
    assert students([0.95, 1.0]) == (pytest.approx(0.6573, abs=1e-4), 1.0)


@pytest.mark.parametrize(
    ("table", "labels", "sentence"),
    [
        (np.empty((0, 3)), [], "no photo to evaluate on"),
        (np.full((2, 4), 0.25), [0, 1], "4\\) for 2 photos and 3 classes"),
        (np.full((2, 3), np.nan), [0, 1], "not finite"),
    ],
)
def test_refusals(table: np.ndarray, labels: list[int], sentence: str) -> None:
    with pytest.raises(HandlensError, match=sentence):
        scores(table, labels)


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 292), (276, 292), (2, 3)])
def test_wilsons_interval_is_scipys(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_is_of_the_photos_class() -> None:
    (line,) = scores(sure([1, 1, 1, 1]), [0, 0, 1, 1]).confusions()
    assert (line["share"], line["share_ci95"]) == (1.0, list(wilson(2, 2)))


def test_photos_of_one_scene_count_once_in_every_interval() -> None:
    """Six photos eight times each tell no more than the six; by default each photo is another."""
    predicted, labels = [0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 5]
    once = scores(sure(predicted, 6), labels, 6)
    often = scores(sure(predicted * 8, 6), labels * 8, 6)
    assert often.effective_num_photos == 48 and often.top1_ci95 == wilson(40, 48) and not often.repetition
    often = dataclasses.replace(often, scenes=np.array([*range(6)] * 8))
    assert often.effective_num_photos == 6 and once.effective_num_photos == 6
    assert often.top1_ci95 == pytest.approx(once.top1_ci95)
    assert often.top5_ci95 == pytest.approx(once.top5_ci95)
    for many, one in zip(often.per_class, once.per_class, strict=True):
        assert many["support"] == 8 * one["support"]
        for name in ("precision_ci95", "recall_ci95"):
            assert many[name] == (one[name] if one[name] is None else pytest.approx(one[name]))
    assert often.confusions()[0]["share_ci95"] == pytest.approx(once.confusions()[0]["share_ci95"])
    assert often.to_dict()["effective_num_photos"] == 6
    assert often.repetition.startswith("42 of the 48 photos show again, or nearly, what another one does")


def test_one_long_scene_weighs_as_much_as_it_has_in_the_share() -> None:
    """Kish: a hundred frames of one scene and a hundred other photos, of which half the share hangs on one answer."""
    found = dataclasses.replace(scores(sure([0] * 200), [0] * 200), scenes=np.array([0] * 100 + [*range(1, 101)]))
    assert found.effective_num_photos == pytest.approx(200**2 / (100**2 + 100))
    assert found.top1_ci95 == wilson(found.effective_num_photos, found.effective_num_photos)
    with pytest.raises(HandlensError, match=r"scenes of shape \(2,\)"):
        dataclasses.replace(found, scenes=np.zeros(2, np.int64))
