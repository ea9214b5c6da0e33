"""How accuracy grows with the number of photos."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlens import files, nets
from handlens.errors import HandlensError
from handlens.experiments import learning_curve
from handlens.experiments.learning_curve import Embedded
from handlens.photos import Photos
from handlens.preprocess import Preprocess
from handlens.train import recipe, start
from handlens.train.data import Data
from handlens.train.features import weights_hash

CLASSES = ("a", "b", "c")


def clouds(spread: float) -> Embedded:
    """Features of three classes as clouds around three points: 40, 6 and 30 training photos."""
    net = nets.create("mobilenet_v2", 3, width=0.1)
    random = np.random.default_rng(0)
    middles = random.normal(size=(3, net.num_features)).astype(np.float32)
    splits, vectors = {}, {}
    for name, counts, views in (("train", (40, 6, 30), 3), ("validation", (5, 2, 4), 1), ("test", (20, 20, 20), 1)):
        labels = np.repeat(np.arange(3), counts)
        splits[name] = Photos(Path(), tuple(map(str, range(len(labels)))), labels, CLASSES)
        noise = random.normal(size=(views, len(labels), net.num_features))
        vectors[name] = (middles[labels] + spread * noise).astype(np.float32)
    begun = start.Start(net, {}, Preprocess(), "")
    given = {"net": "mobilenet_v2", "weights": "none.pth", "mode": "head", "photos": "clouds"}
    return Embedded(begun, Data(splits, {}, {}, ()), given, vectors)


def test_a_curve_rises_and_says_what_more_would_bring() -> None:
    seen: list[tuple[int, int]] = []
    result = learning_curve.measure(clouds(7.0), (2, 10, 99), 2, lambda done, total: seen.append((done, total)))
    few, more, everything = result.tables["learning curve"]
    assert seen[-1] == (6, 6)
    assert few["photos_per_class"] == 2
    assert more["photos_per_class"] == pytest.approx((10 + 6 + 10) / 3, abs=0.1)  # a class gives what it has
    assert everything["photos_per_class"] == pytest.approx(76 / 3, abs=0.1)
    assert result.numbers["sizes_left_out"] == [99]
    assert learning_curve.measure(clouds(7.0), (2, 25, 30, 35), 1).numbers["sizes_left_out"] == [30, 35]
    for name in ("head", "probe"):
        assert everything[f"{name}_top1"] > few[f"{name}_top1"] + 0.05
        low, high = everything[f"{name}_ci95"]
        assert low < everything[f"{name}_top1"] < high
        assert np.shape(result.numbers["top1"][name]) == (3, 2)
    forecast = result.numbers["forecasts"]["head"]
    assert forecast["gain"] > 0 and forecast["photos_per_class"] == 51
    assert f"{100 * forecast['gain']:+.1f} points" in result.finding
    assert Image.open(io.BytesIO(result.png())).width > 500


def test_it_repeats() -> None:
    first, second = (learning_curve.measure(clouds(7.0), (2,), 1) for _ in range(2))
    assert first.tables == second.tables
    assert first.tables["learning curve"][0]["head_sd"] is None


def test_several_modes_and_going_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, int | None]] = []

    def trained(embedded: Embedded, size: int | None, seed: int, given: dict[str, Any]) -> tuple[np.ndarray, None]:
        asked.append((given["mode"], size))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return np.arange(60) < (40 if given["mode"] == "full" else 20), None

    monkeypatch.setattr(learning_curve, "trained", trained)
    photos, stored = clouds(7.0), tmp_path / "answers.json"
    with pytest.raises(KeyboardInterrupt):
        learning_curve.measure(photos, (2,), 2, modes=("last", "full"), kept_in=stored)
    result = learning_curve.measure(photos, (2,), 2, modes=("last", "full"), kept_in=stored)
    order = [(mode, size) for size in (2, None) for _ in range(2) for mode in ("last", "full")]
    assert asked == [*order[:5], *order[4:]]
    assert set(result.numbers["forecasts"]) == {"last", "full"}
    row = result.tables["learning curve"][0]
    assert (row["last_top1"], row["full_top1"]) == pytest.approx((1 / 3, 2 / 3))
    for told in ("last is right about 33.3%", "full is right about 66.7%"):  # the test photos choose none
        assert f"mode {told} of 60 test photos" in result.finding
    other = dataclasses.replace(photos, given={**photos.given, "net": "mobilenet_v1"})
    before = stored.read_bytes()
    with pytest.raises(HandlensError, match="is of other photos"):  # whose answers do not count, and are not lost
        learning_curve.measure(other, (2,), 1, modes=("full",), kept_in=stored)
    mended = dict(photos.data.splits)
    mended["train"] = dataclasses.replace(mended["train"], labels=np.roll(mended["train"].labels, 1))
    relabelled = dataclasses.replace(photos, data=dataclasses.replace(photos.data, splits=mended))
    with pytest.raises(HandlensError, match="is of other photos or labels"):
        learning_curve.measure(relabelled, (2,), 1, modes=("full",), kept_in=stored)
    assert stored.read_bytes() == before and len(asked) == 9


def test_photos_and_weights_are_known_by_what_they_hold(
    tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nets.create("mobilenet_v3_small_035")
    monkeypatch.setattr(learning_curve.Frozen, "features", lambda *_, **__: np.zeros((1, 1, 1), np.float32))
    monkeypatch.chdir(tiny_photos.parent)
    for name in ("one.pth", "same.pth", "other.pth"):
        if name == "other.pth":
            net.get_parameter("classifier.0.bias").data += 1
        torch.save(net.state_dict(), tmp_path / name)

    def key(photos: object, weights: str = "one.pth", seed: int = 0) -> str:
        embedded = learning_curve.embed(str(photos), "mobilenet_v3_small_035", str(tmp_path / weights), seed)
        return learning_curve._Answers(None, embedded).of

    first = key(tiny_photos)
    for same in (f"{tiny_photos}/", tiny_photos.name, f"./{tiny_photos.name}/"):
        assert key(same) == first
    assert key(tiny_photos, "same.pth") == first
    assert first not in (key(tiny_photos, "other.pth"), key(tiny_photos, seed=1))


def test_a_file_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    """They counted the names of photos and weights in, and are for the same command only."""
    photos, stored = clouds(7.0), tmp_path / "answers.json"
    digest = hashlib.sha256(json.dumps([photos.given, weights_hash(photos.begun.net)]).encode())
    for part in photos.data.splits.values():
        rows = sorted(zip(part.paths, [None] * len(part), part.labels.tolist(), strict=True))
        digest.update(json.dumps([rows, part.classes]).encode())
    stored.write_text(json.dumps({"of": digest.hexdigest(), "right": {"head 2 0": "1" * 60}}))
    assert learning_curve._Answers(stored, photos).known == {"head 2 0": "1" * 60}
    renamed = dataclasses.replace(photos, given={**photos.given, "photos": "others"})
    with pytest.raises(HandlensError, match="is of other photos"):
        learning_curve._Answers(stored, renamed)


def test_smaller_draws_are_among_the_greater() -> None:
    labels = np.repeat(np.arange(3), (40, 3, 30))
    small, great = (set(learning_curve.draw(labels, size, 1).tolist()) for size in (2, 8))
    assert small < great
    assert np.bincount(labels[list(great)]).tolist() == [8, 3, 8]
    assert small != set(learning_curve.draw(labels, 2, 2).tolist())
    assert len(learning_curve.draw(labels, None, 0)) == 73


def test_a_power_law_is_found_again() -> None:
    used = np.array([5.0, 10.0, 20.0, 50.0])
    top1 = 1 - 0.8 * used**-0.5
    found = learning_curve._forecast(used, top1, np.stack([top1, top1]), 1000)
    assert found is not None
    assert found["exponent"] == pytest.approx(0.5)
    assert found["gain"] == pytest.approx(0.8 * (50**-0.5 - 100**-0.5))
    assert found["gain_ci95"] == pytest.approx([found["gain"]] * 2)
    assert learning_curve._forecast(used[:1], top1[:1], top1[None, :1], 1000) is None
    perfect = learning_curve._forecast(used, np.ones(4), np.ones((2, 4)), 1000)
    assert perfect and perfect["gain"] == pytest.approx(0)


@pytest.mark.parametrize(("top1", "num_test", "guess"), [
    (65 / 66, 33, "By 1 mistake on 33 test photos all of this is a guess"),  # half a mistake, of two draws
    (8 / 9, 9, "By 1 mistake on 9 test photos all of this is a guess"),
    (1.0, 30, "By 0 mistakes on 30 test photos all of this is a guess"),
    (0.9, 50, ""),
])  # fmt: skip
def test_few_mistakes_are_said_to_tell_nothing(top1: float, num_test: int, guess: str) -> None:
    row = {"photos_per_class": 4.0, "head_top1": top1, "head_ci95": [top1, top1], "head_less_probe_ci95": [0.0, 0.0]}
    said = learning_curve._words([row], {"head": None}, num_test, 5)
    assert guess in said and ("is a guess" in said) == bool(guess)


def test_nothing_has_no_sign_of_a_loss() -> None:
    row = {"photos_per_class": 4.0, "head_top1": 0.9, "head_ci95": [0.8, 0.95], "head_less_probe": -0.0001,
           "head_less_probe_ci95": [-0.0002, -0.0001]}  # fmt: skip
    forecast = {"photos_per_class": 8, "gain": -0.0001, "gain_ci95": [-0.0002, 0.0], "sizes": 4}
    said = learning_curve._words([row], {"head": forecast}, 50, 3)
    assert "about +0.0 points (95 % interval +0.0 to +0.0)" in said and "at 4 (+0.0 points)" in said


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_few_draws_compare_no_modes(num_seeds: int) -> None:
    row = {"photos_per_class": 4.0, "head_top1": 0.9, "head_ci95": [0.8, 0.95], "head_less_probe": 0.1,
           "head_less_probe_ci95": [0.05, 0.15]}  # fmt: skip
    said = learning_curve._words([row], {"head": None}, 50, num_seeds)
    assert ("better than a linear probe" in said) == (num_seeds == 3)
    assert ("little of the luck of the draw" in said) == (num_seeds < 3)


@pytest.fixture
def curve(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return functools.partial(command, "learning-curve")


def test_the_command(curve: Any, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = "mobilenet_v3_small_035"
    torch.save(nets.create(net).state_dict(), tmp_path / "w.pth")
    given = ["--net", net, "--weights", tmp_path / "w.pth", "--seeds", 1, "--out", tmp_path / "curve"]
    code, out, err = curve(tiny_photos, *given, "--per-class", "3,500", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert [row["photos_per_class"] for row in facts["tables"]["learning curve"]] == [3, 10]
    assert facts["data"]["split"] == {"train": 30, "validation": 3, "test": 3}
    assert "left out: 500 photos a class" in err
    assert facts == json.loads((tmp_path / "curve" / "numbers.json").read_text("utf-8")) | {"out": facts["out"]}
    assert (tmp_path / "curve" / "figure.png").is_file()
    kept = json.loads((tmp_path / "curve" / "answers.json").read_text("utf-8"))
    assert set(kept) == {"of", "right"} and set(kept["right"]) == {"head 3 0", "head all 0"}
    made = {path.name for path in (tmp_path / "curve").iterdir()}
    assert made == {"figure.png", "numbers.json", "answers.json", files.MADE}
    code, out, err = curve(tiny_photos, *given[:-1], tiny_photos / "花朵")
    assert (code, out) == (2, "") and "花朵 has photos in it, such as 00.jpg" in err
    quick = recipe.choose
    monkeypatch.setattr(learning_curve, "choose", lambda counts, given: quick(counts, {**given, "epochs": 1}))
    few = ["--per-class", "3", "--mode", "last", "--mode", "full"]
    code, out, err = curve(tiny_photos, *given, *few)
    assert code == 0, err
    assert "linear probe" in out and "of 3 test photos" in out and "full less probe" in " ".join(out.split())
    stored = json.loads((tmp_path / "curve" / "answers.json").read_text("utf-8"))["right"]
    assert {len(stored[f"{mode} {size} 0"]) for mode in ("last", "full") for size in ("3", "all")} == {3}
    measure = learning_curve.measure

    def no_better(*given: Any) -> Any:
        result = measure(*given)
        for row in result.tables["learning curve"]:
            row |= {f"{mode}_less_probe": -0.0001 for mode in ("last", "full")}
        return result

    monkeypatch.setattr(learning_curve, "measure", no_better)
    code, out, err = curve(tiny_photos, *given, *few)
    assert code == 0 and "+0.0 (" in out and "-0.0" not in out, err


def test_a_place_that_cannot_be_written_is_told_first(
    curve: Any, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_curve, "embed", lambda *_: pytest.fail("looked at photos"))
    (tmp_path / "file").write_bytes(b"")
    code, out, err = curve(tiny_photos, "--out", tmp_path / "file")
    assert (code, out) == (2, "")
    assert "file is no folder" in err


def test_answers_of_others_are_refused_before_features_are_computed(
    curve: Any, tiny_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = "mobilenet_v3_small_035"
    torch.save(nets.create(net).state_dict(), tmp_path / "w.pth")
    (tmp_path / "answers.json").write_text('{"of": "others", "right": {}}')
    monkeypatch.setattr(learning_curve.Frozen, "features", lambda *_, **__: pytest.fail("computed features"))
    code, out, err = curve(tiny_photos, "--net", net, "--weights", tmp_path / "w.pth", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "answers.json is of other photos or labels, another split or another network" in " ".join(err.split())


def test_a_mode_that_is_none(curve: Any, tiny_photos: Path) -> None:
    code, out, err = curve(tiny_photos, "--mode", "head", "--mode", "scratch")
    assert (code, out) == (2, "")
    assert "--mode is 'scratch', expected head, last or full" in err


@pytest.mark.parametrize("sizes", ["", "5,x", "0", "-3"])
def test_sizes_that_are_none(curve: Any, tiny_photos: Path, sizes: str) -> None:
    code, out, err = curve(tiny_photos, "--per-class", sizes)
    assert (code, out) == (2, "")
    assert "--per-class" in err and err.count("\n") == 1
