"""Parameters and multiply-accumulates, recomputed: every published figure of the MobileNets to the last digit."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from handlens import nets
from handlens.cost import Cost, count, count_params
from handlens.errors import HandlensError

PUBLISHED = {  # net: (parameters, MACs) at 224 px
    "mobilenet_v1": (4_231_976, 568_740_352),
    "mobilenet_v1_075": (2_585_560, 325_400_448),
    "mobilenet_v1_050": (1_331_592, 149_497_088),
    "mobilenet_v1_025": (470_072, 41_030_272),
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mobilenet_v2_140": (6_108_776, 582_195_824),
    "mobilenet_v2_035": (1_677_128, 59_285_808),
    "mobilenet_v3_large": (5_483_032, 216_589_760),
    "mobilenet_v3_large_075": (3_993_528, 154_560_624),
    "mobilenet_v3_large_minimalistic": (3_924_288, 209_136_704),
    "mobilenet_v3_small": (2_542_856, 56_510_400),
    "mobilenet_v3_small_075": (2_041_872, 43_399_344),
    "mobilenet_v3_small_minimalistic": (2_044_736, 52_288_448),
    "mobilenet_v3_small_draft": (2_946_568, 56_913_856),
}
NAMES = {
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3-large": "mobilenet_v3_large",
    "MobileNetV3-small": "mobilenet_v3_small",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    assert count(name) == PUBLISHED[name]


@functools.cache
def built(name: str, width: float, scale_head: bool | None) -> nets.Net:
    return nets.on_meta(name, width=width, **({} if scale_head is None else {"scale_head": scale_head}))


def test_the_whole_grid_of_widths_and_resolutions(shared: Path) -> None:
    with (shared / "reference" / "computed_grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 78
    for row in rows:
        name = NAMES[row["family"]]
        scale_head = "torchvision" in row["implementation (computed)"] if "v3" in name else None
        cost = count(built(name, float(row["width"]), scale_head), int(row["resolution"]))
        assert cost == (int(row["params"]), int(row["MACs"])), row


def test_count_equals_arithmetic() -> None:
    """A network small enough to count by hand."""

    class Tiny(nets.Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.classifier = nn.Sequential(nn.Linear(4, 10))

        def features(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [self.conv(images)]

    assert count(Tiny(), 32) == Cost(num_params=4 * 27 + 4 + 40 + 10, macs=16 * 16 * 4 * 27 + 40)


def test_the_network_is_left_as_it_was() -> None:
    net = nets.create("mobilenet_v3_small", 5, width=0.35)
    net.features[0].eval()  # a frozen part stays frozen
    before = {key: value.clone() for key, value in net.state_dict().items()}
    cost = count(net, 64)
    assert net.training and not net.features[0].training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert cost.num_params == count_params(net) == sum(value.numel() for value in net.parameters())
    assert cost == count("mobilenet_v3_small_035", 64, num_classes=5)


def test_the_published_size_is_the_default() -> None:
    assert count("mobilenet_v1") == count("mobilenet_v1", 224)
    assert count("mobilenet_v1").macs > 3 * count("mobilenet_v1", 112).macs


def test_counting_is_in_evaluation() -> None:
    """At 32 px the last maps are 1x1: batch norm in training refuses those of one photo."""
    assert 0 < count("mobilenet_v2", 32).macs < count("mobilenet_v2", 64).macs
    net = nets.create("mobilenet_v3_small", 5, width=0.35).train()
    assert count(net, 32).macs > 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HandlensError, match="mobilenet_v2"):
        count("mobilenet_v22")
    with pytest.raises(HandlensError, match="smallest that works is 32"):
        count("mobilenet_v2", 31)
    with pytest.raises(HandlensError, match="widht"):
        count("mobilenet_v2", 64, widht=2)
    with pytest.raises(TypeError, match="image_px"):
        count(nets.on_meta("mobilenet_v2"))
