"""The whole account of a network: by name, built, someone's own, and one that cannot be traced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from handlens import cost, nets
from handlens.errors import HandlensError


def test_by_name_and_built_are_the_same(settled: Callable[[Callable[[], cost.Report]], cost.Report]) -> None:
    by_name = settled(lambda: cost.report_on("mobilenet_v3_large", 192, width=0.75, num_classes=7))
    net = nets.create("mobilenet_v3_large", 7, width=0.75)
    assert by_name == settled(lambda: cost.report_on(net, 192))
    assert (by_name.num_params, by_name.macs) == cost.count("mobilenet_v3_large", 192, width=0.75, num_classes=7)
    assert by_name.stopped is None
    assert (by_name.receptive_field_px, by_name.sees_all) == (595, True)
    assert by_name.peak_activation_bytes and by_name.peak_training_bytes
    assert by_name.peak_training_bytes > 2 * by_name.peak_activation_bytes


def test_the_published_size_is_the_default() -> None:
    assert cost.report_on("resnet20").image_px == 32
    assert cost.report_on(nn.Conv2d(3, 4, 3)).image_px == 224


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mobilenet_v1_025", (315, False)), ("vit_ti_32", (None, True)), ("resnet18", (435, False))],
)
def test_what_the_last_map_sees(name: str, expected: tuple[float | None, bool]) -> None:
    report = cost.report_on(name)
    assert (report.receptive_field_px, report.sees_all) == expected


def test_a_module_of_ones_own() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    report = cost.report_on(net, 33)
    assert (report.num_params, report.macs) == (216 + 8 + 16 + 16 + 2, 216 * 256 + 16)
    assert report.receptive_field_px == 3
    assert [layer.kind for layer in report.layers][-1] == "Linear"


def test_torchvisions_networks_are_modules_like_any() -> None:
    from torchvision.models import mobilenet_v3_small, vit_b_32

    for theirs, name in ((mobilenet_v3_small, "mobilenet_v3_small"), (vit_b_32, "vit_b_32")):
        with torch.device("meta"):
            net = theirs()
        found, ours = cost.report_on(net, 224), cost.report_on(name)
        assert found.stopped is None
        assert (found.num_params, found.macs) == (ours.num_params, ours.macs)
        assert (found.receptive_field_px, found.sees_all) == (ours.receptive_field_px, ours.sees_all)


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images).mean((2, 3))
        return self.head(maps if maps.sum() > 0 else -maps)


def test_what_is_still_counted_of_one_that_cannot_be_traced() -> None:
    report = cost.report_on(Decides(), 32)
    assert report.stopped and "aten._local_scalar_dense) in Decides" in report.stopped
    assert (report.macs, report.peak_activation_bytes, report.peak_training_bytes) == (None, None, None)
    assert (report.receptive_field_px, report.sees_all) == (None, False)
    assert report.num_params == 224 + 18 and report.weight_bytes.float32 == 4 * 242
    assert (report.layers[0].name, report.layers[0].macs) == ("conv", 216 * 900)


class NotBackwards(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError("only for inference")
        return images * 2


def test_one_that_only_cannot_be_trained() -> None:
    report = cost.report_on(nn.Sequential(nn.Conv2d(3, 3, 1), NotBackwards()), 8)
    assert report.macs == 9 * 64 and report.peak_activation_bytes
    assert report.peak_training_bytes is None
    assert report.stopped == "the backward pass of Sequential cannot be traced: NotImplementedError: only for inference"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HandlensError, match="smallest that works is 32"):
        cost.report_on("mobilenet_v2", 31)
    with pytest.raises(HandlensError, match="widht"):
        cost.report_on("mobilenet_v2", 64, widht=2)
    with pytest.raises(HandlensError, match="expected at least 1"):
        cost.report_on(nn.Conv2d(3, 3, 1), -1)
    with pytest.raises(TypeError):
        cost.report_on(nn.Conv2d(3, 3, 1), 32, width=2)
