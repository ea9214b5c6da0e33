"""EfficientNet and its Lite networks against torchvision and timm: counts, logits, and what their scaling keeps."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from handlens import nets
from handlens.errors import HandlensError
from handlens.nets import efficientnet, keys
from handlens.nets.layers import StochasticDepth, modules_of

MEMBERS = [f"efficientnet_b{n}" for n in range(8)]
LITES = [f"efficientnet_lite{n}" for n in range(5)]
# The authors' README of the Lite networks; their MACs also count batch norm, activations and pooling.
LITE_README = {
    "efficientnet_lite0": (4.7, 407), "efficientnet_lite1": (5.4, 631), "efficientnet_lite2": (6.1, 899),
    "efficientnet_lite3": (8.2, 1440), "efficientnet_lite4": (13.0, 2640),
}  # fmt: skip


def rows(table: Path, column: str, names: list[str]) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row[column] in names]


def count(net: nets.Net, image_px: int) -> tuple[int, int]:
    """Parameters and multiply-adds."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, image_px, image_px))
    return sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() // 2


def test_counts_equal_torchvisions(shared: Path) -> None:
    table = rows(shared / "reference" / "torchvision.csv", "model", MEMBERS)
    assert {row["model"] for row in table} == set(MEMBERS)
    for row in table:
        crop_px = json.loads(row["crop_size"])[0]
        params, macs = count(nets.on_meta(row["model"]), crop_px)
        assert params == int(row["num_params_built"])
        assert f"{macs / 1e9:.6f}" == f"{float(row['GMACs_measured(flop_counter/2 @crop)']):.6f}"


def test_counts_equal_timms(shared: Path) -> None:
    table = rows(shared / "reference" / "timm.csv", "arch", ["efficientnet_b0", "efficientnet_lite0"])
    assert len(table) >= 2
    for row in table:
        params, macs = count(nets.on_meta(row["arch"]), 224)
        assert params == int(row["params"])
        assert f"{macs / 1e9:.6f}" == row["GMACs_at_input_size(flop_counter/2)"]


@pytest.mark.parametrize("name", LITES)
def test_lite_counts_are_the_published_ones(name: str) -> None:
    timm = pytest.importorskip("timm")
    params, macs = count(nets.on_meta(name), nets.entry(name).image_px)
    with torch.device("meta"):
        reference = timm.create_model(name)
    assert params == sum(parameter.numel() for parameter in reference.parameters())
    published_millions, published_macs_millions = LITE_README[name]
    assert round(params / 1e6, 1) == published_millions
    assert macs / 1e6 == pytest.approx(published_macs_millions, rel=0.06)


def shake(model: nn.Module) -> None:
    """Weights that keep the signal alive to the logits, and batch-norm statistics and scales away from 0 and 1."""
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[0].numel()), generator=random)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.2, generator=random)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.2, generator=random)
            nn.init.normal_(module.running_mean, 0, 0.2, generator=random)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=random)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)


@torch.no_grad()
def assert_equal_logits(reference: nn.Module, ours: nets.Net, source: str, name: str, image_px: int) -> None:
    shake(reference)
    ours.load_state_dict({keys.rename(source, name, key): value for key, value in reference.state_dict().items()})
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(1))
    expected, logits = reference.eval()(images), ours.eval()(images)
    assert expected.std() > 0.05
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


SLOW_MEMBERS = ["efficientnet_b0", *(pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS[1:])]


@pytest.mark.parametrize("name", SLOW_MEMBERS)
def test_logits_equal_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    assert_equal_logits(models.get_model(name), nets.create(name), "torchvision", name, 70)


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "efficientnet_lite0", *(pytest.param(x, marks=pytest.mark.slow) for x in LITES[1:])]
)
@pytest.mark.parametrize("image_px", [64, 75])
@pytest.mark.parametrize("padding", ["tensorflow", "symmetric"])
def test_logits_equal_timms_under_either_padding(name: str, padding: str, image_px: int) -> None:
    timm = pytest.importorskip("timm")
    tf = padding == "tensorflow"
    ours = nets.create(name, padding=padding, bn_eps=1e-3 if tf else 1e-5)
    assert_equal_logits(timm.create_model(f"tf_{name}" if tf else name), ours, "timm", name, image_px)


@torch.no_grad()
def test_the_two_paddings_differ() -> None:
    symmetric = nets.create("efficientnet_lite0").eval()
    tensorflow = nets.create("efficientnet_lite0", padding="tensorflow").eval()
    shake(symmetric)
    tensorflow.load_state_dict(symmetric.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert (symmetric(images) - tensorflow(images)).abs().max() > 1e-2 * symmetric(images).abs().max()


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b2"])
def test_settings_are_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    ops = pytest.importorskip("torchvision.ops")
    with torch.device("meta"):
        reference, ours = models.get_model(name), nets.on_meta(name)
    rates = [module.p for module in reference.modules() if isinstance(module, ops.StochasticDepth)]
    assert [module.p for module in modules_of(ours, StochasticDepth)] == pytest.approx(rates)
    assert ours.classifier[0].p == reference.classifier[0].p


@pytest.mark.parametrize("name", MEMBERS)
def test_epsilons_are_torchvisions(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        reference = models.get_model(name)
    expected = [module.eps for module in reference.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.eps for module in modules_of(nets.on_meta(name), nn.BatchNorm2d)] == expected


@pytest.mark.parametrize("name", LITES)
def test_lite_has_relu6_no_squeeze_and_an_unscaled_stem_and_head(name: str) -> None:
    net = nets.on_meta(name)
    kinds = {type(module) for module in net.modules()}
    assert nn.ReLU6 in kinds and nn.SiLU not in kinds and efficientnet.SqueezeExcite not in kinds
    assert net.features[0][0].out_channels == 32 and net.num_features == 1280
    assert len(net.features[1]) == len(net.features[7]) == 1


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3", "efficientnet_lite0", "efficientnet_lite4"])
def test_every_parameter_is_in_one_block(name: str) -> None:
    net = nets.on_meta(name)
    in_blocks = [id(parameter) for block in net.blocks() for parameter in block.parameters()]
    assert sorted(in_blocks) == sorted(map(id, net.parameters()))
    assert net.blocks()[-1] is net.classifier


def test_stage_maps_halve() -> None:
    maps = nets.on_meta("efficientnet_b0").features(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(stage.shape[1:]) for stage in maps] == [
        (16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (1280, 7, 7)
    ]  # fmt: skip


def test_width_multiplies_the_members_own() -> None:
    whole, half = nets.on_meta("efficientnet_b2"), nets.on_meta("efficientnet_b2", width=0.5)
    assert (whole.num_features, half.num_features) == (1408, 704)
    with pytest.raises(HandlensError, match="channels"):
        nets.on_meta("efficientnet_b0", width=0.01)


def test_drops_branches_in_training_only() -> None:
    torch.manual_seed(0)
    net = nets.create("efficientnet_lite0", num_classes=3, dropout=0.0, stochastic_depth=0.9)
    for module in modules_of(net, nn.BatchNorm2d):
        module.eval()
        module.momentum = 0.0
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        net.eval()
        assert torch.equal(net(images), net(images))
        for module in modules_of(net, StochasticDepth):
            module.train()
        assert not torch.equal(net(images), net(images))
