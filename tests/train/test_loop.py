"""The pieces of the loop, each against what it promises."""

from __future__ import annotations

import copy
import errno
import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import nn

from handlens import files, nets, photos
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.preprocess import Normalisation, Preprocess
from handlens.train import Recipe, augment, loop
from handlens.train.pixels import Fixed, Pixels

BN = nn.modules.batchnorm._BatchNorm


def small(**arguments: object) -> Net:
    torch.manual_seed(0)
    return nets.create("mobilenet_v3_small", 3, width=0.35, **arguments)


@pytest.mark.parametrize("batch_size", [2, 3, 8, 32])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 16, 17, 33, 65])
def test_batches_cover_the_order_and_leave_no_photo_alone(count: int, batch_size: int) -> None:
    order = np.random.default_rng(0).permutation(count)
    batches = loop.batches_of(order, batch_size)
    assert np.concatenate(batches).tolist() == order.tolist()
    if count > 1:
        assert min(map(len, batches)) > 1
    assert max(map(len, batches)) <= batch_size + 1
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_an_epochs_order_follows_from_the_seed_and_the_epoch() -> None:
    labels = np.repeat([0, 1, 2], 20)
    order = loop.order_of(labels, Recipe(seed=1), 3)
    assert sorted(order.tolist()) == list(range(60))
    assert order.tolist() == loop.order_of(labels, Recipe(seed=1), 3).tolist()
    assert order.tolist() != loop.order_of(labels, Recipe(seed=2), 3).tolist()
    assert order.tolist() != loop.order_of(labels, Recipe(seed=1), 4).tolist()


def test_sampling_draws_all_classes_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    recipe = Recipe(balance="sampling")
    order = loop.order_of(labels, recipe, 0)
    assert len(order) == 1000
    assert order.tolist() == loop.order_of(labels, recipe, 0).tolist()
    assert (np.abs(np.bincount(labels[order]) / 1000 - 1 / 3) < 0.06).all()


def test_class_weights_even_the_classes_out() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    weights = loop.class_weights_of(labels, 4)
    assert weights.dtype == torch.float32
    each = weights[:3] * torch.tensor([60.0, 30, 10])
    assert torch.allclose(each, torch.tensor(100 / 3))  # each class counts the same
    assert weights[3].item() == pytest.approx(10 * weights[0].item())  # it has no photos
    assert torch.allclose(loop.class_weights_of(labels, 3), torch.tensor([100 / 180, 100 / 90, 100 / 30]))
    assert weights[labels].mean() == pytest.approx(1)


