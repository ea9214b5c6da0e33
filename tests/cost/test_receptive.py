"""What a unit sees: hand-made graphs against arithmetic, and every family against gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens import nets
from handlens.cost import layers
from handlens.cost.layers import Layer

FAMILIES = {  # a small member of each: (arguments, height and width of the photo, published receptive field or None)
    "mobilenet_v1": ({"width": 0.25}, (480, 32), 315),
    "mobilenet_v2": ({"width": 0.35}, (640, 32), 491),
    "mobilenet_v3_small": ({"width": 0.35}, (832, 32), None),
    "mobilenet_v3_large": ({"width": 0.35}, (896, 32), None),
    "xception": ({}, (1248, 71), None),
    "shufflenet_v1_x0_25_g8": ({}, (704, 32), None),
    "shufflenet_v2_x0_5": ({}, (704, 32), None),
    "efficientnet_b0": ({}, (1056, 32), None),
    "efficientnet_lite0": ({}, (1056, 32), None),
    "resnet18": ({}, (608, 32), 435),
    "resnet50": ({}, (608, 32), None),
    "resnet20": ({}, (128, 32), None),
    "alexnet": ({}, (320, 67), 195),
    "vgg11": ({}, (288, 32), None),
    "googlenet": ({}, (896, 32), None),
    "inception_v3": ({}, (1504, 75), 1311),
    "vit_base_r50_s16_224": ({}, (640, 32), None),  # the ResNet before the tokens
}  # published: Araujo et al. 2019, table 1
LARGE = ("xception", "inception_v3", "efficientnet_b0", "vit_base_r50_s16_224")


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps gradients from a unit's window: the greatest is replaced by the mean, ReLU by nothing."""

    def average(maps: Tensor, size: Any, stride: Any = None, padding: Any = 0, *rest: Any, **named: Any) -> Tensor:
        ceil = named.get("ceil_mode", rest[1] if len(rest) > 1 else False)
        return F.avg_pool2d(maps, size, stride, padding, ceil)

    monkeypatch.setattr(F, "max_pool2d", average)
    monkeypatch.setattr(F, "relu", lambda maps, inplace=False: maps)


def prepared(name: str, **arguments: Any) -> nets.Net:
    """The network in float64 with positive weights that keep a map's mean: no sum of paths is zero by chance.

    Without what comes after the maps, most of the weights of some.
    """
    net = nets.on_meta(name, 10, **arguments).double().eval()
    net.classifier, net.encoder = nn.Sequential(), nn.Identity()
    net.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for key, value in net.named_parameters():
            if value.ndim > 1:
                value.uniform_(0.5, 1.5).div_(value[0].numel())
            else:
                value.fill_(0.0 if key.endswith("bias") else 1.0)
        for key, value in net.named_buffers():
            value.fill_(1.0 if key.endswith("var") else 0.0)
    return net


def seen(maps: Callable[[Tensor], Tensor], size: tuple[int, int]) -> tuple[int, int, int]:
    """(unit, first row, last row): the rows of the photo that reach the unit in the middle of a map."""
    photo = (torch.rand(1, 3, *size, dtype=torch.float64) * 1e-6).requires_grad_()
    found = maps(photo)
    unit = found.shape[2] // 2
    found[0, :, unit].sum().backward()
    assert photo.grad is not None
    rows = photo.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    return unit, int(rows[0]), int(rows[-1])


def last_map(name: str, **arguments: Any) -> Layer:
    net, px = nets.on_meta(name, 10, **arguments), nets.entry(name).image_px
    return [layer for layer in layers.trace(net, px).layers if layer.receptive_field_px and layer.is_map][-1]


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in FAMILIES]
)
def test_gradients_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, (height, width), published = FAMILIES[name]
    net = prepared(name, **arguments)
    for module in net.modules():
        if type(module).__name__ == "SqueezeExcite":  # factors, which see everything, are held fixed
            gates = module.gates
            monkeypatch.setattr(module, "gates", lambda maps, gates=gates: gates(maps).detach())
        if isinstance(module, nn.GroupNorm):
            monkeypatch.setattr(module, "forward", lambda maps: maps)
    maps = (lambda photo: net.patches(photo)) if name.startswith("vit") else (lambda photo: net.features(photo)[-1])
    unit, first, last = seen(maps, (height, width))
    assert first > 0 and last < height - 1, "the photo is too small to measure on"
    layer = last_map(name, **arguments)
    assert layer.receptive_field_px == last - first + 1
    assert layer.centre_px is not None and layer.stride_px is not None
    assert layer.centre_px + unit * layer.stride_px == (first + last + 1) / 2
    assert published in (None, layer.receptive_field_px)


