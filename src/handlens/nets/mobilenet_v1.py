"""MobileNets: Efficient Convolutional Neural Networks for Mobile Vision. Howard et al. 2017, arXiv 1704.04861."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from handlens.nets.layers import Net, Padding, ReLU6, Stages, conv_bn, init_weights, round_channels, stage_ends


class Layer(NamedTuple):
    """A row of Table 1: type, stride, kernel, output channels at width 1."""

    type: str
    s: int
    k: int
    out: int


CONV, DW = "Conv", "Conv dw"
TABLE = (  # Table 1
    #     type  s  k   out    filter shape        input
    Layer(CONV, 2, 3,   32),  # 3 x 3 x 3 x 32      224² x 3
    Layer(DW,   1, 3,   32),  # 3 x 3 x 32 dw       112² x 32
    Layer(CONV, 1, 1,   64),  # 1 x 1 x 32 x 64     112² x 32
    Layer(DW,   2, 3,   64),  # 3 x 3 x 64 dw       112² x 64
    Layer(CONV, 1, 1,  128),  # 1 x 1 x 64 x 128     56² x 64
    Layer(DW,   1, 3,  128),  # 3 x 3 x 128 dw       56² x 128
    Layer(CONV, 1, 1,  128),  # 1 x 1 x 128 x 128    56² x 128
    Layer(DW,   2, 3,  128),  # 3 x 3 x 128 dw       56² x 128
    Layer(CONV, 1, 1,  256),  # 1 x 1 x 128 x 256    28² x 128
    Layer(DW,   1, 3,  256),  # 3 x 3 x 256 dw       28² x 256
    Layer(CONV, 1, 1,  256),  # 1 x 1 x 256 x 256    28² x 256
    Layer(DW,   2, 3,  256),  # 3 x 3 x 256 dw       28² x 256
    Layer(CONV, 1, 1,  512),  # 1 x 1 x 256 x 512    14² x 256
    *5 * (                    # 5 x
    Layer(DW,   1, 3,  512),  # 3 x 3 x 512 dw       14² x 512
    Layer(CONV, 1, 1,  512),  # 1 x 1 x 512 x 512    14² x 512
    ),
    Layer(DW,   2, 3,  512),  # 3 x 3 x 512 dw       14² x 512
    Layer(CONV, 1, 1, 1024),  # 1 x 1 x 512 x 1024    7² x 512
    Layer(DW,   1, 3, 1024),  # 3 x 3 x 1024 dw       7² x 1024; printed as s 2, which the sizes exclude
    Layer(CONV, 1, 1, 1024),  # 1 x 1 x 1024 x 1024   7² x 1024
)  # fmt: skip


class MobileNetV1(Net):
    """The network of Table 1. The paper says ReLU; its authors' code, and so every published weight file, has ReLU6."""

    def __init__(self, num_classes: int, width: float, padding: Padding, bn_eps: float, dropout: float) -> None:
        super().__init__()
        stem, *rows = TABLE
        channels = round_channels(stem.out * width)
        layers = [conv_bn(3, channels, stem.k, stem.s, act=ReLU6, padding=padding, bn_eps=bn_eps)]
        strides = [stem.s]
        for dw, pw in zip(rows[::2], rows[1::2], strict=True):  # Figure 3: a depthwise separable convolution
            out = round_channels(pw.out * width)
            depthwise = conv_bn(channels, channels, dw.k, dw.s, channels, ReLU6, padding, bn_eps)
            pointwise = conv_bn(channels, out, pw.k, pw.s, act=ReLU6, bn_eps=bn_eps)
            layers.append(nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise)))
            strides.append(dw.s)
            channels = out
        self.features: Stages = Stages(layers, stage_ends(strides))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        init_weights(self)

    def blocks(self) -> list[nn.Module]:
        return [*self.features, self.classifier]


def mobilenet_v1(
    num_classes: int = 1000,
    width: float = 1.0,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-5,
    dropout: float = 0.2,
) -> MobileNetV1:
    """MobileNet at any width multiplier: 4,231,976 parameters and 568,740,352 MACs at width 1, 224 px."""
    return MobileNetV1(num_classes, width, padding, bn_eps, dropout)
