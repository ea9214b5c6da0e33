"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. Tan and Le 2019, arXiv 1905.11946.

EfficientNet-Lite is the same table without squeeze-and-excitation and with ReLU6, by the same authors (2020).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from torch import Tensor, nn

from handlens.nets.layers import (
    Net,
    Padding,
    ReLU6,
    Stages,
    StochasticDepth,
    conv_bn,
    init_weights,
    round_channels,
    stage_ends,
)


class MBConvs(NamedTuple):
    """A row of Table 1: expansion, kernel, output channels, layers, and the stride of the first (not printed)."""

    t: int
    k: int
    c: int
    n: int
    s: int


SiLU = functools.partial(nn.SiLU, inplace=True)  # the paper's swish
STEM, HEAD = 32, 1280  # stages 1 and 9: the 3x3 convolution before and the 1x1 convolution after the MBConvs
TABLE = (  # Table 1, EfficientNet-B0
    #       t  k    c  n  s    stage, input (the paper prints 28² for stage 6 too)
    MBConvs(1, 3,  16, 1, 1),  # 2, 112² x 32
    MBConvs(6, 3,  24, 2, 2),  # 3, 112² x 16
    MBConvs(6, 5,  40, 2, 2),  # 4,  56² x 24
    MBConvs(6, 3,  80, 3, 2),  # 5,  28² x 40
    MBConvs(6, 5, 112, 3, 1),  # 6,  14² x 80
    MBConvs(6, 5, 192, 4, 2),  # 7,  14² x 112
    MBConvs(6, 3, 320, 1, 1),  # 8,   7² x 192
)  # fmt: skip


class SqueezeExcite(nn.Module):
    """Each channel weighted by a sigmoid of two 1x1 convolutions on the pooled map (Hu et al. 2018)."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def gates(self, images: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 1, 1) in [0, 1]."""
        squeezed = nn.functional.silu(self.fc1(images.mean((2, 3), keepdim=True)))
        return self.fc2(squeezed).sigmoid()

    def forward(self, images: Tensor) -> Tensor:
        return images * self.gates(images)


class MBConv(nn.Module):
    """1x1 expansion by t, depthwise convolution, squeeze-and-excitation, 1x1 linear projection; added to its input.

    Squeeze-and-excitation is a quarter as wide as the block's input. The Lite networks have none.
    """

    def __init__(
        self, inp: int, out: int, stride: int, t: int, k: int, lite: bool, drop: float, padding: Padding, bn_eps: float
    ) -> None:
        super().__init__()
        exp, act = inp * t, ReLU6 if lite else SiLU
        layers: list[nn.Module] = [conv_bn(inp, exp, 1, act=act, bn_eps=bn_eps)] if t > 1 else []
        layers.append(conv_bn(exp, exp, k, stride, groups=exp, act=act, padding=padding, bn_eps=bn_eps))
        if not lite:
            layers.append(SqueezeExcite(exp, max(1, inp // 4)))
        layers.append(conv_bn(exp, out, 1, act=None, bn_eps=bn_eps))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inp == out
        self.drop = StochasticDepth(drop)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.drop(self.block(images)) if self.residual else self.block(images)


class EfficientNet(Net):
    """Table 1 with its channels times `width` and its layers times `depth`.

    The Lite networks keep the stem and the head, and the number of layers of the first and the last stage.
    """

    def __init__(
        self,
        num_classes: int,
        width: float,
        depth: float,
        lite: bool,
        padding: Padding,
        bn_eps: float,
        dropout: float,
        stochastic_depth: float,
    ) -> None:
        super().__init__()
        act = ReLU6 if lite else SiLU
        channels = STEM if lite else round_channels(STEM * width)
        head = HEAD if lite else round_channels(HEAD * width)
        fixed = (TABLE[0], TABLE[-1]) if lite else ()
        repeats = [row.n if row in fixed else math.ceil(row.n * depth) for row in TABLE]

        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, act=act, padding=padding, bn_eps=bn_eps)]
        blocks = 0
        for (t, k, c, _, s), n in zip(TABLE, repeats, strict=True):
            out = round_channels(c * width)
            stage: list[nn.Module] = []
            for repeat in range(n):
                drop = stochastic_depth * blocks / sum(repeats)
                stage.append(MBConv(channels, out, s if repeat == 0 else 1, t, k, lite, drop, padding, bn_eps))
                channels, blocks = out, blocks + 1
            layers.append(nn.Sequential(*stage))
        layers.append(conv_bn(channels, head, 1, act=act, bn_eps=bn_eps))
        self.features: Stages = Stages(layers, stage_ends([2, *(row.s for row in TABLE), 1]))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(head, num_classes))
        init_weights(self)

    def blocks(self) -> list[nn.Module]:
        stem, *stages, head = self.features.children()
        return [stem, *(block for stage in stages for block in stage.children()), head, self.classifier]


