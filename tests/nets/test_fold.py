"""Batch norm folded into convolutions: the same function, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from handlens import nets
from handlens.nets.fold import fold_batch_norm
from handlens.nets.layers import Net, modules_of
from handlens.nets.vit_hybrid import Bottleneck, StdConv2d

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


def test_standardised_filters_are_stored_as_they_are_used() -> None:
    """The files of the hybrid hold what its convolutions compute with; INT8 rounds it channel by channel."""

    class Small(Net):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(StdConv2d(3, 32, 7, 2), Bottleneck(32, 32, 2))
            self.classifier = nn.Sequential(nn.Linear(128, 2))

        def forward(self, images: torch.Tensor, depth: int | None = None) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(self.block(images).mean((2, 3)))
            return logits

    torch.manual_seed(0)
    net, images = Small().eval(), torch.randn(2, 3, 75, 64)
    folded = fold_batch_norm(net)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), net(images), rtol=1e-4, atol=1e-5)
    kinds = [type(module) for module in folded.modules()]
    assert StdConv2d not in kinds and len(list(modules_of(folded, nn.Conv2d))) == 5
    assert folded.state_dict().keys() == net.state_dict().keys()
    first = folded.get_parameter("block.0.weight")
    assert first.mean((1, 2, 3)).abs().max() < 1e-6 and (first.var((1, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert isinstance(net.get_submodule("block.0"), StdConv2d)
