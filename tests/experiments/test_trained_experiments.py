"""The experiments that train: on tiny photos, for an epoch, their numbers and what they are made of."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from handlens import cost, experiments, nets, photos
from handlens.errors import HandlensError
from handlens.experiments import linear_bottleneck, normalisation, small
from handlens.preprocess import NORMALISATIONS, Preprocess

TINY: dict[str, dict[str, Any]] = {
    "linear-bottleneck": {"draws": 1, "image_px": 32},
    "residual": {"image_px": 16},
    "batch-norm": {"batch_sizes": (2, 8), "image_px": 16},
    "multipliers": {"widths": (0.25,), "sizes_px": (32,)},
    "normalisation": {"image_px": 16},
}
Ran = Callable[[str], experiments.Report]


@pytest.fixture(scope="module")
def ran(tiny_photos: Path) -> Ran:
    @functools.cache
    def run(name: str) -> experiments.Report:
        return experiments.run(name, photos=str(tiny_photos), epochs=1, most=24, **TINY[name])

    return run


def table(report: experiments.Report, number: int = 0) -> list[dict[str, Any]]:
    return list(report.result.tables.values())[number]


@pytest.mark.parametrize("name", TINY)
def test_each_says_what_it_was_done_with(name: str, ran: Ran) -> None:
    report = ran(name)
    facts = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert facts["settings"]["seed"] == 0 and facts["settings"]["epochs"] == 1
    data = facts["data"]
    assert (data["train_photos"], data["test_photos"], data["split_seed"]) == (16, 8, 0)
    assert len(data["classes"]) == 3 and Path(data["photos"]).is_dir()
    assert facts["seconds"] > 0 and facts["cpu_seconds"] > 0 and "threads" in facts["machine"]
    assert report.result.png().startswith(b"\x89PNG")


# ---- each ------------------------------------------------------------------------------------------------------------
def test_linear_bottleneck(ran: Ran) -> None:
    report = ran("linear-bottleneck")
    linear, relu6 = table(report)
    assert (linear["bottleneck"], relu6["bottleneck"]) == ("linear", "ReLU6")
    assert report.result.numbers["gain_of_linear"] == linear["test_top1"] - relu6["test_top1"]
    assert linear["test_top1"] == pytest.approx(sum(linear["test_top1_by_draw"]), abs=1e-4)
    assert linear["train_loss"] != relu6["train_loss"]


def test_the_two_bottlenecks_differ_in_the_activation_alone() -> None:
    linear, relu6 = (linear_bottleneck.build(kind, 3) for kind in ("linear", "ReLU6"))
    assert linear.state_dict().keys() == relu6.state_dict().keys()
    counts = [sum(isinstance(module, nn.ReLU6) for module in net.modules()) for net in (linear, relu6)]
    assert counts[1] - counts[0] == 17  # the bottlenecks of Table 2
    relu6.load_state_dict(linear.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for net, lowest in ((linear, False), (relu6, True)):
        first = next(m for m in net.modules() if isinstance(m, linear_bottleneck.InvertedResidual))
        inputs = torch.randn(2, first.conv[0][0].in_channels, 8, 8)
        assert (float(first.train()(inputs).min().detach()) >= 0) == lowest
    assert not torch.equal(linear(images), relu6(images))


def test_residual(ran: Ran) -> None:
    report = ran("residual")
    rows = {row["net"]: row for row in table(report)}
    assert set(rows) == {"plain20", "plain56", "resnet20", "resnet56"}
    assert rows["plain56"]["weights"] == rows["resnet56"]["weights"] == cost.count_params(nets.create("resnet56", 3))
    for name, log in report.result.numbers["logs"].items():
        assert [row["epoch"] for row in log] == [1]
        assert log[-1]["test_top1"] == rows[name]["test_top1"]
        assert rows[name]["test_top1_low"] <= rows[name]["test_top1"] <= rows[name]["test_top1_high"]


def test_batch_norm(ran: Ran) -> None:
    result = ran("batch-norm").result
    assert max(result.numbers["difference_from_torch"].values()) < 1e-6
    momentum, noise, trained = result.tables.values()
    assert next(row for row in momentum if row["keep"] == 0.9)["torch_momentum"] == 0.1
    assert [row["batch_size"] for row in noise] == [row["batch_size"] for row in trained] == [2, 8]
    assert noise[0]["mean_noise"] / noise[1]["mean_noise"] == pytest.approx(2, rel=0.2)  # the root of 4
    assert trained[1]["lr"] == 4 * trained[0]["lr"]


def test_multipliers(ran: Ran) -> None:
    whole, narrow, coarse = table(ran("multipliers"))
    assert [row["shrunk_by"] for row in (whole, narrow, coarse)] == ["whole", "width", "resolution"]
    assert narrow["image_px"] == whole["image_px"] == 2 * coarse["image_px"]
    assert whole["width"] == coarse["width"] == 2 * narrow["width"]
    assert whole["macs"] == cost.count("mobilenet_v1", 64, num_classes=3, width=0.5).macs
    assert coarse["weights"] == whole["weights"] > 2 * narrow["weights"]
    assert coarse["macs"] / whole["macs"] == pytest.approx(1 / 4, rel=0.01)  # the square of both
    assert 1 / 4 < narrow["macs"] / whole["macs"] < 1 / 3  # but for the first and the depthwise layers


def test_normalisation(ran: Ran) -> None:
    report = ran("normalisation")
    values = {row["normalisation"]: row for row in table(report)}
    assert tuple(values) == NORMALISATIONS
    assert (values["min-max"]["least"], values["min-max"]["greatest"]) == (0, 1)
    assert values["z-score"]["mean"] == pytest.approx(0, abs=1e-5)
    assert values["z-score"]["deviation"] == pytest.approx(1, abs=1e-5)
    assert values["max-abs"]["greatest"] == 1
    assert values["l2"]["length"] == pytest.approx(1, abs=1e-5)
    assert all(values[name]["moved_by_dimming"] < 0.05 for name in NORMALISATIONS[1:])  # but for rounding
    assert values["fixed"]["moved_by_dimming"] > 0.5
    assert len(table(report, 1)) == 2 * len(NORMALISATIONS)
    for histogram in report.result.numbers["histograms"].values():
        assert sum(histogram["counts"]) == 3 * 16 * 16
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1


# ---- what they share -------------------------------------------------------------------------------------------------
def test_a_training_learns_and_is_repeated_by_its_seed(tiny_photos: Path) -> None:
    data = small.load(tiny_photos, 16, seed=0)
    build = functools.partial(normalisation.plain, 3)
    logs = []
    for seed in (0, 0, 1):
        ticks: list[int] = []
        net = small.create(build, seed)
        logs.append(small.fit(net, data, 8, lambda ticks=ticks: ticks.append(1), seed=seed, lr=0.05, batch_size=8))  # type: ignore[misc]
        assert len(ticks) == small.steps(data, 8, 8)
    assert logs[0] == logs[1] != logs[2]
    assert logs[0][-1]["train_loss"] < 0.7 * logs[0][0]["train_loss"]
    assert logs[0][-1]["test_top1"] > 0.6
    assert small.judge(net, data.test, Preprocess(mean=small.HALF, std=small.HALF)) == {
        key: logs[2][-1][key] for key in ("test_loss", "test_top1")
    }


def test_photos_are_cut_by_the_seed_and_no_more_than_asked_for(tiny_photos: Path) -> None:
    whole, again, other = (small.load(tiny_photos, 16, seed) for seed in (0, 0, 1))
    assert len(whole.train) + len(whole.test) == 36 and len(whole.test) == 12
    assert torch.equal(whole.train.images, again.train.images)
    assert not torch.equal(whole.train.images, other.train.images)
    known = {image.numpy().tobytes() for image in whole.train.images}
    assert not known & {image.numpy().tobytes() for image in whole.test.images}
    assert len(small.load(tiny_photos, 16, 0, most=20).train) + len(small.load(tiny_photos, 16, 0, most=20).test) == 20


def test_a_rare_class_is_drawn_too(tiny_photos: Path, tmp_path: Path) -> None:
    rare = tmp_path / "rare"
    shutil.copytree(tiny_photos, rare)
    for photo in sorted((rare / "花朵").iterdir())[3:]:
        photo.unlink()
    for seed in range(4):
        for part in (small.load(rare, 16, seed, most=10).train, small.load(rare, 16, seed, most=3).train):
            assert sorted({*part.labels.tolist()}) == [0, 1, 2]
    assert len(small._some(photos.scan(rare), 10, seed=0)) == 10
    assert len(small._some(photos.scan(rare), 3, seed=0)) == 9
    for name, sides in (("train", range(3, 6)), ("test", range(3))):
        for index in sides:
            (rare / name / "花朵").mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_photos / "花朵" / f"{index:02}.jpg", rare / name / "花朵")
        for other in ("blue sky", "🌿 leaf"):
            shutil.copytree(tiny_photos / other, rare / name / other)
    for own in sorted({path.name for path in tiny_photos.iterdir()}):
        shutil.rmtree(rare / own)
    drawn = small._some(photos.scan(rare), 20, seed=0)
    assert drawn.splits and all(
        sum(side == name and label == 1 for side, label in zip(drawn.splits, drawn.labels, strict=True)) == 3
        for name in ("train", "test")
    )


def test_the_input_is_the_contracts() -> None:
    images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    for name in NORMALISATIONS:
        contract = Preprocess(normalisation=name)
        expected = torch.from_numpy(contract.normalise(images.numpy()))
        torch.testing.assert_close(small.as_input(images, contract), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "size"), [(1, 4), (4, 4), (5, 4), (9, 4), (10, 4), (12, 4)])
def test_no_batch_is_a_single_photo(count: int, size: int) -> None:
    starts = [*small._cuts(count, size), count]
    sizes = [after - before for before, after in itertools.pairwise(starts)]
    assert sum(sizes) == count and max(sizes) <= size + 1
    assert count == 1 or min(sizes) > 1


def test_without_photos_flowers_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small.load(None, 16, seed=3, most=15)
    assert data.num_classes == 5 and "drawn by program" in data.facts["photos"]
    monkeypatch.setattr(small.drawn, "draw", lambda *_, **__: pytest.fail("drawn again"))
    assert len(small.load(None, 16, seed=4, most=15).train) == len(data.train)


def test_photos_that_cannot_be_used(tmp_path: Path, tiny_photos: Path) -> None:
    with pytest.raises(HandlensError):
        small.load(tmp_path / "none", 16, 0)
    same = tmp_path / "same"
    for source in photos.scan(tiny_photos).paths[::12]:
        (same / Path(source).parent).mkdir(parents=True)
        for number in range(3):
            (same / Path(source).parent / f"{number}.jpg").write_bytes((tiny_photos / source).read_bytes())
    with pytest.raises(HandlensError, match="leaves no photo to test on"):
        small.load(same, 16, 0)
