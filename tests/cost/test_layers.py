"""The table of layers: its sums, shapes and names, and what happens to a module that cannot be traced."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.cost import count, count_params, layers, macs_of, picture, report_on

MEMBERS = (
    "mobilenet_v1_025", "mobilenet_v2_035", "mobilenet_v3_small_minimalistic", "mobilenet_v3_large_035", "xception",
    "shufflenet_v1_x0_25_g8", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_lite0", "resnet18", "resnet50",
    "resnet20", "plain20", "vit_ti_32", "vit_base_r50_s16_224", "alexnet", "vgg11_lrn", "googlenet",
    "googlenet_torchvision", "inception_v3",
)  # fmt: skip
LARGE = ("xception", "resnet50", "vit_base_r50_s16_224", "googlenet_torchvision", "inception_v3", "efficientnet_lite0")
FAST = [name for name in MEMBERS if name not in LARGE]
SAMPLED = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in nets.NETS]


@pytest.mark.parametrize("name", SAMPLED)
def test_the_sums_are_the_networks(name: str) -> None:
    net, px = nets.on_meta(name), nets.entry(name).image_px
    traced = layers.trace(net, px)
    assert traced.stopped is None
    sums = sum(layer.num_params for layer in traced.layers), sum(layer.macs for layer in traced.layers)
    assert sums == count(net, px)
    assert len({layer.name for layer in traced.layers}) == len(traced.layers)
    assert all(layer.sees_all or layer.receptive_field_px for layer in traced.layers if layer.output_shape)


def both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MEMBERS])
def test_sizes_follow_the_formula(name: str) -> None:
    """N = (W - F + 2P) / S + 1, rounded down, or up where the layer says so (ceil_mode)."""
    net, px = nets.on_meta(name).eval(), nets.entry(name).image_px
    inputs: dict[str, torch.Size] = {}
    for path, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            module.register_forward_pre_hook(lambda _, given, path=path: inputs.__setitem__(path, given[0].shape))
    with torch.no_grad():
        net(torch.empty(1, 3, px, px, device="meta"))
    shapes = {layer.name: layer.output_shape for layer in layers.trace(nets.on_meta(name), px).layers}
    for path, shape in inputs.items():
        module = net.get_submodule(path)
        ceil = getattr(module, "ceil_mode", False)
        sizes = []
        for w, f, p, s in zip(shape[-2:], *map(both, (module.kernel_size, module.padding, module.stride)), strict=True):
            if getattr(module, "same", False):
                sizes.append(-(-w // s))
                continue
            n = (math.ceil if ceil else math.floor)((w - f + 2 * p) / s) + 1
            sizes.append(n - (ceil and (n - 1) * s >= w + p))  # torch: no window begins beyond the padded map
        assert shapes[path] is not None and list(shapes[path][-2:]) == sizes, path
    assert len(inputs) > 5 or name.startswith("vit")


def test_rounding_up_makes_another_size() -> None:
    pools = nn.Sequential(nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 2, ceil_mode=True))
    assert [layer.output_shape for layer in layers.trace(pools, 12).layers] == [(3, 5, 5), (3, 3, 3)]


def test_what_is_in_the_table() -> None:
    by_name = {layer.name: layer for layer in layers.trace(nets.on_meta("resnet18"), 224).layers}
    conv = by_name["layer2.0.conv1"]
    assert (conv.kind, conv.output_shape, conv.num_params) == ("Conv2d", (128, 28, 28), 128 * 64 * 9)
    assert conv.macs == conv.num_params * 28 * 28
    assert (by_name["bn1"].num_params, by_name["bn1"].macs) == (128, 0)
    assert by_name["layer1.0.add"].kind == "add"
    assert by_name["layer1.0.relu (2)"].output_shape == (64, 56, 56)
    assert by_name["classifier.0"].output_shape == (1000,)


def test_attention_is_counted_where_it_is() -> None:
    found = layers.trace(nets.on_meta("vit_ti_32"), 224).layers
    attention = [layer for layer in found if layer.kind.startswith("scaled_dot_product")]
    assert [layer.macs for layer in attention] == [2 * 50 * 50 * 192] * 12  # 7 x 7 patches and the class token
    projected = next(layer for layer in found if layer.kind == "addmm")
    assert (projected.output_shape, projected.num_params) == ((50, 576), 192 * 576 + 576)


def test_what_is_not_run_has_its_parameters_too() -> None:
    found = layers.trace(nets.on_meta("googlenet_torchvision"), 224).layers
    assert sum(layer.num_params for layer in found if layer.output_shape is None) == 0  # it has no auxiliary heads
    found = layers.trace(nets.on_meta("inception_v3"), 299).layers
    idle = [layer for layer in found if layer.output_shape is None]
    assert all(layer.macs == 0 and layer.receptive_field_px is None for layer in idle)
    assert sum(layer.num_params for layer in idle) == 3_326_696  # Inception-v3's auxiliary classifier


def test_a_module_used_twice_and_shared_weights() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    found = layers.trace(nn.Sequential(shared, nn.ReLU(), shared), 16).layers
    assert [(layer.name, layer.num_params, layer.receptive_field_px) for layer in found] == [
        ("0", 84, 3),
        ("1", 0, 3),
        ("0 (2)", 0, 5),
    ]


def test_the_network_is_left_as_it_was() -> None:
    net = nets.create("mobilenet_v3_small_035", 5).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    layers.trace(net, 64)
    assert net.training and all(value.grad is None for value in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not torch.nn.modules.module._global_forward_hooks


# ---- what does not read the photo ---------------------------------------------------------------------------------
def sums(traced: layers.Traced) -> tuple[int, int]:
    return sum(layer.num_params for layer in traced.layers), sum(layer.macs for layer in traced.layers)


def test_a_position_bias_from_a_small_network_is_counted() -> None:
    net = pytest.importorskip("torchvision").models.swin_v2_t()
    traced = layers.trace(net, 64)
    assert traced.stopped is None
    assert sums(traced) == (count_params(net), macs_of(net, 1, 3, 64, 64))
    bias = next(layer for layer in traced.layers if layer.name == "features.1.0.attn.cpb_mlp.0")
    assert (bias.output_shape, bias.num_params, bias.macs) == ((1, 15, 15, 512), 3 * 512, 15 * 15 * 2 * 512)
    assert (bias.receptive_field_px, bias.sees_all, bias.is_map) == (None, False, False)


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.value.expand(len(tokens), -1, -1)


class Tokens(nn.Module):
    """A class token, positions from an embedding and a product of two weights: none of them reads the photo."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.zeros(2, 3, 4)), nn.Parameter(torch.zeros(2, 4, 8))
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = Token()
        self.positions = nn.Embedding(5, 8)
        self.idle = nn.Parameter(torch.zeros(7))

    def forward(self, images: Tensor) -> Tensor:
        mixed = (self.left @ self.right).sum((0, 1))
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token(tokens), tokens], 1) + self.positions(torch.arange(5))
        self.idle.sum()
        return tokens + mixed


