"""Batch norm folded into convolutions: the same function, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from handlens import nets
from handlens.nets.fold import fold_batch_norm
from handlens.nets.layers import modules_of

SMALL = {
    "mobilenet_v1": {"width": 0.25},
    "mobilenet_v2": {"width": 0.35, "padding": "tensorflow"},
    "mobilenet_v3_small": {"bn_eps": 1e-3},
    "resnet20": {},
    "shufflenet_v2_x0_5": {},
    "xception": {},
    "efficientnet_lite0": {"padding": "tensorflow"},
    "googlenet_torchvision": {},
    "vit_tiny_patch16_224": {},
}


@pytest.mark.parametrize("name", [name for name in SMALL if name in nets.NETS])
def test_the_folded_network_is_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    net = nets.create(name, 7, **SMALL[name]).eval()
    for norm in modules_of(net, nn.BatchNorm2d):
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    px = max(64, net.smallest_px)
    images = torch.randn(2, 3, 224 if name.startswith("vit") else px, 224 if name.startswith("vit") else px)
    folded = fold_batch_norm(net)
    with torch.inference_mode():
        expected, got = net(images), folded(images)
    assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()
    assert not list(modules_of(folded, nn.BatchNorm2d)), "every one of these follows a convolution"
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), (
        "the given net is not changed"
    )


def test_a_batch_norm_without_a_convolution_stays() -> None:
    net = nets.create("mobilenet_v1", 3, width=0.25).eval()
    where, norm = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))
    net.set_submodule(where, nn.Sequential(nn.ReLU(), norm))
    folded = fold_batch_norm(net)
    assert len(list(modules_of(folded, nn.BatchNorm2d))) == 1
