"""R50+ViT-B/16 against its published figures and timm's network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from handlens import nets
from handlens.errors import HandlensError
from handlens.nets import keys
from handlens.nets.layers import StochasticDepth, modules_of
from handlens.nets.vit_hybrid import Backbone, StdConv2d

NAME = "vit_base_r50_s16_224"


def count_params(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def perturb(net: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += torch.empty_like(parameter).uniform_(-0.05, 0.05, generator=generator)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("image_px, params, expected", [(224, 98_659_112, 21_535_358_976), (384, 98_950_952, None)])
def test_params_and_macs_are_the_published(
    image_px: int, params: int, expected: int | None, macs: Callable[[nn.Module, int], int]
) -> None:
    net = nets.on_meta(NAME, image_px=image_px)
    assert count_params(net) == params
    assert count_params(net.backbone) == 11_894_848
    if expected:
        assert macs(net, image_px) == expected


def test_standardised_filters_do_not_depend_on_scale_and_offset() -> None:
    torch.manual_seed(0)
    conv = StdConv2d(4, 6, 3, 2)
    images = torch.randn(2, 4, 9, 10)
    with torch.no_grad():
        before = conv(images)
        conv.weight.mul_(3).add_(0.5)
        after = conv(images)
    assert before.shape == (2, 6, 5, 5)
    assert difference(after, before) < 1e-4


@pytest.mark.parametrize("image_px", [64, 75])
def test_the_backbones_maps_equal_timms(image_px: int) -> None:
    resnetv2 = pytest.importorskip("timm.models.resnetv2")
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    theirs = resnetv2.ResNetV2(
        (3, 4, 9), num_classes=0, global_pool="", preact=False, stem_type="same",
        conv_layer=partial(layers.StdConv2dSame, eps=1e-8),
    ).eval()  # fmt: skip
    perturb(theirs)
    state = {
        keys.rename("timm", NAME, f"patch_embed.backbone.{key}").removeprefix("backbone."): value
        for key, value in theirs.state_dict().items()
    }
    ours = Backbone().eval()
    ours.load_state_dict(state)
    images = torch.randn(1, 3, image_px, image_px)
    with torch.no_grad():
        assert difference(ours(images)[-1], theirs(images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("image_px", [224, 64])
def test_logits_equal_timms(image_px: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, num_classes=7, img_size=image_px).eval()
    perturb(theirs)
    ours = nets.create(NAME, 7, image_px=image_px).eval()
    ours.load_state_dict({keys.rename("timm", NAME, key): value for key, value in theirs.state_dict().items()})
    images = torch.randn(1, 3, image_px, image_px)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < 1e-4


def test_stages_halve_the_map_and_the_last_is_the_tokens() -> None:
    maps = nets.on_meta(NAME).features(torch.empty(1, 3, 224, 224, device="meta"))
    assert [tuple(each.shape[1:]) for each in maps] == [
        (64, 112, 112), (256, 56, 56), (512, 28, 28), (768, 14, 14),
    ]  # fmt: skip


def test_every_parameter_is_in_one_block() -> None:
    net = nets.on_meta(NAME)
    held = [id(parameter) for block in net.blocks() for parameter in block.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in net.parameters())


def test_every_residual_branch_can_be_dropped() -> None:
    assert len(list(modules_of(nets.on_meta(NAME), StochasticDepth))) == 3 + 4 + 9 + 2 * 12


def test_a_size_that_is_not_whole_patches_is_refused() -> None:
    with pytest.raises(HandlensError, match="224 and 240 px"):
        nets.check_input(nets.on_meta(NAME), 225)