def test_tokens_positions_and_products_of_weights_are_counted() -> None:
    net = Tokens()
    traced = layers.trace(net, 8)
    assert traced.stopped is None
    by_name = {layer.name: layer for layer in traced.layers}
    assert (by_name["token"].output_shape, by_name["token"].num_params) == ((1, 1, 8), 8)
    assert (by_name["positions"].output_shape, by_name["positions"].num_params) == ((5, 8), 40)
    assert (by_name["bmm"].num_params, by_name["bmm"].macs) == (2 * 3 * 4 + 2 * 4 * 8, 2 * 3 * 4 * 8)
    assert sums(traced) == (count_params(net), macs_of(net, 1, 3, 8, 8))


def test_the_norm_of_weights_has_their_parameters() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 5, 1))
    report = report_on(net, 8)
    assert report.stopped is None
    norm = report.layers[0]
    assert (norm.kind, norm.output_shape, norm.num_params) == ("_WeightNorm", (4, 3, 3, 3), 4 + 108)
    assert sum(layer.num_params for layer in report.layers) == report.num_params
    assert picture.stages(report.layers) == [("6 x 6", report.num_params, 36 * (108 + 20))]


def test_parameters_are_not_lost_where_it_stops() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(9, 2))
    traced = layers.trace(net, 8)
    assert traced.stopped and traced.stopped.startswith("aten.addmm in 2 (Linear) cannot be traced")
    assert [(layer.name, layer.num_params, layer.output_shape) for layer in traced.layers] == [
        ("0", 16, (4, 8, 8)),
        ("1", 0, (256,)),
        ("2", 20, None),
    ]


