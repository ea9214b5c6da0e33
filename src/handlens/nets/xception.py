"""Xception: Deep Learning with Depthwise Separable Convolutions. Chollet 2017, arXiv 1610.02357."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from handlens.nets.layers import Net, ReLU, Stages, conv_bn, init_weights, stage_ends


class Module(NamedTuple):
    """A box of Figure 5: output channels of its separable convolutions, stride of its max pooling and its shortcut."""

    channels: tuple[int, ...]
    stride: int


STEM = (32, 64)  # entry flow: two 3x3 convolutions without padding, the first with stride 2
TABLE = (  # Figure 5
    #             channels    s    input at 299 px
    Module(     (128, 128),  2),  # 147² x 64    entry flow
    Module(     (256, 256),  2),  #  74² x 128
    Module(     (728, 728),  2),  #  37² x 256
    *8 * (
    Module((728, 728, 728),  1),  #  19² x 728   middle flow, 8 times
    ),
    Module(    (728, 1024),  2),  #  19² x 728   exit flow
)  # fmt: skip
TAIL = (1536, 2048)  # exit flow: separable convolutions at 10²


class SeparableConv2d(nn.Sequential):
    """3x3 depthwise, then 1x1 convolution, with nothing between the two (section 4.7)."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inp, inp, 3, padding=1, groups=inp, bias=False)
        self.pointwise = nn.Conv2d(inp, out, 1, bias=False)


class Block(nn.Module):
    """ReLU, separable convolution and batch norm for each of `channels`, then max pooling; beside a linear shortcut.

    The shortcut is a 1x1 convolution where the block has a stride, and the input itself where it has none.
    """

    def __init__(self, inp: int, channels: tuple[int, ...], stride: int, relu_first: bool) -> None:
        super().__init__()
        self.skip = conv_bn(inp, channels[-1], 1, stride, act=None) if stride > 1 else nn.Identity()
        layers: list[nn.Module] = []
        for out in channels:
            if layers or relu_first:
                # The first must not work in place: the shortcut reads the same map.
                layers.append(nn.ReLU(inplace=bool(layers)))
            layers += [SeparableConv2d(inp, out), nn.BatchNorm2d(out)]
            inp = out
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.rep(images) + self.skip(images)


class Xception(Net):
    """The network of Figure 5."""

    def __init__(self, num_classes: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(3, STEM[0], 3, 2, bias=False), nn.BatchNorm2d(STEM[0]), ReLU(),
                nn.Conv2d(STEM[0], STEM[1], 3, bias=False), nn.BatchNorm2d(STEM[1]), ReLU(),
            )
        ]  # fmt: skip
        inp = STEM[-1]
        for channels, stride in TABLE:
            layers.append(Block(inp, channels, stride, relu_first=len(layers) > 1))
            inp = channels[-1]
        tail: list[nn.Module] = []
        for out in TAIL:
            tail += [SeparableConv2d(inp, out), nn.BatchNorm2d(out), ReLU()]
            inp = out
        self.features: Stages = Stages(
            [*layers, nn.Sequential(*tail)], stage_ends([2, *(row.stride for row in TABLE), 1])
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(inp, num_classes))
        init_weights(self)

    def blocks(self) -> list[nn.Module]:
        return [*self.features, self.classifier]


def xception(num_classes: int = 1000, dropout: float = 0.5) -> Xception:
    """Xception: 22,855,952 parameters and 8,357,403,496 MACs at its 299 px."""
    return Xception(num_classes, dropout)
