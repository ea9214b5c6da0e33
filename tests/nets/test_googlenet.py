"""GoogLeNet against its paper's Table 1, and torchvision's variant against torchvision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.errors import HandlensError
from handlens.nets.googlenet import TABLE
from handlens.nets.layers import LocalResponseNorm, modules_of

BLOCKS = {  # parameters with biases, of Table 1's rows
    "conv1": 9_472, "conv2": 4_160, "conv3": 110_784,
    "inception3a": 163_696, "inception3b": 388_736,
    "inception4a": 376_176, "inception4b": 449_160, "inception4c": 510_104, "inception4d": 605_376,
    "inception4e": 868_352, "inception5a": 1_043_456, "inception5b": 1_444_080, "classifier": 1_025_000,
}  # fmt: skip


def test_counts_are_the_papers_table(macs: Callable[[nn.Module, int], int]) -> None:
    net = nets.on_meta("googlenet", aux=False)
    assert {name: count_params(net.get_submodule(name)) for name in BLOCKS} == BLOCKS
    assert count_params(net) == 6_998_552 == sum(BLOCKS.values())
    assert macs(net, 224) == 1_582_671_872
    with_both = nets.on_meta("googlenet")
    assert count_params(with_both) == 6_998_552 + 6_379_728
    assert macs(with_both, 224) == 1_582_671_872
    found = [tuple(stage.shape[1:3]) for stage in net.features(torch.empty(1, 3, 224, 224, device="meta"))]
    assert found == [(64, 112), (192, 56), (480, 28), (832, 14), (1024, 7)]


def test_counts_of_torchvisions(macs: Callable[[nn.Module, int], int]) -> None:
    net = nets.on_meta("googlenet_torchvision")
    assert count_params(net) == 6_624_904
    assert macs(net, 224) == 1_498_376_192
    assert count_params(nets.on_meta("googlenet_torchvision", aux=True)) == 13_004_888


def test_naive_blocks_keep_all_channels_of_their_input() -> None:
    net = nets.on_meta("googlenet", naive=True, aux=False)
    channels, params = 192, 0
    for row in TABLE:
        params += sum(out * (channels * size**2 + 1) for out, size in ((row.n1x1, 1), (row.n3x3, 3), (row.n5x5, 5)))
        channels += row.n1x1 + row.n3x3 + row.n5x5
    assert net.num_features == channels == 4_944
    assert count_params(net) == 9_472 + 4_160 + 110_784 + params + (channels + 1) * 1000
    assert net.eval()(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_batch_norm_takes_the_place_of_biases_and_response_normalisation() -> None:
    plain, normed = nets.on_meta("googlenet"), nets.on_meta("googlenet", batch_norm=True)
    convs = sum(1 for _ in modules_of(plain, nn.Conv2d))
    assert convs == 3 + 9 * 6 + 2
    assert sum(1 for _ in modules_of(plain, LocalResponseNorm)) == 2
    assert not list(modules_of(plain, nn.BatchNorm2d)) and not list(modules_of(normed, LocalResponseNorm))
    assert sum(1 for _ in modules_of(normed, nn.BatchNorm2d)) == convs
    assert all(conv.bias is None for conv in modules_of(normed, nn.Conv2d))


@pytest.fixture(scope="module")
def both(twin: Callable[..., nets.Net]) -> tuple[nn.Module, nets.Net]:
    reference = torchvision.models.googlenet(init_weights=False, aux_logits=True, dropout=0.0, dropout_aux=0.0)
    net = twin("googlenet_torchvision", reference, aux=True)
    for dropout in modules_of(net, nn.Dropout):
        dropout.p = 0.0
    return reference, net


@pytest.mark.parametrize("image_px", [224, 65])
@torch.no_grad()
def test_logits_equal_torchvisions(both: tuple[nn.Module, nets.Net], image_px: int) -> None:
    reference, net = both[0].eval(), both[1].eval()
    images = torch.randn(2, 3, image_px, image_px)
    expected = reference(images)
    assert expected.std() > 0.1
    assert (net(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    logits, auxiliary = net.forward_train(images)
    assert torch.equal(logits, net(images)) and auxiliary == []


@torch.no_grad()
def test_auxiliary_logits_equal_torchvisions(both: tuple[nn.Module, nets.Net]) -> None:
    images = torch.randn(4, 3, 96, 96)
    expected = both[0].train()(images)  # in training batch norm's statistics are the batch's own
    logits, auxiliary = both[1].train().forward_train(images)
    for ours, theirs in zip(
        [logits, *auxiliary], [expected.logits, expected.aux_logits1, expected.aux_logits2], strict=True
    ):
        assert theirs.std() > 0.1
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_torchvisions_transform_of_the_input_is_a_mean_and_std_of_a_half(both: tuple[nn.Module, nets.Net]) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    reference, net = both[0].eval(), both[1].eval()
    reference.transform_input = True
    try:
        expected = reference((pixels - mean) / std)
    finally:
        reference.transform_input = False
    assert (net((pixels - 0.5) / 0.5) - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_the_papers_auxiliary_classifier_pools_overlapping_windows() -> None:
    head = nets.create("googlenet").eval().get_submodule("aux1")
    maps = torch.randn(1, 512, 14, 14)
    pooled = torch.stack([maps[:, :, y : y + 5, x : x + 5].mean((2, 3)) for y in (0, 3, 6, 9) for x in (0, 3, 6, 9)], 2)
    expected = head.classifier(F.relu(head.conv.conv(pooled.view(1, 512, 4, 4))).flatten(1))
    torch.testing.assert_close(head(maps), expected)


@pytest.mark.parametrize("name", ["googlenet", "googlenet_torchvision"])
def test_smallest_input_in_evaluation_and_training(name: str) -> None:
    net = nets.on_meta(name, aux=True)
    px = net.smallest_px
    images = torch.empty(2, 3, px, px, device="meta")
    assert net.eval()(images).shape == (2, 1000)
    assert [logits.shape for logits in net.train().forward_train(images)[1]] == [(2, 1000)] * 2
    with pytest.raises(HandlensError, match=f"smallest that works is {px} px"):
        nets.check_input(net, px - 1)
    with pytest.raises(RuntimeError):
        net.eval()(torch.empty(2, 3, px - 1, px - 1, device="meta"))


@torch.no_grad()
def test_fresh_logits_are_near_zero_without_batch_norm() -> None:
    torch.manual_seed(0)
    logits = nets.create("googlenet").eval()(torch.randn(2, 3, 64, 64))
    assert 1e-3 < logits.std() < 1


def test_a_new_head_reaches_the_auxiliary_classifiers() -> None:
    net = nets.replace_head(nets.create("googlenet"), 5).train()
    logits, auxiliary = net.forward_train(torch.randn(2, 3, 64, 64))
    assert [given.shape for given in (logits, *auxiliary)] == [(2, 5)] * 3
    loss = sum(F.cross_entropy(given, torch.tensor([0, 4])) for given in auxiliary)
    loss.backward()
    assert all(parameter.grad is not None for head in net.auxiliary() for parameter in head.parameters())
    assert net.get_submodule("inception4d.branch1.conv").weight.grad is not None
    assert net.get_submodule("inception5b.branch1.conv").weight.grad is None  # above both of them
    assert net.aux_weight == 0.3


@pytest.mark.parametrize("aux", [True, False])
def test_pieces_hold_every_parameter_once_and_an_auxiliary_after_what_it_reads(aux: bool) -> None:
    net = nets.on_meta("googlenet", aux=aux)
    pieces = net.blocks()
    owned = [id(parameter) for piece in pieces for parameter in piece.parameters()]
    assert len(owned) == len(set(owned)) == len(list(net.parameters()))
    names = [name for piece in pieces for name, module in net.named_children() if module is piece]
    assert names[-1] == "classifier"
    assert [names[names.index(head) - 1] for head in ("aux1", "aux2") if aux] == ["inception4a", "inception4d"][
        : 2 * aux
    ]


def test_exports_without_auxiliary_classifiers() -> None:
    images = torch.empty(2, 3, 224, 224, device="meta")
    program = torch.export.export(
        nets.on_meta("googlenet").eval(), (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    assert program.module()(torch.empty(3, 3, 224, 224, device="meta")).shape == (3, 1000)
    convs = sum(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes)
    assert convs == 3 + 9 * 6
