"""ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices.

Zhang et al. 2017, arXiv 1707.01083.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.errors import HandlensError
from handlens.nets.layers import Net, ReLU, channel_shuffle, conv_bn, init_weights, round_channels


class Stages(NamedTuple):
    """Output channels of stages 2, 3 and 4 at scale 1: a column of Table 1."""

    stage2: int
    stage3: int
    stage4: int


TABLE = {  # Table 1: groups, and their column; conv1 and the max pool bring 224² to 56², the stages to 28², 14² and 7²
    1: Stages(144, 288,  576),
    2: Stages(200, 400,  800),
    3: Stages(240, 480,  960),
    4: Stages(272, 544, 1088),
    8: Stages(384, 768, 1536),
}  # fmt: skip
REPEATS = Stages(4, 8, 4)  # units of each stage: one with stride 2, and 3, 7 and 3 with stride 1


class Unit(nn.Module):
    """Figure 2 (b), and (c) with stride 2: grouped 1x1 with shuffle, depthwise 3x3, grouped 1x1, beside the shortcut.

    With stride 2 the shortcut is a 3x3 average pooling, and the two are concatenated instead of added.
    """

    def __init__(self, inp: int, out: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        mid = round_channels(out / 4, groups)  # bottleneck ratio 1 : 4
        branch = out - inp if stride == 2 else out
        self.groups, self.stride = groups, stride
        self.conv1 = conv_bn(inp, mid, 1, groups=first_groups, act=ReLU)
        self.conv2 = conv_bn(mid, mid, 3, stride, groups=mid, act=None)
        self.conv3 = conv_bn(mid, branch, 1, groups=groups, act=None)

    def forward(self, images: Tensor) -> Tensor:
        branch = self.conv3(self.conv2(channel_shuffle(self.conv1(images), self.groups)))
        if self.stride == 1:
            return F.relu(images + branch)
        return F.relu(torch.cat((F.avg_pool2d(images, 3, 2, padding=1), branch), dim=1))


class ShuffleNetV1(Net):
    """A column of Table 1 with its channels scaled."""

    def __init__(self, num_classes: int, groups: int, width: float) -> None:
        super().__init__()
        stem = stem_channels(width, groups)
        outs = [round_channels(channels * width, groups) for channels in TABLE[groups]]
        if outs[0] <= stem:
            raise HandlensError(
                f"width {width:g} leaves stage 2 with {outs[0]} channels, no more than the {stem} before it",
                "use a larger width",
            )
        self.conv1 = conv_bn(3, stem, 3, 2, act=ReLU)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        # Stage 2's first pointwise convolution is not grouped: it has few input channels.
        self.stage2 = stage(stem, outs[0], REPEATS.stage2, groups, first_groups=1)
        self.stage3 = stage(outs[0], outs[1], REPEATS.stage3, groups, groups)
        self.stage4 = stage(outs[1], outs[2], REPEATS.stage4, groups, groups)
        self.classifier = nn.Sequential(nn.Linear(outs[2], num_classes))
        init_weights(self)

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps after conv1, the max pool and stages 2, 3 and 4."""
        maps = [self.conv1(images)]
        for module in (self.maxpool, self.stage2, self.stage3, self.stage4):
            maps.append(module(maps[-1]))
        return maps

    def last_map(self, images: Tensor) -> Tensor:
        for module in (self.conv1, self.maxpool, self.stage2, self.stage3, self.stage4):
            images = module(images)
        return images

    def blocks(self) -> list[nn.Module]:
        return [self.conv1, *self.stage2, *self.stage3, *self.stage4, self.classifier]


def stage(inp: int, out: int, repeats: int, groups: int, first_groups: int) -> nn.Sequential:
    """Units of one resolution, the first with stride 2."""
    rest = (Unit(out, out, 1, groups, groups) for _ in range(repeats - 1))
    return nn.Sequential(Unit(inp, out, 2, groups, first_groups), *rest)


def stem_channels(width: float, groups: int) -> int:
    """Channels of conv1: a multiple of `groups`, so that stage 2's first unit can fill up to its own.

    The paper prints the stem at scale 1 only. Its authors' code has 12 at 0.5 (16 for 8 groups), 24 at 1 and 1.5, 48
    at 2, and nothing at 0.25, where 12 (8 for 8 groups) comes nearest the paper's 13 M MACs.
    """
    channels = 12 if width < 1 else 24 if width < 2 else 48
    return channels // groups * groups if width < 0.5 else -(-channels // groups) * groups


def shufflenet_v1(num_classes: int = 1000, groups: int = 3, width: float = 1.0) -> ShuffleNetV1:
    """ShuffleNet with 1, 2, 3, 4 or 8 groups at any scale: 3 at scale 1 have 1,865,728 parameters and 137,460,672 MACs.

    Raises HandlensError for another number of groups, and for a width so small that stage 2 does not widen the stem.
    """
    if groups not in TABLE:
        raise HandlensError(f"groups is {groups}, expected one of {', '.join(map(str, TABLE))}")
    return ShuffleNetV1(num_classes, groups, width)
