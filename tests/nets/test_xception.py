"""Xception against the paper's and Keras' counts, and timm's port of its author's network."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from handlens import nets
from handlens.nets import keys
from handlens.nets.layers import modules_of
from handlens.nets.xception import SeparableConv2d


def test_counts_equal_the_papers_and_timms(shared: Path) -> None:
    net = nets.on_meta("xception")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, 299, 299))
    params = sum(parameter.numel() for parameter in net.parameters())
    with (shared / "reference" / "timm.csv").open(newline="") as file:
        (timm_row,) = [row for row in csv.DictReader(file) if row["arch"] == "legacy_xception"]
    with (shared / "reference" / "keras.csv").open(newline="") as file:
        (keras_row,) = [row for row in csv.DictReader(file) if row["model"] == "Xception"]
    assert params == int(timm_row["params"]) == int(keras_row["trainable_params"]) == 22_855_952
    assert f"{counter.get_total_flops() / 2e9:.6f}" == timm_row["GMACs_at_input_size(flop_counter/2)"]


@torch.no_grad()
@pytest.mark.parametrize("image_px", [71, 96])
def test_logits_equal_timms(image_px: int) -> None:
    timm = pytest.importorskip("timm")
    reference, ours = timm.create_model("legacy_xception"), nets.create("xception")
    random = torch.Generator().manual_seed(0)
    for module in reference.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[0].numel()), generator=random)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.2, generator=random)
            nn.init.normal_(module.running_mean, 0, 0.2, generator=random)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=random)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)
    ours.load_state_dict({keys.rename("timm", "xception", key): x for key, x in reference.state_dict().items()})
    images = torch.randn(2, 3, image_px, image_px, generator=random)
    expected, logits = reference.eval()(images), ours.eval()(images)
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
