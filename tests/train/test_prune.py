"""Pruned networks: really smaller, the right channels gone, made again from what a checkpoint says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import handlens
from handlens import checkpoint, nets
from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.nets.mobilenet_v3 import SqueezeExcite
from handlens.train import Recipe, start
from handlens.train.prune import BLOCKS, shrink

SOME: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"width": 0.5},
    "mobilenet_v3_small": {"padding": "tensorflow"},
    "mobilenet_v3_large": {"width": 0.75},
    "mobilenet_v3_small_minimalistic": {},
}


def size(net: Net) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("name", SOME)
def test_a_pruned_network_is_made_again_from_its_arguments(name: str, lively: Callable[[Net], Net]) -> None:
    net = lively(nets.create(name, 3, **SOME[name]))
    before = size(net)
    small, widths = shrink(net, 0.5)
    assert size(net) == before and size(small) < 0.85 * before
    again = nets.create(name, 3, **SOME[name], expanded=json.loads(json.dumps(widths))).eval()
    again.load_state_dict(small.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(images), small(images))
    assert {key: (m.in_channels, m.groups) for key, m in again.named_modules() if isinstance(m, nn.Conv2d)} == {
        key: (m.in_channels, m.groups) for key, m in small.named_modules() if isinstance(m, nn.Conv2d)
    }
    blocks = [module for module in small.modules() if isinstance(module, BLOCKS)]
    assert len(widths) == len(blocks) and all(width % 8 == 0 for width in widths)


def test_channels_that_give_nothing_go_first(lively: Callable[[Net], Net]) -> None:
    """The network answers as before where all that goes is dead."""
    net = lively(nets.create("mobilenet_v3_small", 3))
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, BLOCKS):
                convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
                if (channels := convs[-1].in_channels) != convs[0].in_channels:
                    dead = torch.randperm(channels)[: channels // 2]
                    convs[-1].weight[:, dead] = 0
                for gate in (m for m in module.modules() if isinstance(m, SqueezeExcite)):
                    gate.fc1.weight[:, dead if name != "features.1" else []] = 0
                    half = torch.randperm(len(gate.fc1.weight))[: len(gate.fc1.weight) // 2]
                    gate.fc1.weight[half], gate.fc1.bias[half] = 0, 0
    small, _ = shrink(net, 0.3)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small(images), net(images), rtol=1e-3, atol=1e-4)
        other, _ = shrink(net, 0.7)
        assert not torch.allclose(other(images), net(images), rtol=1e-3, atol=1e-4)


def test_nothing_is_pruned_by_a_share_of_nothing(lively: Callable[[Net], Net]) -> None:
    net = lively(nets.create("mobilenet_v2", 3, width=0.35))
    same, _ = shrink(net, 0.0)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in same.state_dict().items())


def test_a_share_that_leaves_less_than_a_channel_is_refused(lively: Callable[[Net], Net]) -> None:
    once, _ = shrink(lively(nets.create("mobilenet_v2", 3, width=0.35)), 0.9)
    with pytest.raises(HandlensError, match=r"--prune 0\.9 leaves 0\.8 of a block's 8 channels.*smaller --prune"):
        shrink(once, 0.9)


def test_other_networks_are_refused() -> None:
    with pytest.raises(HandlensError, match="ResNet has no inverted residuals"):
        shrink(nets.create("resnet20", 3), 0.3)


@pytest.mark.parametrize("expanded", [[16], [8] * 16 + [0], [8] * 16 + ["8"]])
def test_wrong_widths_are_refused(expanded: list[Any]) -> None:
    with pytest.raises(HandlensError, match="expected 17 numbers"):
        nets.create("mobilenet_v2", 3, expanded=expanded)


def test_a_run_is_pruned_and_goes_on(tiny_photos: Path, tiny_run: Path, tmp_path: Path, quick: dict[str, Any]) -> None:
    given = {name: value for name, value in quick.items() if name != "image_px"}
    first = handlens.fit(
        tiny_photos, out=tmp_path / "first", net="mobilenet_v2", width=0.35, weights="none", **{**quick, "epochs": 1}
    ).folder
    run = handlens.fit(continue_run=str(first), prune=0.5, teacher=str(first), out=tmp_path / "pruned", **given)
    saved, before = checkpoint.load(run.folder), checkpoint.load(first)
    assert size(saved.net) < size(before.net)
    assert run.recipe.prune == 0.5 and len(saved.arguments["expanded"]) == 17
    assert handlens.load(run.folder).predict(tiny_photos / "花朵" / "00.jpg", top=1)
    again = handlens.fit(continue_run=str(run.folder), prune=0.3, out=tmp_path / "again", **{**given, "epochs": 1})
    assert size(checkpoint.load(again.folder).net) < size(saved.net)
    weights = str(run.folder / "model.safetensors")
    other = handlens.fit(tiny_photos, weights=weights, net="mobilenet_v2", width=0.35, out=tmp_path / "other",
                         **{**quick, "epochs": 1})  # fmt: skip
    assert checkpoint.load(other.folder).arguments["expanded"] == saved.arguments["expanded"]


def test_what_does_not_go_with_pruning(tiny_photos: Path, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(HandlensError, match="--prune makes a trained network smaller"):
        handlens.fit(tiny_photos, prune=0.3, out=tmp_path / "run")
    with pytest.raises(HandlensError, match="trained as a whole"):
        start.start_of(Recipe(continue_run=str(tiny_run), prune=0.3, mode="head"), checkpoint.load(tiny_run).classes)
    assert not (tmp_path / "run").exists()