def test_a_stray_photo_weighs_at_most_ten_others() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 40, 4, 1])
    weights = loop.class_weights_of(labels, 4)
    assert torch.allclose(weights / weights[0], torch.tensor([1.0, 1, 10, 10]))
    assert weights[labels].mean() == pytest.approx(1)


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = Recipe(epochs=11, warmup_epochs=1.0)
    assert loop.rate_at(0, recipe) == 1e-3
    assert loop.rate_at(0.25, recipe) == pytest.approx(0.25)
    assert loop.rate_at(1, recipe) == pytest.approx(1)
    assert loop.rate_at(3.5, recipe) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2)
    assert loop.rate_at(6, recipe) == pytest.approx((1 + 0.01) / 2)
    assert loop.rate_at(11, recipe) == pytest.approx(0.01)
    assert loop.rate_at(12, recipe) == pytest.approx(0.01)
    rates = [loop.rate_at(at, recipe) for at in np.linspace(0, 11, 111)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    for edge in (Recipe(epochs=3, warmup_epochs=0.0), Recipe(epochs=3, warmup_epochs=3.0)):
        assert all(0 < loop.rate_at(at, edge) <= 1 for at in np.linspace(0, 3, 31))


@pytest.mark.parametrize("mode", ["full", "last"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_tiny", "googlenet"])
def test_every_trained_parameter_is_in_one_group(name: str, mode: str) -> None:
    name = name if name in nets.names() else next(n for n in nets.names() if n.startswith(name.split("_")[0]))
    recipe = Recipe(mode=mode, lr=0.1, backbone_lr_ratio=0.25, weight_decay=0.05, last_blocks=2)
    net = loop.prepare(nets.on_meta(name, 3), recipe)
    groups = loop.parameter_groups(net, recipe)
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(seen) == len(set(seen))
    assert set(seen) == {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
    head = {id(parameter) for parameter in net.classifier.parameters()}
    norms = {id(p) for module in net.modules() if isinstance(module, (BN, nn.LayerNorm)) for p in module.parameters()}
    biases = {id(parameter) for key, parameter in net.named_parameters() if key.endswith("bias")}
    for group in groups:
        for parameter in group["params"]:
            assert group["peak_lr"] == group["lr"] == pytest.approx(0.1 if id(parameter) in head else 0.025)
            assert group["weight_decay"] == (0 if id(parameter) in norms | biases else 0.05)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizer_is_the_recipes(name: str, kind: type) -> None:
    recipe = Recipe(optimizer=name, lr=0.5)
    optimizer = loop.optimizer_for(loop.parameter_groups(small(), recipe), recipe)
    assert type(optimizer) is kind
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.1}


def test_mode_last_freezes_all_but_the_last_blocks() -> None:
    recipe = Recipe(mode="last", last_blocks=3)
    net = loop.prepare(small(), recipe)
    blocks = net.blocks()
    assert not any(parameter.requires_grad for block in blocks[:-3] for parameter in block.parameters())
    assert all(parameter.requires_grad for block in blocks[-3:] for parameter in block.parameters())
    all_of_it = loop.prepare(small(), Recipe(mode="last", last_blocks=100))
    assert all(parameter.requires_grad for parameter in all_of_it.parameters())


def test_prepare_sets_dropout_stochastic_depth_and_batch_norm() -> None:
    recipe = Recipe(dropout=0.4, bn_momentum=0.03, stochastic_depth=0.3)
    net = loop.prepare(nets.create("efficientnet_b0", 3), recipe)
    modules = list(net.modules())
    assert {module.p for module in modules if isinstance(module, nn.Dropout)} == {0.4}
    assert {module.momentum for module in modules if isinstance(module, BN)} == {0.03}
    depths = [module.p for module in modules if isinstance(module, nets.layers.StochasticDepth)]
    assert depths[0] == 0
    assert depths[-1] == pytest.approx(0.3)
    convolution = next(module for module in modules if isinstance(module, nn.Conv2d) and module.in_channels > 4)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


# Networks of one builder have the same modules in other numbers: the first stands for all.
ONE_OF_A_KIND = {getattr(build := nets.entry(name).build, "func", build): name for name in reversed(nets.NETS)}


@pytest.mark.parametrize("name", ONE_OF_A_KIND.values())
def test_dropout_is_the_classifiers_alone(name: str) -> None:
    net = nets.on_meta(name, 3)
    dropouts = {key: module for key, module in net.named_modules() if isinstance(module, nn.Dropout)}
    own = {key: module.p for key, module in dropouts.items()}
    loop.prepare(net, Recipe(dropout=0.4))
    found = {key: module.p for key, module in dropouts.items()}
    assert found == {key: 0.4 if key.startswith("classifier.") else p for key, p in own.items()}
    if name.startswith("vit"):
        assert found and set(found.values()) == {0.0}  # none in the classifier, and the encoder's stays off
    if name == "googlenet":
        assert sorted(found.values()) == [0.4, 0.7, 0.7]


def test_soft_cross_entropy_is_torchs() -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn((8, 5), generator=random)
    soft = torch.rand((8, 5), generator=random)
    soft /= soft.sum(1, keepdim=True)
    assert loop.soft_cross_entropy(logits, soft).item() == pytest.approx(F.cross_entropy(logits, soft).item(), rel=1e-6)
    labels, weights = torch.arange(8) % 5, torch.tensor([0.1, 1, 2, 3, 4])
    expected = F.cross_entropy(logits, labels, weight=weights)
    ours = loop.soft_cross_entropy(logits, F.one_hot(labels, 5).float(), weights)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loop.soft_cross_entropy(logits, soft, torch.ones(5)).item() == pytest.approx(
        loop.soft_cross_entropy(logits, soft).item(), rel=1e-6
    )
    assert loop.soft_cross_entropy(logits.bfloat16(), soft).dtype == torch.float32


def test_class_weights_do_not_change_what_smoothing_asks_for() -> None:
    """Of a common photo, too, the rare class gets smoothing's share alone."""
    targets = torch.eye(2)[[0] * 100 + [1] * 10] * 0.9 + 0.1 / 2
    weights = loop.class_weights_of(targets.argmax(1).numpy(), 2)
    logits = torch.log(targets)  # where each photo's loss is least
    logits.requires_grad_()
    loop.soft_cross_entropy(logits, targets, weights).backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-7
    others = torch.randn((110, 2), generator=torch.Generator().manual_seed(0))
    alone = torch.stack([loop.soft_cross_entropy(others[at : at + 1], targets[at : at + 1]) for at in range(110)])
    counts = targets @ weights
    expected = (alone * counts).sum() / counts.sum()
    assert loop.soft_cross_entropy(others, targets, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_auxiliary_classifiers_count_at_their_weight() -> None:
    torch.manual_seed(0)
    net = nets.create("googlenet", 3)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, targets = torch.randn(2, 3, 64, 64), torch.eye(3)[:2]
    net.train()
    logits, auxiliary = net.forward_train(images)
    assert len(auxiliary) == 2
    parts = [loop.soft_cross_entropy(each, targets).item() for each in (logits, *auxiliary)]
    loss, _ = loop.loss_of(net, images, targets, None)
    assert loss.item() == pytest.approx(parts[0] + 0.3 * (parts[1] + parts[2]), rel=1e-5)
    loss, _ = loop.loss_of(net.eval(), images, targets, None)
    assert loss.item() == pytest.approx(loop.soft_cross_entropy(net(images), targets).item(), rel=1e-5)


def test_the_average_follows_its_formula() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
            self.register_buffer("mean", torch.tensor(5.0))
            self.register_buffer("count", torch.tensor(0))

    net = Tiny()
    average = loop.Average(net, 0.5)
    weight, mean = np.array([1.0, -2.0]), 5.0
    for step in range(1, 30):
        with torch.no_grad():
            net.weight += step
            net.mean *= 0.9
            net.count += 1
        average.update(net)
        keep = min(0.5, (1 + step) / (10 + step))
        weight = keep * weight + (1 - keep) * net.weight.detach().numpy()
        mean = keep * mean + (1 - keep) * net.mean.item()
        assert average.net.weight.tolist() == pytest.approx(weight.tolist(), rel=1e-4)
        assert average.net.mean.item() == pytest.approx(mean, rel=1e-4)
        assert average.net.count.item() == step
    assert not average.net.weight.requires_grad
    assert not average.net.training


@pytest.fixture(scope="module")
def splits(tiny_photos: Path) -> dict[str, photos.Photos]:
    found = photos.scan(tiny_photos)
    hashes = {path: path for path in found.paths}
    return photos.split(found, hashes)


PREPROCESS = Preprocess(image_px=32, resize_px=36)


def fitted(
    splits: dict[str, photos.Photos], recipe: Recipe, folder: Path, net: Net | None = None
) -> tuple[Net, list[dict[str, float]]]:
    pixels = Pixels(splits["train"], PREPROCESS, 64)
    fixed = Fixed(splits["validation"], PREPROCESS, 64)
    fabric = Fabric(accelerator="cpu", devices=1)
    net = loop.prepare(net or small(), recipe)
    return loop.fit(net, pixels, fixed, recipe, PREPROCESS, folder, fabric)


QUICK = Recipe(image_px=32, batch_size=8, epochs=1, warmup_epochs=0.0, ema_decay=0.0, mode="scratch")


def statistics(block: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in block.state_dict().items() if "running" in key or "num_b" in key}


def test_training_in_mode_last_touches_nothing_of_the_frozen_blocks(
    splits: dict[str, photos.Photos], tmp_path: Path
) -> None:
    net = small()
    before = copy.deepcopy(net)
    recipe = Recipe(mode="last", last_blocks=3, image_px=32, batch_size=8, epochs=1, ema_decay=0.0, lr=0.01)
    after, _ = fitted(splits, recipe, tmp_path, net)
    for old, new in zip(before.blocks()[:-3], after.blocks()[:-3], strict=True):
        for key, value in old.state_dict().items():
            assert torch.equal(value, new.state_dict()[key]), key
    for old, new in zip(before.blocks()[-3:], after.blocks()[-3:], strict=True):
        assert any(not torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())
        for key, value in statistics(old).items():
            assert not torch.equal(value, statistics(new)[key]), key


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale(
    splits: dict[str, photos.Photos], tmp_path: Path, frozen: bool
) -> None:
    net = small()
    before = copy.deepcopy(net)
    recipe = Recipe(freeze_bn=frozen, image_px=32, batch_size=8, epochs=1, ema_decay=0.0, lr=0.01)
    after, _ = fitted(splits, recipe, tmp_path, net)
    for key, value in statistics(before).items():
        assert torch.equal(value, after.state_dict()[key]) == frozen, key
    scales = [key for key, module in before.named_modules() if isinstance(module, BN)]
    moved = [not torch.equal(before.state_dict()[f"{k}.weight"], after.state_dict()[f"{k}.weight"]) for k in scales]
    assert sum(moved) > len(moved) // 2


def test_a_loss_that_is_no_number_is_said(splits: dict[str, photos.Photos], tmp_path: Path) -> None:
    net = small()
    with torch.no_grad():
        net.classifier[-1].weight.fill_(math.nan)
    with pytest.raises(HandlensError, match=r"nan in epoch 1; remove this run, or .* with a lower --lr than 0.001"):
        fitted(splits, QUICK, tmp_path, net)


def test_the_log_has_a_row_an_epoch(
    splits: dict[str, photos.Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: list[int] = []
    loss_of = loop.loss_of

    def counted(net: object, images: torch.Tensor, targets: torch.Tensor, *rest: object) -> object:
        loss, logits = loss_of(net, images, targets, *rest)
        right.append(sum(int(row.argmax() == aim.argmax()) for row, aim in zip(logits, targets, strict=True)))
        return loss, logits

    monkeypatch.setattr(loop, "loss_of", counted)
    _, log = fitted(splits, Recipe(**{**vars(QUICK), "epochs": 3, "ema_decay": 0.5}), tmp_path)
    assert [row["epoch"] for row in log] == [1, 2, 3]
    for row in log:
        assert row["train_loss"] > 0 < row["validation_loss"]
        assert 0 <= row["train_top1"] <= 1 >= row["validation_top1"] >= 0
        assert row["photos_per_s"] == pytest.approx(30 / row["seconds"])
    assert [row["train_top1"] * 30 for row in log] == pytest.approx([sum(right[at : at + 4]) for at in (0, 4, 8)])
    rates = [loop.rate_at(epoch, Recipe(**{**vars(QUICK), "epochs": 3})) * QUICK.lr for epoch in (1, 2, 3)]
    assert [row["lr"] for row in log] == pytest.approx(rates)


def test_crops_grow_after_half_of_the_epochs_and_the_time_left_counts_that(
    splits: dict[str, photos.Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    steps: list[loop.Step] = []
    loss_of = loop.loss_of

    def seen(net: object, images: torch.Tensor, *rest: object) -> object:
        sizes.append(images.shape[-1])
        return loss_of(net, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "loss_of", seen)
    monkeypatch.setattr(loop, "fit", functools.partial(loop.fit, on_step=steps.append))
    fitted(splits, Recipe(**{**vars(QUICK), "epochs": 3, "first_px": 16}), tmp_path)
    assert sizes == [16] * 4 + [32] * 8
    ends = [step for step in steps if step.step == step.steps]
    epoch_s = [30 / step.photos_per_s for step in ends]
    later = [4 + 4, 1, 0]  # an epoch of twice the size has four times the pixels
    assert [step.seconds_left for step in ends] == pytest.approx([s * n for s, n in zip(epoch_s, later, strict=True)])


def test_the_next_batch_is_made_before_a_steps_loss_is_read(
    splits: dict[str, photos.Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    make, to_list = loop.Batches.make, torch.Tensor.tolist

    def made(self: loop.Batches, indices: np.ndarray, seed: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        events.append(f"made {seed[2]}")
        return make(self, indices, seed)

    def read(self: torch.Tensor) -> object:
        if self.shape == (2,):
            events.append("read")
        return to_list(self)

    monkeypatch.setattr(loop.Batches, "make", made)
    monkeypatch.setattr(torch.Tensor, "tolist", read)
    fitted(splits, QUICK, tmp_path)
    assert events == ["made 0", "made 1", "read", "made 2", "read", "made 3", "read", "read"]


def test_the_latest_epoch_that_is_as_good_as_the_best_is_kept(
    splits: dict[str, photos.Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks: list[torch.Tensor] = []
    figures = iter([(1.0, 0.3), (0.9, 0.7), (2.0, 0.6), (2.0, 0.3), (2.1, 0.3)])

    def judged(net: nn.Module, *rest: object) -> tuple[float, float]:
        marks.append(net.state_dict()["classifier.0.weight"].clone())
        return next(figures)

    monkeypatch.setattr(loop, "judge", judged)
    net, log = fitted(splits, Recipe(**{**vars(QUICK), "epochs": 5}), tmp_path)
    assert [row["validation_top1"] for row in log] == [0.3, 0.7, 0.6, 0.3, 0.3]
    best = [torch.equal(net.state_dict()["classifier.0.weight"], mark) for mark in marks]
    assert best == [False, False, True, False, False]  # 0.6 of three photos is as good as 0.7, 0.3 is not
    assert loop.Kept(3, log).epoch == 3


def rows(*judged: tuple[float, float]) -> list[dict[str, float]]:
    """A log of epochs with these validation losses and top-1."""
    return [
        {"epoch": number, "validation_loss": loss, "validation_top1": top1}
        for number, (loss, top1) in enumerate(judged, 1)
    ]


@pytest.mark.parametrize(
    ("top1", "best", "count", "good"),
    [(0.9, 0.8, 10, True), (0.8, 0.8, 10, True), (0.68, 0.8, 10, True), (0.66, 0.8, 10, False),
     (0.787, 0.8, 1000, False), (0.788, 0.8, 1000, True), (0.0, 0.0, 0, True),
     (9 / 11, 10 / 11, 11, True), (8 / 11, 10 / 11, 11, False),  # a photo is more than the standard error
     (10 / 11, 1.0, 11, True), (9 / 11, 1.0, 11, False), (286 / 290, 1.0, 290, False),
     (266 / 290, 270 / 290, 290, True), (265 / 290, 270 / 290, 290, False)],
)  # fmt: skip
def test_within_a_standard_error_or_a_photo_of_the_best_is_as_good(
    top1: float, best: float, count: int, good: bool
) -> None:
    assert loop.Kept(count, rows((1.0, best), (1.0, top1))).epoch == (2 if good else 1)
    rounded = float(np.float32(top1))
    assert loop.Kept(count, rows((1.0, best), (1.0, rounded))).epoch == (2 if good else 1)


def test_a_lucky_epoch_of_the_warm_up_is_not_kept() -> None:
    log = rows((0.84, 11 / 11), (0.6, 8 / 11), (0.5, 9 / 11), (0.45, 8 / 11), (0.47, 8 / 11))
    kept = loop.Kept(11)
    assert [kept.take(row) for row in log] == [True, True, True, True, False]
    assert (kept.epoch, kept.loss) == (4, 0.45)
    assert loop.Kept(11, log[:2]).take(log[2])  # a run that goes on


def test_patience_ends_a_run_that_no_longer_gains(
    splits: dict[str, photos.Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([(1.0, 0.3), (0.9, 0.7), (1.0, 0.7), (1.0, 0.7), (1.0, 0.9), (1.0, 0.9)])
    monkeypatch.setattr(loop, "judge", lambda *_: next(figures))
    recipe = Recipe(**{**vars(QUICK), "epochs": 6, "patience_epochs": 2})
    _, log = fitted(splits, recipe, tmp_path)
    assert len(log) == 4
    _, log = fitted(splits, recipe, tmp_path)  # a run that was killed after that does not begin anew
    assert len(log) == 4


def test_patience_begins_when_crops_have_grown(
    splits: dict[str, photos.Photos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "judge", lambda *_: (1.0, 0.7))
    recipe = Recipe(**{**vars(QUICK), "epochs": 6, "patience_epochs": 2, "first_px": 16})
    _, log = fitted(splits, recipe, tmp_path)
    assert len(log) == 5  # three on small crops, and two


def test_judge_counts_every_photo_once(splits: dict[str, photos.Photos]) -> None:
    net = small()
    fixed = Fixed(splits["train"], PREPROCESS, 64)
    make = loop.Batches(Pixels(splits["train"], PREPROCESS, 64), QUICK, PREPROCESS, torch.device("cpu"))
    loss, top1 = loop.judge(net, fixed, make, Fabric(accelerator="cpu", devices=1))
    images, labels = next(photos.batches(splits["train"], PREPROCESS, 64))
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(PREPROCESS.normalise(images)))
    assert loss == pytest.approx(F.cross_entropy(logits, torch.from_numpy(labels)).item(), rel=1e-4)
    assert top1 == pytest.approx((logits.argmax(1).numpy() == labels).mean())


@pytest.mark.parametrize("normalisation", ["fixed", "z-score", "l2"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_photos_without_augmentation_are_normalised_as_the_contract_says(
    splits: dict[str, photos.Photos], channels: str, normalisation: Normalisation
) -> None:
    preprocess = Preprocess(
        image_px=40, resize_px=40, normalisation=normalisation, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7),
        channels=channels,
    )  # fmt: skip
    recipe = Recipe(augment="none", label_smoothing=0.3)
    make = loop.Batches(Pixels(splits["train"], preprocess, 64), recipe, preprocess, torch.device("cpu"))
    images, targets = make.make(np.array([3, 0]), [0])
    whole = np.stack([preprocess.load(splits["train"].path(i)) for i in (3, 0)])
    expected = torch.from_numpy(preprocess.normalise(whole))
    assert torch.allclose(images, expected, atol=1e-5)
    assert torch.allclose(make.plain(whole), expected, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    labels = splits["train"].labels[[3, 0]]
    assert torch.allclose(targets, 0.7 * torch.eye(3)[labels] + 0.1)


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_pixels_are_decoded_once_if_they_fit(
    splits: dict[str, photos.Photos], cache_mb: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = Pixels(splits["train"], PREPROCESS, cache_mb)
    decoded: list[int] = []
    decode = pixels._decode
    monkeypatch.setattr(pixels, "_decode", lambda index: decoded.append(index) or decode(index))
    first, again = pixels.get([2, 0, 2]), pixels.get([0, 2])
    assert np.array_equal(first[0], again[1])
    assert np.array_equal(first[0], first[2])
    assert first[1].shape == (36, 43, 3)  # of 40 x 48, with the shorter side as the contract resizes it
    assert len(decoded) == (2 if cache_mb else 4)
    pixels.close()


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_disk_that_fills_up_while_the_state_is_written_is_said(
    splits: dict[str, photos.Photos], room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(files, "open", lambda path, *_, **__: Full(path, "x"), raising=False)
    with pytest.raises(HandlensError, match=r"the disk is full: .*state.pt could not be written"):
        fitted(splits, QUICK, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_is_said(splits: dict[str, photos.Photos], tmp_path: Path) -> None:
    (tmp_path / files.STATE).write_bytes(b"not a state")
    with pytest.raises(HandlensError, match=r"state.pt is damaged"):
        fitted(splits, QUICK, tmp_path)


def batches(splits: dict[str, photos.Photos], **recipe: Any) -> loop.Batches:
    return loop.Batches(Pixels(splits["train"], PREPROCESS, 64), Recipe(**recipe), PREPROCESS, torch.device("cpu"))


@pytest.mark.parametrize(
    ("augment_", "flip", "mirrored"), [("light", True, True), ("light", False, False), ("none", True, False)]
)
def test_photos_are_mirrored_where_the_recipe_says_so(splits: Any, augment_: str, flip: bool, mirrored: bool) -> None:
    make, chosen = batches(splits, augment=augment_, flip=flip), np.arange(20)
    seen = make.crops(chosen, np.random.default_rng(0))
    plain = augment.random_crops(make.pixels.get(chosen.tolist()), make.px, make.min_area, np.random.default_rng(0))
    assert torch.equal(seen, plain.float().div_(255)) != mirrored


@pytest.mark.parametrize(
    ("given", "name"),
    [({"augment": "trivial"}, "trivial_augment"), ({"mixup_alpha": 0.2}, "mix"), ({"cutmix_alpha": 0.2}, "mix")],
)
def test_a_batch_is_changed_as_the_recipe_says(
    splits: Any, given: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = getattr(augment, name), []
    monkeypatch.setattr(augment, name, lambda *given: calls.append(given[2:4]) or real(*given))
    made, targets = batches(splits, **given).make(np.arange(20), [0])
    assert len(calls) == 1 and made.shape == (20, 3, 32, 32)
    if name == "mix":
        assert calls == [(given.get("mixup_alpha", 0.0), given.get("cutmix_alpha", 0.0))]
        soft = Recipe().label_smoothing
        assert ((targets > soft) & (targets < 1 - soft)).any()


def test_each_group_keeps_its_own_rate_in_every_step(
    splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rates, real, loss_of = [], [], loop.optimizer_for, loop.loss_of
    monkeypatch.setattr(loop, "optimizer_for", lambda *given: made.append(real(*given)) or made[-1])

    def step(*given: Any) -> Any:
        rates.append([group["lr"] / group["peak_lr"] for group in made[0].param_groups])
        return loss_of(*given)

    monkeypatch.setattr(loop, "loss_of", step)
    recipe = Recipe(**{**vars(QUICK), "mode": "full", "backbone_lr_ratio": 0.25})
    fitted(splits, recipe, tmp_path)
    assert len({group["peak_lr"] for group in made[0].param_groups}) == 2
    assert np.allclose(rates, [[loop.rate_at((n + 1) / 4, recipe)] * len(rates[0]) for n in range(4)])


def test_class_weights_reach_the_loss(splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, loss_of = [], loop.loss_of
    monkeypatch.setattr(loop, "loss_of", lambda *given: seen.append(given[3]) or loss_of(*given))
    fitted(splits, Recipe(**{**vars(QUICK), "balance": "weights"}), tmp_path)
    expected = loop.class_weights_of(splits["train"].labels, 3)
    assert seen and all(torch.equal(weights, expected) for weights in seen)


def test_the_average_is_what_is_judged_and_kept(splits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, judge, averages = [], loop.judge, []
    real = loop.Average

    class Noted(real):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            averages.append(self)

    monkeypatch.setattr(loop, "Average", Noted)
    monkeypatch.setattr(loop, "judge", lambda net, *rest: judged.append(net) or judge(net, *rest))
    net, _ = fitted(splits, Recipe(**{**vars(QUICK), "ema_decay": 0.9}), tmp_path)
    assert judged == [averages[0].net]
    assert all(torch.equal(value, averages[0].net.state_dict()[key]) for key, value in net.state_dict().items())
