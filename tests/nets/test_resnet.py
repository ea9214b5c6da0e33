"""ResNet against the paper's figures, torchvision's networks, and what residuals and shortcuts mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.errors import HandlensError
from handlens.nets.layers import StochasticDepth, modules_of
from handlens.nets.resnet import ZeroPad, resnet, resnet_cifar

# name: input px, classes, parameters, MACs with the stride in the 3x3. Shortcuts' projections: 173,824 parameters and
# 19,267,584 MACs, which the plain networks lack; the CIFAR networks' shortcuts have none.
FIGURES = {
    "resnet18": (224, 1000, 11_689_512, 1_814_073_344),
    "resnet34": (224, 1000, 21_797_672, 3_663_761_408),
    "resnet50": (224, 1000, 25_557_032, 4_089_184_256),
    "resnet101": (224, 1000, 44_549_160, 7_801_405_440),
    "resnet152": (224, 1000, 60_192_808, 11_513_626_624),
    "plain18": (224, 1000, 11_689_512 - 173_824, 1_814_073_344 - 19_267_584),
    "plain34": (224, 1000, 21_797_672 - 173_824, 3_663_761_408 - 19_267_584),
    "resnet20": (32, 10, 269_722, 40_551_040),
    "resnet32": (32, 10, 464_154, 68_862_592),
    "resnet44": (32, 10, 658_586, 97_174_144),
    "resnet56": (32, 10, 853_018, 125_485_696),
    "resnet110": (32, 10, 1_727_962, 252_887_680),
    "resnet1202": (32, 10, 19_421_274, 2_829_238_912),
    "plain20": (32, 10, 269_722, 40_551_040),
    "plain56": (32, 10, 853_018, 125_485_696),
}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "resnet1202" else name for name in FIGURES]


def count_params(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("name", NAMES)
def test_params_and_macs_are_the_published(name: str, macs: Callable[[nn.Module, int], int]) -> None:
    image_px, num_classes, params, expected_macs = FIGURES[name]
    net = nets.on_meta(name, num_classes)
    assert count_params(net) == params
    assert macs(net, image_px) == expected_macs
    assert nets.entry(name).image_px == image_px


@pytest.mark.parametrize("name", NAMES)
def test_layers_with_weights_are_as_many_as_the_name_says(name: str) -> None:
    layers = [path for path, module in nets.on_meta(name).named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    depth = int("".join(filter(str.isdigit, name)))
    assert len([path for path in layers if "downsample" not in path]) == depth


@pytest.mark.parametrize("depth, expected", [(50, 3_857_973_248), (101, 7_570_194_432), (152, 11_282_415_616)])
def test_the_papers_stride_in_the_1x1_costs_less(
    depth: int, expected: int, macs: Callable[[nn.Module, int], int]
) -> None:
    assert macs(nets.on_meta(f"resnet{depth}", stride_in_1x1=True), 224) == expected


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet101", "resnet152")),
    ],
)
def test_logits_equal_torchvisions(name: str, twin: Callable[..., nets.Net]) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.get_model(name, num_classes=7).eval()
    ours = twin(name, theirs, num_classes=7)
    images = torch.randn(2, 3, 75, 96)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < 1e-4


def test_zero_padding_takes_every_second_pixel_and_adds_empty_channels() -> None:
    images = torch.randn(2, 3, 7, 8)
    padded = ZeroPad(3, 5, 2)(images)
    assert padded.shape == (2, 5, 4, 4)
    assert torch.equal(padded[:, :3], images[:, :, 0:7:2, 0:8:2])
    assert not padded[:, 3:].any()


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_shortcuts_a_b_and_c_have_no_some_and_all_projections(name: str) -> None:
    projections = {
        option: {key for key in nets.on_meta(name, shortcut=option).state_dict() if key.endswith("downsample.0.weight")}
        for option in "ABC"
    }
    blocks = 16
    assert projections["A"] == set()
    # a bottleneck's first layer keeps the map's size and widens it, a basic block's keeps both
    assert len(projections["B"]) == {"resnet34": 3, "resnet50": 4}[name]
    assert len(projections["C"]) == blocks and projections["B"] < projections["C"]
    plain = count_params(nets.on_meta(name, residual=False))
    assert count_params(nets.on_meta(name, shortcut="A")) == plain


def test_shortcut_a_runs_in_the_bottleneck() -> None:
    with torch.no_grad():
        assert resnet(50, 5, shortcut="A").eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize("residual", [True, False])
def test_a_block_with_a_silent_branch_is_its_shortcut_or_nothing(residual: bool) -> None:
    net = resnet_cifar(20, residual=residual).eval()
    for path, module in net.named_modules():
        if path.endswith("bn2"):
            nn.init.zeros_(module.weight)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first = net.relu(net.bn1(net.conv1(images)))
        maps = net.features(images)
    if residual:
        assert torch.equal(maps[0], first)
        assert torch.equal(maps[2][:, :16], first[:, :, ::4, ::4]) and not maps[2][:, 16:].any()
    else:
        assert first.any() and not maps[0].any()


def test_stages_halve_the_map() -> None:
    with torch.device("meta"):
        photo, thumbnail = torch.empty(1, 3, 224, 224), torch.empty(1, 3, 32, 32)
    shapes = [tuple(each.shape[1:]) for each in nets.on_meta("resnet50").features(photo)]
    assert shapes == [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    shapes = [tuple(each.shape[1:]) for each in nets.on_meta("resnet20").features(thumbnail)]
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("name, blocks", [("resnet50", 16), ("resnet20", 9), ("plain34", 0)])
def test_every_residual_branch_can_be_dropped(name: str, blocks: int) -> None:
    net = nets.on_meta(name)
    nets.set_stochastic_depth(net, 0.2)
    probabilities = [layer.p for layer in modules_of(net, StochasticDepth)]
    assert len(probabilities) == blocks
    assert probabilities == sorted(probabilities)
    assert probabilities[-1:] == ([0.2] if blocks else [])


@pytest.mark.parametrize("name, smallest_px", [("resnet18", 32), ("resnet20", 4)])
def test_the_smallest_input_leaves_one_pixel(name: str, smallest_px: int) -> None:
    net = nets.on_meta(name).eval()
    assert net.smallest_px == smallest_px
    assert net.features(torch.empty(1, 3, smallest_px, smallest_px, device="meta"))[-1].shape[-2:] == (1, 1)
    with pytest.raises(HandlensError, match=f"{smallest_px} px"):
        nets.check_input(net, smallest_px - 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_an_unknown_shortcut_is_refused(name: str) -> None:
    with pytest.raises(HandlensError, match="'D', expected 'A', 'B' or 'C'"):
        nets.create(name, shortcut="D")


def test_a_named_depth_cannot_be_changed() -> None:
    with pytest.raises(HandlensError, match="takes no 'depth'"):
        nets.create("resnet18", depth=50)
