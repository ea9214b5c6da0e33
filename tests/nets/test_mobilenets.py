"""MobileNet V1, V2 and V3 against torchvision and timm: the same weights give the same logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.errors import HandlensError
from handlens.nets import keys
from handlens.nets.layers import modules_of, round_channels
from handlens.nets.mobilenet_v3 import SqueezeExcite


def by_torchvision(name: str, width: float) -> nn.Module:
    from torchvision.models import mobilenet_v2, mobilenetv3

    if name == "mobilenet_v2":
        return mobilenet_v2(width_mult=width)
    return mobilenetv3.MobileNetV3(*mobilenetv3._mobilenet_v3_conf(name, width_mult=width))


def by_timm(name: str, width: float, padding: str) -> nn.Module:
    from timm.models import efficientnet, mobilenetv3

    same = {"pad_type": "same"} if padding == "tensorflow" else {}
    if name == "mobilenet_v1":
        return efficientnet._gen_mobilenet_v1("mobilenetv1_100", width, **same)
    if name == "mobilenet_v2":
        return efficientnet._gen_mobilenet_v2("mobilenetv2_100", width, **same)
    which = name.removeprefix("mobilenet_v3_").replace("minimalistic", "minimal")
    tf = {"bn_eps": 1e-3, **same} if padding == "tensorflow" else {}  # as timm's entry points of the tf_ variants do
    variant = f"{'tf_' if tf else ''}mobilenetv3_{which}_100"
    return mobilenetv3._gen_mobilenet_v3(variant, width, **tf)


def shake(model: nn.Module) -> None:
    """Random weights, batch-norm statistics and scales, of sizes that keep the signal alive to the logits."""
    random = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if value.ndim >= 2:
            gain = 1 if value.ndim == 2 else 2
            value.normal_(0, math.sqrt(gain / value[0].numel()), generator=random)
        elif key.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5, generator=random)
        elif value.is_floating_point():
            value.normal_(0, 0.2, generator=random)


@torch.no_grad()
def assert_equal_logits(
    reference: nn.Module, ours: nets.Net, rename: Callable[[str], str], image_px: int, tolerance: float = 1e-5
) -> None:
    shake(reference)
    expected_shapes = {key: value.shape for key, value in ours.state_dict().items()}
    renamed = {rename(key): value for key, value in reference.state_dict().items()}
    assert set(renamed) == set(expected_shapes)
    ours.load_state_dict({key: value.reshape(expected_shapes[key]) for key, value in renamed.items()})
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(1))
    expected, logits = reference.eval()(images), ours.eval()(images)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


WIDTHS_AND_SIZES = [(1.0, 96), (1.4, 64), (0.75, 97), (0.35, 131)]
V3 = ("mobilenet_v3_large", "mobilenet_v3_small")


@pytest.mark.parametrize("width,image_px", WIDTHS_AND_SIZES)
@pytest.mark.parametrize("name", ["mobilenet_v2", *V3])
def test_logits_equal_torchvisions(name: str, width: float, image_px: int) -> None:
    scaled = {"scale_head": True} if name in V3 else {}
    ours = nets.create(name, width=width, **scaled)
    assert_equal_logits(by_torchvision(name, width), ours, lambda key: keys.rename("torchvision", name, key), image_px)


@pytest.mark.parametrize("padding", ["symmetric", "tensorflow"])
@pytest.mark.parametrize("width,image_px", WIDTHS_AND_SIZES)
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", *V3])
def test_logits_equal_timms(name: str, width: float, image_px: int, padding: str) -> None:
    if name == "mobilenet_v1" and width == 0.35:
        width = 0.25
    reference = by_timm(name, width, padding)
    ours = nets.create(name, width=width, padding=padding, bn_eps=eps_of(reference))
    assert_equal_logits(reference, ours, lambda key: keys.rename("timm", name, key), image_px)


@pytest.mark.parametrize("image_px", [96, 97])
@pytest.mark.parametrize("name", ["mobilenet_v3_large_minimalistic", "mobilenet_v3_small_minimalistic"])
def test_minimalistic_logits_equal_timms(name: str, image_px: int) -> None:
    reference = by_timm(name, 1.0, "tensorflow")
    ours = nets.create(name, padding="tensorflow")
    assert eps_of(reference) == eps_of(ours) == 1e-3
    assert_equal_logits(reference, ours, lambda key: keys.rename("timm", name, key), image_px)


@pytest.mark.parametrize("name,factory", [("mobilenet_v2", "mobilenet_v2"), *((name, name) for name in V3)])
def test_defaults_are_torchvisions(name: str, factory: str) -> None:
    import torchvision.models

    with torch.device("meta"):
        theirs = getattr(torchvision.models, factory)()
    ours = nets.on_meta(name)
    assert eps_of(ours) == eps_of(theirs)
    assert [m.p for m in modules_of(ours, nn.Dropout)] == [m.p for m in modules_of(theirs, nn.Dropout)]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize("width", [0.5, 0.65, 0.9, 1.1, 1.6, 2.0])
@pytest.mark.parametrize("name", V3)
def test_shapes_at_unpublished_widths(name: str, width: float) -> None:
    with torch.device("meta"):
        torchvisions, timms = by_torchvision(name, width), by_timm(name, width, "symmetric")
    assert shapes(nets.on_meta(name, width=width, scale_head=True)) == shapes(torchvisions)
    assert shapes(nets.on_meta(name, width=width)) == shapes(timms)


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Of convolutions and linear layers in their order; timm's 1x1 convolution of the head counts as linear."""
    layers = (module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    return sorted(tuple(size for size in layer.weight.shape if size > 1) for layer in layers)


def eps_of(model: nn.Module) -> float:
    (eps,) = {module.eps for module in modules_of(model, nn.BatchNorm2d)}  # type: ignore[attr-defined]
    return eps


def test_minimalistic_has_no_squeeze_no_h_swish_no_5x5() -> None:
    for name in V3:
        net = nets.on_meta(name, minimalistic=True)
        kinds = {type(module) for module in net.modules()}
        assert not kinds & {nn.Hardswish, SqueezeExcite}
        assert {module.kernel_size[0] for module in modules_of(net, nn.Conv2d)} == {1, 3}  # type: ignore[attr-defined]
        full = nets.on_meta(name)
        assert {nn.Hardswish, SqueezeExcite} <= {type(module) for module in full.modules()}
        assert 5 in {module.kernel_size[0] for module in modules_of(full, nn.Conv2d)}  # type: ignore[attr-defined]


def test_draft_has_the_wide_head() -> None:
    assert nets.on_meta("mobilenet_v3_small_draft").num_features == 1280
    assert nets.on_meta("mobilenet_v3_small").num_features == 1024


def named_widths() -> Iterator[tuple[str, float]]:
    for name, entry in nets.NETS.items():
        if entry.family == "mobilenet" and name[-3:].isdigit():
            yield name, int(name[-3:]) / 100


@pytest.mark.parametrize("name,width", list(named_widths()))
def test_a_named_width_is_that_width(name: str, width: float) -> None:
    named, given = nets.on_meta(name), nets.on_meta(name[:-4], width=width)
    assert shapes(named) == shapes(given)
    assert shapes(named) != shapes(nets.on_meta(name[:-4]))


@pytest.mark.parametrize(
    "channels,expected", [(32 * 0.75, 24), (24 * 0.35, 8), (16 * 0.35, 8), (1.0, 8), (12, 16), (18, 24), (100, 104)]
)
def test_channels_are_multiples_of_8_and_never_below_90_percent(channels: float, expected: int) -> None:
    assert round_channels(channels) == expected
    for tenth in range(10, 5000, 7):
        rounded = round_channels(tenth / 10)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * tenth / 10


@pytest.mark.parametrize("width", [0.001, 0.03])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", *V3])
def test_a_width_that_leaves_no_channel_is_refused(name: str, width: float) -> None:
    with pytest.raises(HandlensError, match="larger width"):
        nets.on_meta(name, width=width)


@pytest.mark.parametrize("width", [0, -1, 17, math.nan, "1", None])
def test_a_width_that_is_none_is_refused(width: Any) -> None:
    with pytest.raises(HandlensError, match="width is"):
        nets.on_meta("mobilenet_v1", width=width)


def test_padding_changes_the_logits() -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("mobilenet_v1", "mobilenet_v2", *V3):
        logits: list[Tensor] = []
        for padding in ("symmetric", "tensorflow"):
            net = nets.create(name, 5, width=0.25, padding=padding).eval()
            shake(net)
            logits.append(net(images))
        assert (logits[0] - logits[1]).abs().max() > 0.01
