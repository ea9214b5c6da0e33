"""A network in two parts: together they are the whole, whatever its structure."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from handlens import nets
from handlens.nets import Net
from handlens.preprocess import Preprocess
from handlens.train import Recipe, features, loop
from handlens.train.cut import Cut, cut
from handlens.train.features import weights_hash


def small(name: str) -> Net:
    torch.manual_seed(0)
    arguments = {"width": 0.35} if name in ("mobilenet_v2", "mobilenet_v3_small") else {}
    return nets.create(name, 3, **arguments)


def parts_of(net: Net, last_blocks: int, **given: object) -> Cut | None:
    recipe = Recipe(mode="last", last_blocks=last_blocks, **given)  # type: ignore[arg-type]
    return cut(net, last_blocks, lambda whole: loop.prepare(whole, recipe))


def images(px: int = 64, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(1))


CAN_BE_CUT = [
    "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet20", "vit_ti_32", "alexnet", "shufflenet_v1_x0_25_g8",
    "shufflenet_v2_x0_5", "efficientnet_b0", "xception",
]  # fmt: skip


@pytest.mark.parametrize("name", CAN_BE_CUT)
@pytest.mark.parametrize("last_blocks", [1, 2, 4])
def test_both_parts_are_the_whole(name: str, last_blocks: int) -> None:
    net = small(name)
    whole = copy.deepcopy(net).eval()
    px = 96 if name == "alexnet" else 64
    parts = parts_of(net, last_blocks)
    assert parts is not None
    with torch.no_grad():
        maps = parts.trunk.embed(images(px))
        assert tuple(maps.shape[1:]) == parts.shape(px)
        assert torch.allclose(parts.tail.eval()(maps), whole(images(px)), rtol=1e-4, atol=1e-5)
    both = sum(p.numel() for part in (parts.trunk, parts.tail) for p in part.parameters())
    assert both == sum(p.numel() for p in whole.parameters())  # nothing lies in both, and nothing in neither
    assert all(p.requires_grad for p in parts.tail.parameters())
    assert not any(p.requires_grad for p in parts.trunk.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "vit_ti_32"])
def test_a_tail_learns_as_the_whole_does(name: str) -> None:
    """The same gradients in training mode, and the trained weights in their places afterwards."""
    net = small(name)
    recipe = Recipe(mode="last", last_blocks=3, dropout=0.0)
    parts = parts_of(net, 3, dropout=0.0)
    assert parts is not None
    whole = loop.prepare(copy.deepcopy(net), recipe)
    loop.training_mode(whole, recipe)
    loop.training_mode(parts.tail, recipe)
    targets = torch.eye(3)
    for model, given in ((whole, images()), (parts.tail, parts.trunk.embed(images()))):
        loss, _ = loop.loss_of(model, given, targets, None)
        loss.backward()  # type: ignore[no-untyped-call]
    learned = {key: p.grad for key, p in whole.named_parameters() if p.requires_grad}
    own = {key.removeprefix("rest."): p.grad for key, p in parts.tail.named_parameters()}
    assert learned.keys() == own.keys()
    for key, grad in learned.items():
        assert grad is not None and own[key] is not None
        assert torch.allclose(grad, own[key], rtol=1e-3, atol=1e-5), key
    with torch.no_grad():
        for parameter in parts.tail.parameters():
            parameter += 0.01
    before = {key: value.clone() for key, value in net.state_dict().items()}
    joined = parts.whole(parts.tail)
    assert joined is net
    for key, value in joined.state_dict().items():
        assert torch.equal(value, before[key] + 0.01) == (key in learned), key


@pytest.mark.parametrize(("name", "last_blocks"), [("googlenet", 2), ("inception_v3", 2), ("mobilenet_v2", 100)])
def test_what_cannot_be_cut_is_left_whole(name: str, last_blocks: int) -> None:
    assert parts_of(small(name), last_blocks) is None


def test_a_path_around_the_blocks_is_found_by_the_trial() -> None:
    class Around(Net):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)
            self.classifier = torch.nn.Sequential(torch.nn.Linear(8, 3))

        def features(self, images: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
            return [self.two(self.one(images)) + images.mean((1, 2, 3), keepdim=True)]

        def blocks(self) -> list[torch.nn.Module]:
            return [self.one, self.two, self.classifier]

    assert parts_of(Around(), 1) is None
    assert parts_of(Around(), 2) is None


@pytest.mark.parametrize("px", [64, 72, 88])
def test_a_trunk_in_onnx_gives_the_same(px: int) -> None:
    """At 72 px and 88 px maps of odd sizes come up, which SAME padding rounds."""
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    parts = parts_of(nets.create("mobilenet_v2", 3, width=0.35, padding="tensorflow"), 4)
    assert parts is not None
    contract = Preprocess(image_px=px, resize_px=px)
    photos = np.random.default_rng(0).integers(0, 256, (3, px, px, 3), dtype=np.uint8)
    found = features._onnx_embedder(parts.trunk, contract).embed(photos)
    expected = features._torch_embedder(parts.trunk, contract, "32-true", torch.device("cpu")).embed(photos)
    assert found.shape == expected.shape == (3, *parts.shape(px))
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


def test_a_trunk_is_known_by_its_weights_and_where_it_ends() -> None:
    def hashed(change: str = "", last_blocks: int = 3, **given: object) -> str:
        net = small("mobilenet_v3_small")
        with torch.no_grad():
            if change:
                net.get_parameter(change)[0] += 1
        parts = parts_of(net, last_blocks, **given)
        assert parts is not None
        return weights_hash(parts.trunk)

    first = hashed()
    assert hashed() == first
    assert hashed("classifier.0.bias") == first  # trained blocks do not count
    assert hashed(bn_momentum=0.3, dropout=0.5, stochastic_depth=0.1) == first  # nor how they are trained
    assert hashed("features.0.0.weight") != first
    assert hashed(last_blocks=2) != first