def efficientnet(
    num_classes: int = 1000,
    width: float = 1.0,
    width_coefficient: float = 1.0,
    depth_coefficient: float = 1.0,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-5,
    dropout: float = 0.2,
    stochastic_depth: float = 0.2,
) -> EfficientNet:
    """EfficientNet: B0 (5,288,548 parameters, 385,814,752 MACs at 224 px) scaled by the two coefficients.

    `width` multiplies the channels of whichever member; `stochastic_depth` is the probability of dropping a residual
    branch, which grows from 0 at the first block towards this at the last.
    """
    width *= width_coefficient
    return EfficientNet(num_classes, width, depth_coefficient, False, padding, bn_eps, dropout, stochastic_depth)


def efficientnet_lite(
    num_classes: int = 1000,
    width: float = 1.0,
    width_coefficient: float = 1.0,
    depth_coefficient: float = 1.0,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-5,
    dropout: float = 0.2,
    stochastic_depth: float = 0.2,
) -> EfficientNet:
    """EfficientNet-Lite: Lite0 (4,652,008 parameters, 385,187,552 MACs at 224 px) scaled; the same arguments."""
    width *= width_coefficient
    return EfficientNet(num_classes, width, depth_coefficient, True, padding, bn_eps, dropout, stochastic_depth)


def _member(width: float, depth: float, dropout: float, bn_eps: float = 1e-5) -> dict[str, float]:
    """Arguments of a builder: the two coefficients, and the dropout and epsilon that the member is published with."""
    return {"width_coefficient": width, "depth_coefficient": depth, "dropout": dropout, "bn_eps": bn_eps}


B = (  # the family of Table 2; the coefficients, which it does not print, are the authors' code's
    #       width depth dropout
    _member(1.0,  1.0,  0.2),  # B0, 224 px
    _member(1.0,  1.1,  0.2),  # B1, 240 px
    _member(1.1,  1.2,  0.3),  # B2, 260 px
    _member(1.2,  1.4,  0.3),  # B3, 300 px
    _member(1.4,  1.8,  0.4),  # B4, 380 px
    _member(1.6,  2.2,  0.4, bn_eps=1e-3),  # B5, 456 px; torchvision's files have 1e-3 from here on
    _member(1.8,  2.6,  0.5, bn_eps=1e-3),  # B6, 528 px
    _member(2.0,  3.1,  0.5, bn_eps=1e-3),  # B7, 600 px
)  # fmt: skip
LITE = (  # the authors' code
    _member(1.0,  1.0,  0.2),  # Lite0, 224 px
    _member(1.0,  1.1,  0.2),  # Lite1, 240 px
    _member(1.1,  1.2,  0.3),  # Lite2, 260 px
    _member(1.2,  1.4,  0.3),  # Lite3, 280 px
    _member(1.4,  1.8,  0.3),  # Lite4, 300 px
)  # fmt: skip