class Hides(nn.Module):
    """Calls a module that is kept elsewhere."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))
        self.others = [other]

    def forward(self, images: Tensor) -> Tensor:
        return self.others[0](images * self.gain) + 1


def test_a_module_within_one_without_modules() -> None:
    conv = nn.Conv2d(3, 3, 1)
    net = nn.Sequential(Hides(conv), conv)
    found = layers.trace(net, 4).layers
    assert [(layer.name, layer.num_params) for layer in found][:2] == [("0", 3), ("1", 12)]
    assert [layer.macs for layer in found if layer.kind == "Conv2d"] == [9 * 16] * 2


class Recurrent(nn.Module):
    """Reads the four patches of 4 by 4 pixels one after the other."""

    def __init__(self, kind: type[nn.RNNBase], **arguments: Any) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.reader = kind(8, 16, batch_first=True, **arguments)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.reader(self.patches(images).flatten(2).transpose(1, 2))[0]
        return out[:, -1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("deep", [1, 2])
@pytest.mark.parametrize("ways", [1, 2])
def test_recurrent_layers_count_their_weights_at_every_step(ways: int, deep: int, bias: bool) -> None:
    per_gate = 8 * 16 + 16 * 16  # of the input and of the state
    if deep == 2:
        per_gate += 16 * ways * 16 + 16 * 16
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3)):
        net = Recurrent(kind, num_layers=deep, bidirectional=ways == 2, bias=bias)
        found = {layer.name: layer for layer in layers.trace(net, 8).layers}["reader"]
        assert found.macs == 4 * ways * gates * per_gate, kind
        assert found.num_params == count_params(net.reader) == ways * gates * (per_gate + bias * deep * 2 * 16)
        assert found.output_shape == (4, 16 * ways)


# ---- what cannot be traced ---------------------------------------------------------------------------------------
class Reads(nn.Module):
    """Decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.choice = nn.Identity()
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        pooled = maps.mean((2, 3)) if maps.sum() > 0 else maps.amax((2, 3))
        return self.head(pooled)


class Counts(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[images > 0]


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("expected\nsomething else")


def test_it_stops_at_a_value() -> None:
    traced = layers.trace(Reads(), 32)
    assert traced.stopped == (
        "reading a tensor's value (aten._local_scalar_dense) in Reads cannot be traced: "
        "what it gives depends on the values of the photo, not on its size alone"
    )
    assert [(layer.name, layer.num_params, layer.macs) for layer in traced.layers][:1] == [("conv", 224, 216 * 900)]
    assert traced.layers[-1].name == "head" and traced.layers[-1].num_params == 18
    assert traced.layers[-1].output_shape is None


def test_it_stops_at_a_size_that_depends_on_values() -> None:
    traced = layers.trace(nn.Sequential(nn.Conv2d(3, 4, 1), Counts()), 8)
    assert traced.stopped and "in 1 (Counts) cannot be traced: what it gives depends on the values" in traced.stopped
    assert traced.stopped.startswith("aten.")
    assert traced.layers[0].macs == 4 * 3 * 64


def test_it_stops_at_an_error() -> None:
    traced = layers.trace(nn.Sequential(nn.Conv2d(3, 4, 1), Broken()), 8)
    assert traced.stopped == "the forward method in 1 (Broken) cannot be traced: ValueError: expected"
    traced = layers.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)), 8)
    assert traced.stopped and traced.stopped.startswith("aten.convolution in 1 (Conv2d) cannot be traced: RuntimeErr")
    assert not torch.nn.modules.module._global_forward_hooks
