"""The ranking of layers by the harm that rounding does, against rounding each from the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from handlens.compress.fake import Rounded, ranges_of
from handlens.compress.sensitivity import rank, units
from handlens.nets import Net
from handlens.nets.fold import fold_batch_norm

Build = Callable[..., Net]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "shufflenet_v1_x1_0_g4"])
def test_damage_is_that_of_rounding_one_part_of_the_whole_network(name: str, shaken: Build) -> None:
    arguments = {"width": 0.35} if name.startswith("mobilenet") else {}
    net, images = fold_batch_norm(shaken(name, **arguments)), torch.randn(6, 3, 64, 64)
    found = dict(rank(net, images))
    assert list(found) == [name for name, _ in sorted(found.items(), key=lambda item: -item[1])]
    ranges = ranges_of(net, images)
    for part in list(found)[:4]:
        with torch.no_grad():
            expected = net(images).softmax(1)
            with Rounded(net, ranges, only=part):
                rounded = net(images).softmax(1)
        damage = (expected * (expected / rounded).log()).sum(1).mean().item()
        assert found[part] == pytest.approx(damage, rel=0.01)
        assert damage > 0


def test_a_layer_with_one_huge_weight_is_the_worst(shaken: Build) -> None:
    folded, images = fold_batch_norm(shaken("mobilenet_v2", width=0.35)), torch.randn(4, 3, 64, 64)
    bad = folded.get_submodule("features.5.conv.2")
    assert isinstance(bad, nn.Conv2d)
    with torch.no_grad():
        bad.weight[:, 0] = 0
        bad.weight[:, 1] = 1000 * bad.weight.abs().amax((1, 2, 3)).view(-1, 1, 1)
        before = folded.get_submodule("features.5.conv.1.0")
        assert isinstance(before, nn.Conv2d) and before.bias is not None
        before.weight[1] = 0  # that channel is always 0, and the others' weights round to nothing
        before.bias[1] = -1
    assert rank(folded, images)[0][0] == "features.5.conv.2"


def test_the_parts_are_layers_curves_and_gates(shaken: Build) -> None:
    net = fold_batch_norm(shaken("mobilenet_v3_small", width=0.35))
    found = units(net, torch.randn(1, 3, 64, 64))
    modules = dict(net.named_modules())
    assert all(name in modules for name in found)
    assert found[:5] == [
        "features.0.0",
        "features.0.2",
        "features.1.block.0.0",
        "features.1.block.1",
        "features.1.block.2.0",
    ]
    assert not any(name.endswith((".fc1", ".fc2")) for name in found)
    assert sum(type(modules[name]).__name__ == "SqueezeExcite" for name in found) == 9
    layers = [
        name for name, module in modules.items() if isinstance(module, (nn.Conv2d, nn.Linear)) and "fc" not in name
    ]
    assert set(layers) <= set(found)
    effnet = fold_batch_norm(shaken("efficientnet_b0", width=0.35))
    kinds = {type(effnet.get_submodule(name)).__name__ for name in units(effnet, torch.randn(1, 3, 64, 64))}
    assert kinds == {"Conv2d", "Linear", "SiLU", "SqueezeExcite"}


def test_the_network_is_left_alone(shaken: Build) -> None:
    net, images = fold_batch_norm(shaken("resnet20")), torch.randn(5, 3, 32, 32)
    before = net(images)
    rank(net, images)
    assert torch.equal(net(images), before)
    assert net.relu.inplace
