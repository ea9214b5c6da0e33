"""A new classifier on frozen features."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from handlens import cores, nets, photos
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.preprocess import Preprocess
from handlens.train import Recipe, modes, start, trial
from handlens.train.features import Frozen
from handlens.train.head import epoch_s, fit_head, seconds_of_head

Side = tuple[np.ndarray, np.ndarray]
RECIPE = Recipe(
    mode="head", epochs=30, batch_size=16, lr=0.02, warmup_epochs=1.0, weight_decay=0.01, dropout=0.1, ema_decay=0.0
)


def small(hidden: int = 0) -> Net:
    torch.manual_seed(0)
    net = nets.create("mobilenet_v2", 3, width=0.1)
    return nets.replace_head(net, 3, hidden=hidden) if hidden else net


def side(count: int, views: int = 2, seed: int = 0, width: int = 1280) -> Side:
    """Features of three classes, a tenth of them telling, on scales and offsets that differ by far."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    told = np.zeros((3, width))
    told[:, : width // 10] = np.random.default_rng(9).normal(size=(3, width // 10))
    vectors = told[labels] + 2 * random.normal(size=(views, count, width))
    scale, offset = np.logspace(-2, 2, width), np.linspace(-50, 50, width)
    return (vectors * scale + offset).astype(np.float32), labels.astype(np.int64)


def test_it_learns_whatever_the_scale_of_the_features() -> None:
    _, log = fit_head(small(), 1, side(120), side(60, 1, seed=1), RECIPE)
    assert log[-1]["train_top1"] > 0.95
    assert log[-1]["validation_top1"] > 0.6
    assert log[0]["train_loss"] > log[-1]["train_loss"]
    assert [row["epoch"] for row in log] == list(range(1, 31))
    assert log[-1]["lr"] == pytest.approx(RECIPE.lr * 0.01)


@pytest.mark.parametrize(("dropout", "expected"), [(0.5, 0.2), (0.1, 0.1), (0.0, 0.0)])
def test_the_extra_layer_drops_no_more_than_the_recipe_says(dropout: float, expected: float) -> None:
    begun = start.Start(small(), {}, Preprocess(), "")
    net = modes.with_hidden(Recipe(mode="head", head_hidden=8, dropout=dropout), begun).net
    assert [layer.p for layer in net.classifier if isinstance(layer, torch.nn.Dropout)][-1] == expected


def test_each_epoch_tells_its_photos_a_second() -> None:
    _, log = fit_head(small(), 1, side(30), side(15, 1), RECIPE)
    assert all(row["seconds"] > 0 and row["photos_per_s"] == pytest.approx(30 / row["seconds"]) for row in log)


@pytest.mark.parametrize("hidden", [0, 24])
def test_the_finished_network_gives_the_trained_heads_logits(hidden: int) -> None:
    """Training sees standardised features, the network gives them as they are: the scale is in its first layer."""
    net, train, validation = small(hidden), side(60), side(30, 1, seed=1)
    seen: list[torch.Tensor] = []
    net.classifier[-1].register_forward_hook(lambda module, inputs, logits: seen.append(logits.detach().clone()))
    recipe = Recipe(**{**vars(RECIPE), "epochs": 1, "warmup_epochs": 0.0, "lr": 0.1})
    finished, log = fit_head(net, 1, train, validation, recipe)
    judged = seen[-1]  # the last call in training is on the validation features
    with torch.no_grad():
        logits = finished.classifier[1:](torch.from_numpy(validation[0][0]))
    assert judged.shape == logits.shape == (30, 3)
    assert judged.std() > 0.1
    assert torch.allclose(logits, judged, rtol=1e-3, atol=5e-3)  # of float32, where features differ by 10,000 times
    assert log[0]["validation_top1"] == pytest.approx((logits.argmax(1).numpy() == validation[1]).mean())


def test_a_hidden_layer_is_trained_and_the_backbone_is_not() -> None:
    net = small(hidden=16)
    before = copy.deepcopy(net)
    after, _ = fit_head(net, 1, side(30), side(15, 1), Recipe(**{**vars(RECIPE), "epochs": 2, "warmup_epochs": 0.0}))
    assert isinstance(after.classifier[1], nn.Linear)
    changed = {key for key, value in before.state_dict().items() if not torch.equal(value, after.state_dict()[key])}
    assert changed == {f"classifier.{layer}.{kind}" for layer in (1, 4) for kind in ("weight", "bias")}
    assert not after.training


def test_the_same_seed_gives_the_same_head() -> None:
    results = []
    for seed in (1, 1, 2):
        torch.rand(len(results))
        net, _ = fit_head(small(), 1, side(30), side(15, 1), Recipe(**{**vars(RECIPE), "epochs": 3, "seed": seed}))
        results.append(net.classifier[-1].weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_rare_classes_count_more_when_weighed() -> None:
    vectors, labels = side(90)
    kept = np.flatnonzero((labels != 2) | (np.arange(90) < 9))
    rare = (vectors[:, kept], labels[kept])
    (others,), wanted = side(300, 1, seed=5)
    told = {}
    for balance in ("none", "weights"):
        net, _ = fit_head(small(), 1, rare, side(15, 1), Recipe(**{**vars(RECIPE), "balance": balance}))
        with torch.no_grad():
            told[balance] = (net.classifier[1:](torch.from_numpy(others)).argmax(1).numpy() == 2)[wanted == 2].mean()
    assert told["weights"] > told["none"] + 0.1


def test_patience_ends_it() -> None:
    recipe = Recipe(**{**vars(RECIPE), "epochs": 100, "patience_epochs": 3})
    calls: list[int] = []
    _, log = fit_head(small(), 1, side(60), side(30, 1, seed=1), recipe, lambda log: calls.append(len(log)))
    assert len(log) < 60
    assert calls == list(range(1, len(log) + 1))
    best = max(row["validation_top1"] for row in log)
    first_best = next(row["epoch"] for row in log if row["validation_top1"] == best)
    assert log[-1]["epoch"] == first_best + 3


def test_a_loss_that_is_no_number_is_said() -> None:
    vectors, labels = side(30)
    vectors[0, 3, 5] = math.nan
    with pytest.raises(HandlensError, match="the loss became nan in epoch 1; remove this run, or choose another --out"):
        fit_head(small(), 1, (vectors, labels), side(15, 1), RECIPE)


def test_a_continued_head_begins_where_it_was() -> None:
    """What it has learned is for features as they come, not standardised ones."""
    train, validation = side(60), side(30, 1, seed=1)
    net, _ = fit_head(small(), 1, train, validation, RECIPE)
    with torch.no_grad():
        before = net.classifier[1:](torch.from_numpy(validation[0][0]))
    barely: dict[str, Any] = {**vars(RECIPE), "continue_run": "run", "epochs": 1, "lr": 1e-9, "weight_decay": 0.0}
    net, _ = fit_head(net, 1, train, validation, Recipe(**barely))
    with torch.no_grad():
        after = net.classifier[1:](torch.from_numpy(validation[0][0]))
    assert torch.allclose(after, before, rtol=1e-3, atol=1e-3)


def test_the_time_of_an_epoch_is_that_of_its_steps() -> None:
    net, recipe = small(hidden=64), Recipe(**{**vars(RECIPE), "balance": "weights"})
    assert 0 < epoch_s(net, 1, 16, recipe) < 1
    assert epoch_s(net, 1, 160_000, recipe) > 100 * epoch_s(net, 1, 160, recipe)


def test_the_time_told_before_counts_decoding_and_what_comes_after(
    tiny_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = photos.scan(tiny_photos)
    splits = {"train": found, "validation": found.select([]), "test": found.select([])}
    frozen = Frozen(small(), Preprocess(image_px=32, resize_px=36))

    def seconds(step_s: float, views: int = 2, lacking: int = 36) -> float:
        recipe = Recipe(mode="head", batch_size=16, head_views=views)
        monkeypatch.setattr(trial, "pass_s", lambda *_: step_s)
        return seconds_of_head(recipe, splits, frozen, {"train": lacking, "validation": 0, "test": 0})

    assert seconds(1e9, lacking=0) == 4  # all features are in the cache
    assert seconds(1.6, lacking=18) - seconds(1e-4, lacking=18) == pytest.approx(18 * 3 * 0.1, rel=0.05)
    assert 3 < seconds(1e-4) < 6  # nothing to compute: the report and all that is left
    assert seconds(1.6) - seconds(1e-4) == pytest.approx(36 * 3 * 0.1, rel=0.05)  # by torch: few images
    by_torch = 36 * 10 * 0.1 * torch.get_num_threads() / cores.available()
    assert seconds(1.6, views=9) < 4 + by_torch  # by onnxruntime: many
    load = Preprocess.load

    def slow(*arguments: Any) -> np.ndarray:
        time.sleep(0.2)
        return load(*arguments)

    monkeypatch.setattr(Preprocess, "load", slow)
    assert seconds(1e-4) > 3 + 36 * 0.2 / cores.available()
