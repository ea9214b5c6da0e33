"""Equalised layers and corrected biases: the same function, easier to round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.compress.fake import round_weight
from handlens.compress.repair import channel_means, correct_bias, equalise, pairs
from handlens.nets import Net
from handlens.nets.fold import fold_batch_norm
from handlens.nets.vit import SelfAttention
from handlens.nets.vit_hybrid import StdConv2d

Build = Callable[..., Net]
NETS = {
    "mobilenet_v3_small": {"width": 0.35, "padding": "tensorflow"},
    "resnet18": {},
    "vgg11_bn": {},
    "mobilenet_v2": {"width": 0.35},
    "efficientnet_b0": {"width": 0.35},
    "shufflenet_v1_x1_0_g4": {},
}


LARGE = ("vgg11_bn", "efficientnet_b0", "shufflenet_v1_x1_0_g4")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in NETS])
def test_an_equalised_network_is_the_same_function(name: str, shaken: Build) -> None:
    folded = fold_batch_norm(shaken(name, **NETS[name])).double()  # in float, random networks blow up what is rounded
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    equal = equalise(folded)
    with torch.no_grad():
        before, after = folded(images), equal(images)
    assert (before - after).abs().max() < 1e-9 * before.abs().max()
    changed = [key for key, value in folded.state_dict().items() if not torch.equal(value, equal.state_dict()[key])]
    found = pairs(folded)
    assert {key.rpartition(".")[0] for key in changed} == {layer for pair in found for layer in pair}


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_pairs_have_equal_ranges_in_the_end(name: str, shaken: Build) -> None:
    equal = equalise(fold_batch_norm(shaken(name, **NETS[name])))
    for first, second in pairs(equal):
        made, read = equal.get_submodule(first).weight, equal.get_submodule(second).weight
        assert isinstance(made, Tensor) and isinstance(read, Tensor)
        ranges = read.abs().amax((2, 3))
        reads = ranges.amax(0) if len(made) == read.shape[1] else ranges.flatten()  # depthwise: one channel each
        torch.testing.assert_close(made.abs().flatten(1).amax(1), reads, rtol=0.02, atol=1e-6)


def test_which_pairs_there_are(shaken: Build) -> None:
    v3 = pairs(fold_batch_norm(shaken("mobilenet_v3_small", width=0.35)))
    assert ("features.2.block.0.0", "features.2.block.1.0") in v3  # expansion, ReLU, depthwise
    assert ("features.2.block.1.0", "features.2.block.2.0") in v3  # depthwise, ReLU, projection
    assert ("features.1.block.1.fc1", "features.1.block.1.fc2") in v3  # in squeeze-and-excite
    assert not any(first.startswith("features.1.block.0") for first, _ in v3)  # the gate reads it too
    assert not any(first.startswith("features.4.block.0") for first, _ in v3)  # hard-swish
    assert pairs(fold_batch_norm(shaken("resnet18"))) == [
        (f"layer{layer}.{block}.conv1", f"layer{layer}.{block}.conv2") for layer in range(1, 5) for block in range(2)
    ]
    assert len(pairs(fold_batch_norm(shaken("vgg11_bn")))) == 7  # through max pools
    v2 = pairs(fold_batch_norm(shaken("mobilenet_v2", width=0.35)))
    assert v2 == [("features.1.conv.1", "features.2.conv.0.0"), ("features.17.conv.2", "features.18.0")]  # ReLU6


def test_a_dead_channel_stays_as_it_is(shaken: Build) -> None:
    folded = fold_batch_norm(shaken("resnet18"))
    conv1 = folded.get_submodule("layer1.0.conv1")
    assert isinstance(conv1, nn.Conv2d) and conv1.bias is not None
    with torch.no_grad():
        conv1.weight[3] = 0
    equal, images = equalise(folded), torch.randn(2, 3, 64, 64)
    assert torch.equal(equal.get_parameter("layer1.0.conv1.bias")[3], conv1.bias[3])
    with torch.no_grad():
        torch.testing.assert_close(equal(images), folded(images), rtol=1e-4, atol=1e-4)


def rounded_weights(net: Net, but: str = "") -> Net:
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and name != but:
                module.weight.copy_(round_weight(module.weight))
            if isinstance(module, SelfAttention):
                module.in_proj_weight.copy_(round_weight(module.in_proj_weight))
    return net


def means(net: Net, images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            found[name] = channel_means(output.detach())

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "resnet18", "shufflenet_v1_x1_0_g4"])
def test_corrected_biases_restore_the_means(name: str, shaken: Build) -> None:
    folded, images = fold_batch_norm(shaken(name, **NETS[name])), torch.randn(4, 3, 64, 64)
    state = {key: value.clone() for key, value in folded.state_dict().items()}
    expected = means(folded, images)
    corrected = correct_bias(folded, images)
    for key, value in corrected.state_dict().items():
        assert key.endswith("weight") == torch.equal(value, state.get(key, torch.tensor(0.0)))  # biases alone change
    off = means(rounded_weights(fold_batch_norm(folded)), images)
    found = means(rounded_weights(corrected), images)
    scale = {layer: value.abs().max() for layer, value in expected.items()}
    worst = {kind: max(((m[k] - expected[k]).abs().max() / scale[k]).item() for k in m) for kind, m in
             (("before", off), ("after", found))}  # fmt: skip
    assert worst["after"] < 1e-3 < worst["before"]
    assert all(torch.equal(state[key], value) for key, value in folded.state_dict().items())


def test_a_layer_that_stays_in_float_is_corrected_for_the_others(shaken: Build) -> None:
    folded, images = fold_batch_norm(shaken("mobilenet_v2", width=0.35)), torch.randn(4, 3, 64, 64)
    kept = "features.1.conv.0.0"
    expected = means(folded, images)
    corrected = correct_bias(folded, images, keep_float=[kept])
    found = means(rounded_weights(corrected, but=kept), images)
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, atol=1e-3 * value.abs().max().item(), rtol=0)


def test_attention_is_corrected_too(shaken: Build) -> None:
    """Its queries, keys and values are computed from a weight and a bias that belong to no layer of their own."""
    net, images = shaken("vit_ti_32", image_px=64), torch.randn(4, 3, 64, 64)
    first = "encoder.layers.encoder_layer_0.self_attention.in_proj"
    corrected = correct_bias(net, images)
    assert torch.equal(corrected.get_parameter(f"{first}_weight"), net.get_parameter(f"{first}_weight"))
    assert not torch.equal(corrected.get_parameter(f"{first}_bias"), net.get_parameter(f"{first}_bias"))
    expected, found = means(net, images), means(rounded_weights(corrected), images)
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, atol=1e-3 * value.abs().max().item(), rtol=0)


def test_weights_that_are_computed_are_left_as_they_are() -> None:
    """A convolution that standardises its filters as it runs has no bias, and would not read one."""

    class Own(nets.Net):
        smallest_px = 8

        def __init__(self) -> None:
            super().__init__()
            self.conv = StdConv2d(3, 4, 3)
            self.classifier = nn.Sequential(nn.Linear(4, 2))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.conv(images).mean((2, 3)))
            return logits

    net = Own().eval()
    corrected = correct_bias(net, torch.randn(4, 3, 8, 8))
    assert corrected.state_dict().keys() == net.state_dict().keys()
    assert not torch.equal(corrected.get_parameter("classifier.0.bias"), net.get_parameter("classifier.0.bias"))


def test_layers_without_a_bias_get_one(shaken: Build) -> None:
    net, images = shaken("resnet20"), torch.randn(4, 3, 32, 32)
    corrected = correct_bias(net, images)
    assert net.get_submodule("conv1").bias is None
    assert isinstance(corrected.get_submodule("conv1").bias, nn.Parameter)
