"""Quantization-aware training on the tiny photos."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import handlens
from handlens import checkpoint, photos
from handlens.checkpoint import Checkpoint
from handlens.compress import fake, qat
from handlens.compress.fake import Rounded, ranges_of
from handlens.errors import HandlensError
from handlens.nets.fold import fold_batch_norm
from handlens.photos import Photos


@pytest.fixture(scope="module")
def begun(tiny_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A small network that has learned to tell the tiny photos apart. Not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "begun"
    handlens.fit(
        tiny_photos, out=out, net="resnet20", weights="none", image_px=32, epochs=6, batch_size=8, precision="32-true"
    )
    return checkpoint.load(out)


@pytest.fixture(scope="module")
def splits(tiny_photos: Path) -> dict[str, Photos]:
    found = photos.scan(tiny_photos)
    return {"train": found.select(range(0, 36, 2)), "validation": found.select(range(1, 36, 2))}


def divergence(net: nn.Module, reference: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        expected = reference(images).log_softmax(1)
        with Rounded(net, ranges_of(net, images)):
            found = net(images).log_softmax(1)
    return float((expected.exp() * (expected - found)).sum(1).mean())


def test_training_brings_the_rounded_answers_nearer(
    begun: Checkpoint, splits: dict[str, Photos], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "HIGHEST", 1)  # weights are -1, 0 or 1 times a scale: answers suffer
    net, told = copy.deepcopy(begun.net), []
    images, _ = next(photos.batches(splits["validation"], begun.preprocess, 18))
    inputs = torch.from_numpy(begun.preprocess.normalise(images))
    trained = qat.train(
        net, splits["train"], splits["validation"], begun.preprocess, epochs=6, lr=2e-3,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    before, after = divergence(net, net, inputs), divergence(trained, net, inputs)
    assert before > 0.1 and after < 0.8 * before
    assert told == [(step, 6) for step in range(1, 7)]
    assert type(trained) is type(net) and not trained.training
    assert trained.state_dict().keys() == net.state_dict().keys()
    assert {name: type(module) for name, module in trained.named_modules()} == {
        name: type(module) for name, module in net.named_modules()
    }
    assert not any(module._forward_hooks for module in trained.modules())
    folded = fold_batch_norm(trained)
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), trained(inputs), atol=1e-3, rtol=1e-3)


def test_the_network_itself_is_left_alone_and_the_seed_repeats(begun: Checkpoint, splits: dict[str, Photos]) -> None:
    state = {key: value.clone() for key, value in begun.net.state_dict().items()}
    settings = {"epochs": 1, "seed": 3}
    one, two = (qat.train(begun.net, splits["train"], splits["validation"], begun.preprocess, **settings) for _ in "ab")
    assert all(torch.equal(state[key], value) for key, value in begun.net.state_dict().items())
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())
    assert any(not torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_batch_norm_and_ranges_stand_still_in_the_last_third(
    begun: Checkpoint, splits: dict[str, Photos], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, bool, dict[str, tuple[float, float]]]] = []

    class Watched(Rounded):
        def __enter__(self) -> Rounded:
            if self.net.training:
                norm = self.net.get_submodule("bn1")
                seen.append((self.momentum, norm.training, dict(self.ranges)))
            return super().__enter__()

    monkeypatch.setattr(qat, "Rounded", Watched)
    qat.train(begun.net, splits["train"], splits["validation"], begun.preprocess, epochs=6)
    assert [(momentum > 0, training) for momentum, training, _ in seen] == [(True, True)] * 4 + [(False, False)] * 2
    assert seen[4][2] == seen[5][2] and seen[2][2] != seen[3][2]


def test_the_loss_is_least_for_the_expected_answers() -> None:
    torch.manual_seed(0)
    expected, targets = torch.randn(8, 5), torch.eye(5)[torch.randint(5, (8,))]
    best = qat.loss_of(expected, expected, torch.softmax(expected, 1))
    other = qat.loss_of(expected + 0.3 * torch.randn(8, 5), expected, torch.softmax(expected, 1))
    assert best < other
    hard = -(targets * expected.log_softmax(1)).sum(1).mean()
    assert qat.loss_of(expected, expected, targets) == pytest.approx(qat.HARD_SHARE * hard.item(), rel=1e-4)


def test_a_loss_that_is_no_number_is_named(
    begun: Checkpoint, splits: dict[str, Photos], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "loss_of", lambda logits, *_: (logits * math.inf).sum())
    with pytest.raises(HandlensError, match=r"loss became (nan|-?inf) in epoch 1"):
        qat.train(begun.net, splits["train"], splits["validation"], begun.preprocess, epochs=1)
