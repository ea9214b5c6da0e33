"""ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design. Ma et al. 2018, arXiv 1807.11164."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from handlens.errors import HandlensError
from handlens.nets.layers import Net, ReLU, channel_shuffle, conv_bn, init_weights


class Channels(NamedTuple):
    """A column of Table 5: output channels of each row."""

    conv1: int
    stage2: int
    stage3: int
    stage4: int
    conv5: int


TABLE = {  # Table 5: one column a level of complexity
    #        conv1 st.2 st.3 st.4 conv5   conv1 and the max pool bring 224² to 56², the stages to 28², 14² and 7²
    0.5: Channels(24,  48,  96, 192, 1024),
    1.0: Channels(24, 116, 232, 464, 1024),
    1.5: Channels(24, 176, 352, 704, 1024),
    2.0: Channels(24, 244, 488, 976, 2048),
}  # fmt: skip
REPEATS = (4, 8, 4)  # units of stages 2, 3 and 4; the first of each has stride 2


class Unit(nn.Module):
    """Figure 3 (c), and (d) with stride 2: one half passes by, one goes through three convolutions; then shuffled."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        half = out // 2
        self.branch1 = nn.Sequential(*depthwise(inp, 2), *conv_bn(inp, half, 1, act=ReLU)) if stride == 2 else None
        self.branch2 = nn.Sequential(
            *conv_bn(inp if stride == 2 else half, half, 1, act=ReLU),
            *depthwise(half, stride),
            *conv_bn(half, half, 1, act=ReLU),
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.branch1 is None:
            passed, worked = images.chunk(2, dim=1)
        else:
            passed, worked = self.branch1(images), images
        return channel_shuffle(torch.cat((passed, self.branch2(worked)), dim=1), 2)


def depthwise(channels: int, stride: int) -> nn.Sequential:
    """3x3 depthwise convolution and batch norm, without an activation."""
    return conv_bn(channels, channels, 3, stride, groups=channels, act=None)


class ShuffleNetV2(Net):
    """A column of Table 5."""

    def __init__(self, num_classes: int, channels: Channels) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, channels.conv1, 3, 2, act=ReLU)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.stage2 = stage(channels.conv1, channels.stage2, REPEATS[0])
        self.stage3 = stage(channels.stage2, channels.stage3, REPEATS[1])
        self.stage4 = stage(channels.stage3, channels.stage4, REPEATS[2])
        self.conv5 = conv_bn(channels.stage4, channels.conv5, 1, act=ReLU)
        self.classifier = nn.Sequential(nn.Linear(channels.conv5, num_classes))
        init_weights(self)

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps after conv1, the max pool, stages 2 and 3, and conv5."""
        conv1 = self.conv1(images)
        pooled = self.maxpool(conv1)
        stage2 = self.stage2(pooled)
        stage3 = self.stage3(stage2)
        return [conv1, pooled, stage2, stage3, self.conv5(self.stage4(stage3))]

    def last_map(self, images: Tensor) -> Tensor:
        for module in (self.conv1, self.maxpool, self.stage2, self.stage3, self.stage4, self.conv5):
            images = module(images)
        return images

    def blocks(self) -> list[nn.Module]:
        return [self.conv1, *self.stage2, *self.stage3, *self.stage4, self.conv5, self.classifier]


def stage(inp: int, out: int, repeats: int) -> nn.Sequential:
    """Units of one resolution, the first with stride 2."""
    return nn.Sequential(Unit(inp, out, 2), *(Unit(out, out, 1) for _ in range(repeats - 1)))


def shufflenet_v2(num_classes: int = 1000, scale: float = 1.0) -> ShuffleNetV2:
    """ShuffleNet V2 at one of the paper's scales, 0.5, 1, 1.5 and 2: at 1, 2,278,604 parameters and 144,907,992 MACs.

    Raises HandlensError for another scale: the paper gives the channels of these four, and no rule for others.
    """
    if scale not in TABLE:
        raise HandlensError(f"scale is {scale}, expected one of {', '.join(f'{known:g}' for known in TABLE)}")
    return ShuffleNetV2(num_classes, TABLE[scale])
