"""AlexNet of 2012 against the paper's figures, its response normalisation against the formula, and torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.models
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.errors import HandlensError
from handlens.nets.layers import LocalResponseNorm, init_weights

NETS = {  # params, MACs, maps at the stages' ends
    "alexnet": (60_965_224, 724_406_816, [(96, 55), (256, 27), (256, 13), (256, 6)]),
    "alexnet_torchvision": (61_100_840, 714_188_480, [(64, 55), (192, 27), (256, 13), (256, 6)]),
}


@pytest.mark.parametrize("name", NETS)
def test_counts_and_maps(name: str, macs: Callable[[nn.Module, int], int]) -> None:
    params, multiply_adds, maps = NETS[name]
    net, image_px = nets.on_meta(name), nets.entry(name).image_px
    assert count_params(net) == params
    assert macs(net, image_px) == multiply_adds
    found = net.features(torch.empty(1, 3, image_px, image_px, device="meta"))
    assert [tuple(stage.shape[1:3]) for stage in found] == maps


@torch.no_grad()
def test_logits_equal_torchvisions(twin: Callable[..., nets.Net]) -> None:
    reference = torchvision.models.alexnet().eval()
    net = twin("alexnet_torchvision", reference)
    images = torch.randn(2, 3, 150, 224)
    expected = reference(images)
    assert expected.std() > 0.1
    assert (net(images) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("n", [5, 4])
def test_response_normalisation_is_the_papers_formula(n: int) -> None:
    k, alpha, beta = 2.0, 1e-4, 0.75
    a = np.random.default_rng(0).normal(0, 50, (2, 9, 3, 4))
    b = np.empty_like(a)
    for i in range(9):
        near = slice(max(0, i - n // 2), min(8, i + (n - 1) // 2) + 1)
        b[:, i] = a[:, i] / (k + alpha * (a[:, near] ** 2).sum(1)) ** beta
    ours = LocalResponseNorm(n, k, alpha, beta)(torch.tensor(a))
    np.testing.assert_allclose(ours, b, rtol=1e-12)
    if n == 5:  # torch divides alpha by n
        torch.testing.assert_close(nn.functional.local_response_norm(torch.tensor(a), n, alpha * n, beta, k), ours)


def test_the_order_of_2012_is_relu_norm_pool() -> None:
    kinds = [type(module).__name__ for module in nets.on_meta("alexnet").features]
    assert kinds[:8] == ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"] * 2
    assert kinds[8:] == ["Conv2d", "ReLU"] * 3 + ["MaxPool2d"]


@torch.no_grad()
def test_the_towers_meet_in_the_third_convolution_only() -> None:
    features = nets.on_meta("alexnet").features.to_empty(device="cpu")
    init_weights(features)
    convs = [module for module in features if isinstance(module, nn.Conv2d)]
    for conv, apart in zip(convs, (None, True, False, True, True), strict=True):
        if apart is None:  # the photo is on both GPUs
            continue
        maps = torch.randn(1, conv.in_channels, 5, 5)
        other = maps.clone()
        other[:, conv.in_channels // 2 :] += 1
        half = conv.out_channels // 2
        assert torch.equal(conv(maps)[:, :half], conv(other)[:, :half]) is apart


@pytest.mark.parametrize("name", NETS)
def test_smallest_input(name: str) -> None:
    net = nets.on_meta(name).eval()
    px = net.smallest_px
    nets.check_input(net, px)
    assert net(torch.empty(2, 3, px, px, device="meta")).shape == (2, 1000)
    with pytest.raises(HandlensError, match=f"smallest that works is {px} px"):
        nets.check_input(net, px - 1)
    with pytest.raises(RuntimeError):  # so that the limit is not stricter than the network
        net(torch.empty(2, 3, px - 1, px - 1, device="meta"))


@pytest.mark.parametrize("name", NETS)
def test_pieces_are_the_eight_layers_weights(name: str) -> None:
    net = nets.on_meta(name)
    pieces = net.blocks()
    owned = [parameter for piece in pieces for parameter in piece.parameters()]
    assert len(pieces) == 6 and pieces[-1] is net.classifier
    assert [id(parameter) for parameter in owned] == [id(parameter) for parameter in net.parameters()]
    assert len(owned) == 2 * 8


@pytest.mark.parametrize("name", NETS)
def test_exports(name: str) -> None:
    net = nets.on_meta(name).eval()
    px = nets.entry(name).image_px
    program = torch.export.export(
        net, (torch.empty(2, 3, px, px, device="meta"),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    assert program.module()(torch.empty(3, 3, px, px, device="meta")).shape == (3, 1000)
