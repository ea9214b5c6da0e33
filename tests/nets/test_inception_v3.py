"""Inception-v3 against torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.models
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.errors import HandlensError
from handlens.nets.layers import modules_of


def test_counts_and_maps(macs: Callable[[nn.Module, int], int]) -> None:
    net = nets.on_meta("inception_v3")
    assert count_params(net) == 27_161_264
    assert count_params(nets.on_meta("inception_v3", aux=False)) == 23_834_568
    with torch.device("meta"):
        reference = torchvision.models.inception_v3(init_weights=False)
    assert macs(net, 299) == macs(reference, 299)
    assert round(macs(net, 299) / 1e9, 6) == 5.713216
    found = [tuple(stage.shape[1:3]) for stage in net.features(torch.empty(1, 3, 299, 299, device="meta"))]
    assert found == [(64, 147), (192, 71), (288, 35), (768, 17), (2048, 8)]


@pytest.fixture(scope="module")
def both(twin: Callable[..., nets.Net]) -> tuple[nn.Module, nets.Net]:
    reference = torchvision.models.inception_v3(init_weights=False, dropout=0.0)
    net = twin("inception_v3", reference)
    for dropout in modules_of(net, nn.Dropout):
        dropout.p = 0.0
    return reference, net


@pytest.mark.parametrize("image_px", [150, 75])
@torch.no_grad()
def test_logits_equal_torchvisions(both: tuple[nn.Module, nets.Net], image_px: int) -> None:
    reference, net = both[0].eval(), both[1].eval()
    images = torch.randn(2, 3, image_px, image_px)
    expected = reference(images)
    assert expected.std() > 0.1
    assert (net(images) - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_auxiliary_logits_equal_torchvisions(both: tuple[nn.Module, nets.Net]) -> None:
    images = torch.randn(2, 3, 299, 299)  # torchvision's cannot train on less
    expected = both[0].train()(images)
    logits, (auxiliary,) = both[1].train().forward_train(images)
    for ours, theirs in ((logits, expected.logits), (auxiliary, expected.aux_logits)):
        assert theirs.std() > 0.1
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_smallest_input_in_evaluation_and_training() -> None:
    net = nets.on_meta("inception_v3")
    images = torch.empty(2, 3, 75, 75, device="meta")
    assert net.eval()(images).shape == (2, 1000)
    assert [logits.shape for logits in net.forward_train(images)[1]] == []
    for image_px in (75, 298, 299):
        auxiliary = net.train().forward_train(torch.empty(2, 3, image_px, image_px, device="meta"))[1]
        assert [logits.shape for logits in auxiliary] == [(2, 1000)]
    with pytest.raises(HandlensError, match="smallest that works is 75 px"):
        nets.check_input(net, 74)
    with pytest.raises(RuntimeError):
        net.eval()(torch.empty(2, 3, 74, 74, device="meta"))


def test_a_new_head_reaches_the_auxiliary_classifier() -> None:
    net = nets.replace_head(nets.on_meta("inception_v3"), 5).train()
    logits, (auxiliary,) = net.forward_train(torch.empty(2, 3, 299, 299, device="meta"))
    assert logits.shape == auxiliary.shape == (2, 5)
    assert all(parameter.device.type == "meta" for parameter in net.parameters())


def test_pieces_hold_every_parameter_once() -> None:
    net = nets.on_meta("inception_v3")
    owned = [id(parameter) for piece in net.blocks() for parameter in piece.parameters()]
    assert len(owned) == len(set(owned)) == len(list(net.parameters()))
    assert net.blocks()[-1] is net.classifier


@pytest.mark.slow
def test_exports_without_its_auxiliary_classifier() -> None:
    images = torch.empty(2, 3, 299, 299, device="meta")
    program = torch.export.export(
        nets.on_meta("inception_v3").eval(), (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    convs = sum(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes)
    assert convs == 94
