"""Xception against the paper's and Keras' counts, and timm's port of its author's network."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.nets.layers import modules_of
from handlens.nets.xception import SeparableConv2d


def test_counts_equal_the_papers_and_timms(shared: Path, macs: Callable[[nn.Module, int], int]) -> None:
    net = nets.on_meta("xception")
    params = count_params(net)
    with (shared / "reference" / "timm.csv").open(newline="") as file:
        (timm_row,) = [row for row in csv.DictReader(file) if row["arch"] == "legacy_xception"]
    with (shared / "reference" / "keras.csv").open(newline="") as file:
        (keras_row,) = [row for row in csv.DictReader(file) if row["model"] == "Xception"]
    assert params == int(timm_row["params"]) == int(keras_row["trainable_params"]) == 22_855_952
    assert f"{macs(net, 299) / 1e9:.6f}" == timm_row["GMACs_at_input_size(flop_counter/2)"]


@torch.no_grad()
@pytest.mark.parametrize("image_px", [71, 96])
def test_logits_equal_timms(image_px: int, twin: Callable[..., nets.Net]) -> None:
    reference = pytest.importorskip("timm").create_model("legacy_xception").eval()
    ours = twin("xception", reference, source="timm")
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(1))
    expected, logits = reference(images), ours(images)
    assert expected.std() > 0.05
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_nothing_stands_between_depthwise_and_pointwise() -> None:
    separable = list(modules_of(nets.on_meta("xception"), SeparableConv2d))
    assert len(separable) == 34  # two in each of 3 + 1 boxes, three in each of 8, two at the end
    assert {tuple(name for name, _ in module.named_children()) for module in separable} == {("depthwise", "pointwise")}


@torch.no_grad()
def test_stage_maps_are_not_overwritten_by_later_blocks() -> None:
    # Blocks begin with ReLU; in place, it would clip the maps that `features` gives and the shortcuts read.
    torch.manual_seed(0)
    maps = nets.create("xception").eval().features(torch.randn(1, 3, 71, 71))
    assert len(maps) == 5
    assert all(stage.min() < 0 for stage in maps[1:-1])


def test_every_parameter_is_in_one_block_and_the_smallest_input_works() -> None:
    net = nets.on_meta("xception", num_classes=7)
    in_blocks = [id(parameter) for block in net.blocks() for parameter in block.parameters()]
    assert sorted(in_blocks) == sorted(map(id, net.parameters()))
    assert net.blocks()[-1] is net.classifier
    assert net(torch.empty(2, 3, net.smallest_px, net.smallest_px, device="meta")).shape == (2, 7)