@pytest.mark.usefixtures("linear")
def test_both_sides_of_one_sided_filters() -> None:
    """Inception-v3's 1x7 and 7x1: the larger side is told."""
    net = nn.Sequential(nn.Conv2d(3, 2, (1, 7), padding=(0, 3)), nn.Conv2d(2, 2, (5, 1), padding=(2, 0)))
    traced = layers.trace(net, 32).layers
    assert [layer.receptive_field_px for layer in traced] == [7, 7]


@pytest.mark.parametrize("px", [64])
def test_a_gate_sees_the_whole_photo_and_leaves_the_window(px: int) -> None:
    net = prepared("mobilenet_v3_small", width=0.35)
    name = "features.1.block.1"
    maps: list[Tensor] = []
    net.get_submodule(name).register_forward_hook(lambda module, given, out: maps.append(out))
    photo = (torch.rand(1, 3, px, px, dtype=torch.float64) * 1e-6).requires_grad_()
    net.features(photo)
    maps[0][0, 0, 8, 8].backward()
    assert photo.grad is not None and (photo.grad != 0).all()
    by_name = {layer.name: layer for layer in layers.trace(nets.on_meta("mobilenet_v3_small", width=0.35), px).layers}
    gated = by_name[f"{name}.mul"]
    assert (gated.receptive_field_px, gated.sees_all) == (7, True)
    pooled = by_name[f"{name}.mean"]
    assert (pooled.receptive_field_px, pooled.sees_all, pooled.is_map) == (None, True, False)
    assert not by_name["features.1.block.0.2"].sees_all


def test_attention_sees_the_whole_photo() -> None:
    net = nets.create("vit_ti_32", 10).double().eval()
    photo = torch.rand(1, 3, 224, 224, dtype=torch.float64).requires_grad_()
    tokens = net.tokens(net.patches(photo))
    tokens[0, 9].sum().backward()
    assert photo.grad is not None
    rows, columns = photo.grad.abs().sum((0, 1)).nonzero().T
    by_name = {layer.name: layer for layer in layers.trace(net, 224).layers}
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == by_name["tokens"].receptive_field_px
    assert by_name["tokens"].receptive_field_px == by_name["conv_proj"].receptive_field_px == 32
    photo.grad = None
    net.encoder.layers[0](net.tokens(net.patches(photo)))[0, 9].sum().backward()
    assert (photo.grad != 0).all()
    after = [layer for layer in layers.trace(net, 224).layers if "encoder_layer_1" in layer.name]
    assert after and all(layer.receptive_field_px is None and layer.sees_all for layer in after)


