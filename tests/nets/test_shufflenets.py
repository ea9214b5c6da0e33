"""ShuffleNet V1 against its published counts, V2 against torchvision."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from handlens import nets
from handlens.cost import count_params
from handlens.errors import HandlensError
from handlens.nets.layers import channel_shuffle

Macs = Callable[[nn.Module, int], int]
V1 = [name for name in nets.names("shufflenet") if "_v1_" in name]
V2 = [name for name in nets.names("shufflenet") if "_v2_" in name]

# V1, Table 1: millions of MACs at scale 1 by number of groups. They are without the fully connected layer: only then
# do all five agree to the million.
TABLE_1 = {1: 143, 2: 140, 3: 137, 4: 133, 8: 137}
# V1, Table 2: one nominal figure for all numbers of groups.
TABLE_2 = {1.0: 140, 0.5: 38, 0.25: 13}


@pytest.mark.parametrize("groups,published", TABLE_1.items())
def test_v1_macs_are_those_of_its_table(groups: int, published: int, macs: Macs) -> None:
    net = nets.on_meta(f"shufflenet_v1_x1_0_g{groups}")
    assert round((macs(net, 224) - net.num_features * net.num_classes) / 1e6) == published


@pytest.mark.parametrize("groups", TABLE_1)
@pytest.mark.parametrize("width,published", TABLE_2.items())
def test_v1_macs_are_near_the_nominal_complexity(
    groups: int, width: float, published: int, macs: Callable[[nn.Module, int], int]
) -> None:
    # Channels must divide by the groups: what the authors round them to at the smaller scales is not in the paper.
    net = nets.on_meta("shufflenet_v1_x1_0_g1", groups=groups, width=width)
    assert macs(net, 224) / 1e6 == pytest.approx(published, rel=0.07)


def test_v1_counts_are_those_of_the_authors_readme(shared: Path, macs: Macs) -> None:
    published: dict[str, dict[str, float]] = {}
    with (shared / "reference" / "papers.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["paper"] == "ShuffleNet official repo" and row["model"].startswith("ShuffleNetV1"):
                published.setdefault(row["model"], {})[row["metric"]] = float(row["value"])
    assert len(published) == 8  # 0.5x, 1.0x, 1.5x and 2.0x, with 3 and 8 groups
    for model, figures in published.items():
        scale, groups = model.removeprefix("ShuffleNetV1 ").rstrip(")").split("x (g=")
        net = nets.on_meta("shufflenet_v1_x1_0_g3", groups=int(groups), width=float(scale))
        assert (
            round((count_params(net) - net.num_classes) / 1e6, 1) == figures["params"]
        )  # theirs has no bias in the last layer
        # Whole millions, rounded either way: 137.46 M is printed as 138 M.
        assert macs(net, 224) / 1e6 == pytest.approx(figures["MFLOPs (mult-adds)"], abs=0.55)


def test_v1_macs_of_the_large_scales_are_those_of_the_paper(
    shared: Path, macs: Callable[[nn.Module, int], int]
) -> None:
    published = {}
    with (shared / "reference" / "papers.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["paper"] == "ShuffleNet v1" and row["location"] == "Table 5" and row["metric"].startswith("MFLOPs"):
                published[row["model"]] = float(row["value"])
    for scale, name in ((1.5, "shufflenet_v1_x1_5_g3"), (2, "shufflenet_v1_x2_0_g3")):
        assert round(macs(nets.on_meta(name), 224) / 1e6) == published[f"ShuffleNet {scale:g}x (g=3)"]


@pytest.mark.parametrize("groups", TABLE_1)
def test_v1_groups_every_pointwise_convolution_but_the_first(groups: int) -> None:
    net = nets.on_meta(f"shufflenet_v1_x1_0_g{groups}")
    units = [*net.stage2, *net.stage3, *net.stage4]
    assert len(units) == 16
    assert [unit.conv1[0].groups for unit in units] == [1] + 15 * [groups]
    assert {unit.conv3[0].groups for unit in units} == {groups}
    # No activation after the depthwise and the second pointwise convolution (section 3.2).
    assert {len(unit.conv2) for unit in units} == {len(unit.conv3) for unit in units} == {2}


@torch.no_grad()
def test_v1_unit_with_stride_keeps_the_pooled_input_in_its_first_channels() -> None:
    unit = nets.create("shufflenet_v1_x1_0_g3").eval().stage3[0]
    images = torch.rand(2, 240, 7, 9)
    out = unit(images)
    assert out.shape == (2, 480, 4, 5)
    # The middle window lies inside the map, so its average is over nine pixels.
    torch.testing.assert_close(out[:, :240, 1, 1], images[:, :, 1:4, 1:4].mean((2, 3)))


def test_channels_are_dealt_out_like_cards() -> None:
    images = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert channel_shuffle(images, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(images, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@torch.no_grad()
def test_v1_shuffle_joins_the_groups() -> None:
    # Without it, a unit's outputs of one group would see one group's inputs only.
    unit = nets.create("shufflenet_v1_x1_0_g3").eval().stage2[1]
    images = torch.rand(1, 240, 5, 5)
    changed = images.clone()
    changed[:, :80] += 1  # the first group's inputs
    branch = [(unit(x) - x)[:, 80:] for x in (images, changed)]
    assert not torch.allclose(branch[0], branch[1])


def test_v2_counts_equal_torchvisions(shared: Path, macs: Macs) -> None:
    with (shared / "reference" / "torchvision.csv").open(newline="") as file:
        table = {row["model"]: row for row in csv.DictReader(file) if row["model"] in V2}
    assert set(table) == set(V2) and len(V2) == 4
    for name, row in table.items():
        net = nets.on_meta(name)
        assert count_params(net) == int(row["num_params_built"])
        assert f"{macs(net, 224) / 1e9:.6f}" == f"{float(row['GMACs_measured(flop_counter/2 @crop)']):.6f}"


@torch.no_grad()
@pytest.mark.parametrize("image_px", [64, 75])
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", *(pytest.param(x, marks=pytest.mark.slow) for x in V2[1:])])
def test_v2_logits_equal_torchvisions(name: str, image_px: int, twin: Callable[..., nets.Net]) -> None:
    reference = pytest.importorskip("torchvision.models").get_model(name).eval()
    ours = twin(name, reference)
    images = torch.randn(2, 3, image_px, image_px, generator=torch.Generator().manual_seed(1))
    expected, logits = reference(images), ours(images)
    assert expected.std() > 0.05
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", [*V1, *V2])
def test_every_parameter_is_in_one_block_and_maps_halve(name: str) -> None:
    net = nets.on_meta(name)
    in_blocks = [id(parameter) for block in net.blocks() for parameter in block.parameters()]
    assert sorted(in_blocks) == sorted(map(id, net.parameters()))
    assert net.blocks()[-1] is net.classifier
    maps = net.features(torch.empty(1, 3, 224, 224, device="meta"))
    assert [stage.shape[-1] for stage in maps] == [112, 56, 28, 14, 7]
    assert maps[-1].shape[1] == net.num_features


def test_what_the_papers_do_not_give_is_refused() -> None:
    with pytest.raises(HandlensError, match=r"scale is 0\.75, expected one of 0\.5, 1, 1\.5, 2"):
        nets.create("shufflenet_v2_x0_5", scale=0.75)
    with pytest.raises(HandlensError, match="groups is 5, expected one of 1, 2, 3, 4, 8"):
        nets.create("shufflenet_v1_x1_0_g3", groups=5)
    with pytest.raises(HandlensError, match="use a larger width"):
        nets.create("shufflenet_v1_x1_0_g3", width=0.05)
