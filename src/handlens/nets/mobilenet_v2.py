"""MobileNetV2: Inverted Residuals and Linear Bottlenecks. Sandler et al. 2018, arXiv 1801.04381."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from handlens.nets.layers import (
    Net,
    Padding,
    ReLU6,
    Stages,
    StochasticDepth,
    conv_bn,
    expansions,
    init_weights,
    round_channels,
    stage_ends,
)


class Bottlenecks(NamedTuple):
    """A row of Table 2: expansion factor, output channels at width 1, repeats, stride of the first."""

    t: int
    c: int
    n: int
    s: int


STEM, LAST = 32, 1280  # the 3x3 convolution before and the 1x1 convolution after the table's bottlenecks
TABLE = (  # Table 2
    #            t    c  n  s    input
    Bottlenecks(1,  16, 1, 1),  # 112² x 32
    Bottlenecks(6,  24, 2, 2),  # 112² x 16
    Bottlenecks(6,  32, 3, 2),  #  56² x 24
    Bottlenecks(6,  64, 4, 2),  #  28² x 32
    Bottlenecks(6,  96, 3, 1),  #  14² x 64
    Bottlenecks(6, 160, 3, 2),  #  14² x 96
    Bottlenecks(6, 320, 1, 1),  #   7² x 160
)  # fmt: skip


class InvertedResidual(nn.Module):
    """1x1 expansion by t, 3x3 depthwise, 1x1 linear projection; added to its input where shapes agree (Figure 4)."""

    def __init__(
        self, inp: int, out: int, stride: int, t: int, padding: Padding, bn_eps: float, pruned_to: int = 0
    ) -> None:
        super().__init__()
        exp = pruned_to if pruned_to and t > 1 else inp * t
        layers = [conv_bn(inp, exp, 1, act=ReLU6, bn_eps=bn_eps)] if t > 1 else []
        project = conv_bn(exp, out, 1, act=None, bn_eps=bn_eps)
        self.conv = nn.Sequential(
            *layers, conv_bn(exp, exp, 3, stride, groups=exp, act=ReLU6, padding=padding, bn_eps=bn_eps), *project
        )
        self.residual = stride == 1 and inp == out
        self.drop = StochasticDepth()

    def forward(self, images: Tensor) -> Tensor:
        return images + self.drop(self.conv(images)) if self.residual else self.conv(images)


class MobileNetV2(Net):
    """The network of Table 2."""

    def __init__(
        self,
        num_classes: int,
        width: float,
        padding: Padding,
        bn_eps: float,
        dropout: float,
        expanded: Sequence[int] = (),
    ) -> None:
        super().__init__()
        pruned = iter(expansions(expanded, sum(row.n for row in TABLE)))
        channels = round_channels(STEM * width)
        last = round_channels(LAST * max(1.0, width))  # the paper widens the last convolution, never narrows it
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, act=ReLU6, padding=padding, bn_eps=bn_eps)]
        strides = [2]
        for t, c, n, s in TABLE:
            for repeat in range(n):
                strides.append(s if repeat == 0 else 1)
                out = round_channels(c * width)
                layers.append(InvertedResidual(channels, out, strides[-1], t, padding, bn_eps, next(pruned)))
                channels = out
        layers.append(conv_bn(channels, last, 1, act=ReLU6, bn_eps=bn_eps))
        self.features: Stages = Stages(layers, stage_ends([*strides, 1]))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        init_weights(self)

    def blocks(self) -> list[nn.Module]:
        return [*self.features, self.classifier]


def mobilenet_v2(
    num_classes: int = 1000,
    width: float = 1.0,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-5,
    dropout: float = 0.2,
    expanded: Sequence[int] = (),
) -> MobileNetV2:
    """MobileNetV2 at any width multiplier: 3,504,872 parameters and 300,774,272 MACs at width 1, 224 px.

    `expanded`: channels that each block expands to, where it has been pruned (`train.prune`).
    """
    return MobileNetV2(num_classes, width, padding, bn_eps, dropout, expanded)