# ---- by arithmetic -----------------------------------------------------------------------------------------------
class Made(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, run: Callable[[Made, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 4, 5, padding=2)
        self.c = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.linear = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def shuffled(maps: Tensor) -> Tensor:
    return maps.reshape(1, 2, 2, 32, 32).transpose(1, 2).flatten(1, 2)


def windows(maps: Tensor) -> Tensor:
    """(1, 4, 32, 32) -> (16, 64, 4): windows of 8 x 8 as batches of tokens."""
    return maps.reshape(1, 4, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(16, 64, 4)


def on_each(layer: nn.Module, maps: Tensor) -> Tensor:
    return layer(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def attend(tokens: Tensor) -> Tensor:
    return (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[Any, ...]]] = {
    # how it is computed: (receptive_field_px, sees_all, stride_px, centre_px) of what it gives
    "one layer": (lambda m, x: m.a(x), (3, False, 1, 0.5)),
    "wider of two branches": (lambda m, x: m.a(x) + m.b(x), (5, False, 1, 0.5)),
    "joined branches": (lambda m, x: torch.cat((m.a(x), m.b(x)), 1), (5, False, 1, 0.5)),
    "a branch apart": (lambda m, x: m.a(x) + F.pad(m.a(x), (2, 0, 2, 0))[..., :-2, :-2], (5, False, 1, -0.5)),
    "strides": (lambda m, x: m.c(m.c(m.a(x))), (9, False, 4, 0.5)),
    "padding at the end": (lambda m, x: m.c(F.pad(m.a(x), (0, 1, 0, 1))), (5, False, 2, 0.5)),
    "padding at the start": (lambda m, x: m.c(F.pad(m.a(x), (1, 0, 1, 0))), (5, False, 2, -0.5)),
    "every second": (lambda m, x: m.a(x)[:, :, 1::2, 1::2] + 0, (3, False, 2, 1.5)),
    "dilation": (lambda m, x: F.conv2d(x, m.a.weight, padding=3, dilation=3), (7, False, 1, 0.5)),
    "average pool": (lambda m, x: F.avg_pool2d(m.a(x), 2), (4, False, 2, 1.0)),
    "adaptive pool": (lambda m, x: F.adaptive_avg_pool2d(m.a(x), 8), (6, False, 4, 2.0)),
    "pooled to one": (lambda m, x: F.adaptive_avg_pool2d(m.a(x), 1), (None, True, None, None)),
    "in another order of memory": (
        lambda m, x: F.adaptive_avg_pool2d(m.a(x).contiguous(memory_format=torch.channels_last), 1) * 2,
        (None, True, None, None),
    ),
    "mean": (lambda m, x: m.a(x).mean((2, 3)), (None, True, None, None)),
    "mean by mean": (lambda m, x: m.a(x).mean(3).mean(2), (None, True, None, None)),
    "channel mean": (lambda m, x: m.a(x).mean(1, keepdim=True), (3, False, 1, 0.5)),
    "flattened into a layer": (lambda m, x: F.linear(m.a(x).flatten(1), x.new_ones(2, 4096)), (None, True, None, None)),
    "layer on each pixel": (lambda m, x: m.linear(m.a(x).permute(0, 2, 3, 1)), (3, False, 1, 0.5)),
    "and windows after it": (lambda m, x: m.c(on_each(m.linear, m.a(x))), (5, False, 2, 0.5)),
    "tokens made a map again": (lambda m, x: m.c((m.a(x).flatten(2) * 2).unflatten(2, (32, 32))), (5, False, 2, 0.5)),
    "otherwise split": (lambda m, x: m.c(m.a(x).flatten(2).unflatten(2, (16, 64))), (None, False, None, None)),
    "tokens": (lambda m, x: m.linear(m.a(x).flatten(2).transpose(1, 2)), (3, False, 1, 0.5)),
    "tokens mixed": (lambda m, x: attend(m.a(x).flatten(2).transpose(1, 2)), (None, True, None, None)),
    "mixed and added": (lambda m, x: m.a(x) + m.a(x).mean((2, 3), keepdim=True), (None, True, None, None)),
    "greater of two": (lambda m, x: torch.maximum(m.a(x), m.b(x)).max(m.a(x)), (5, False, 1, 0.5)),
    "greatest": (lambda m, x: m.a(x).amax((2, 3)), (None, True, None, None)),
    "gate": (lambda m, x: m.a(x) * m.b(x).mean((2, 3), keepdim=True), (3, True, 1, 0.5)),
    "spatial gate": (lambda m, x: m.a(x) * m.b(x).sigmoid(), (5, False, 1, 0.5)),
    "group norm": (lambda m, x: F.group_norm(m.a(x), 2), (3, True, 1, 0.5)),
    "instance norm": (lambda m, x: F.instance_norm(m.a(x)), (3, True, 1, 0.5)),
    "shuffled channels": (lambda m, x: m.c(shuffled(m.b(x))), (7, False, 2, 0.5)),
    "halves of channels": (lambda m, x: torch.cat(m.a(x).chunk(2, 1)[::-1], 1), (3, False, 1, 0.5)),
    "attention in windows": (lambda m, x: attend(windows(m.a(x))), (None, False, None, None)),  # not known
    "transposed": (lambda m, x: F.conv_transpose2d(m.c(m.a(x)), m.c.weight, stride=2), (None, False, None, None)),
    "enlarged": (lambda m, x: F.interpolate(m.a(x), scale_factor=2, mode="bilinear"), (None, False, None, None)),
    "gate, then something unknown": (
        lambda m, x: F.interpolate(m.a(x) * m.b(x).mean((2, 3), keepdim=True), scale_factor=2),
        (None, False, None, None),
    ),
    "gate on something unknown": (
        lambda m, x: F.interpolate(m.a(x), scale_factor=2) * m.b(x).mean((2, 3), keepdim=True),
        (None, False, None, None),
    ),
    "gate, then mixed along one side": (
        lambda m, x: F.group_norm(m.a(x), 2).softmax(3) * 1,
        (None, False, None, None),
    ),
    "norm of something unknown": (
        lambda m, x: F.group_norm(F.interpolate(m.a(x), size=33), 2),
        (None, False, None, None),
    ),
    "all of it, then something unknown": (
        lambda m, x: F.interpolate(m.a(x) + m.a(x).mean((2, 3), keepdim=True), size=33),
        (None, True, None, None),
    ),
    "after something unknown": (lambda m, x: m.c(F.interpolate(m.a(x), size=33)) + 0, (None, False, None, None)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_by_arithmetic(case: str) -> None:
    run, expected = CASES[case]
    traced = layers.trace(Made(run), 32)
    assert traced.stopped is None
    last = [layer for layer in traced.layers if layer.output_shape][-1]
    assert (last.receptive_field_px, last.sees_all, last.stride_px, last.centre_px) == expected
    assert not last.is_map or case not in (
        "pooled to one",
        "in another order of memory",
        "mean",
        "mean by mean",
        "greatest",
    )
