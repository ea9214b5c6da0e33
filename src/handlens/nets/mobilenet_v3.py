"""Searching for MobileNetV3. Howard et al. 2019, arXiv 1905.02244v5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from handlens.nets.layers import (
    Hardswish,
    Net,
    Padding,
    ReLU,
    Stages,
    StochasticDepth,
    conv_bn,
    expansions,
    init_weights,
    round_channels,
    stage_ends,
)


class Bneck(NamedTuple):
    """A "bneck" row of Tables 1 and 2: kernel, expansion size, #out, squeeze-and-excite, non-linearity, stride.

    Channels are those at width 1.
    """

    k: int
    exp: int
    out: int
    se: bool
    nl: Callable[[], nn.Module]
    s: int


SE, __ = True, False
RE, HS = ReLU, Hardswish
STEM = 16  # the 3x3 convolution before the table's bnecks; 6 times the last #out is the 1x1 convolution after them
LARGE_HEAD, SMALL_HEAD = 1280, 1024  # the 1x1 convolution after the pooling

LARGE = (  # Table 1
    #     k  exp  out  SE  NL  s    input
    Bneck(3,  16,  16, __, RE, 1),  # 112² x 16
    Bneck(3,  64,  24, __, RE, 2),  # 112² x 16
    Bneck(3,  72,  24, __, RE, 1),  #  56² x 24
    Bneck(5,  72,  40, SE, RE, 2),  #  56² x 24
    Bneck(5, 120,  40, SE, RE, 1),  #  28² x 40
    Bneck(5, 120,  40, SE, RE, 1),  #  28² x 40
    Bneck(3, 240,  80, __, HS, 2),  #  28² x 40
    Bneck(3, 200,  80, __, HS, 1),  #  14² x 80
    Bneck(3, 184,  80, __, HS, 1),  #  14² x 80
    Bneck(3, 184,  80, __, HS, 1),  #  14² x 80
    Bneck(3, 480, 112, SE, HS, 1),  #  14² x 80
    Bneck(3, 672, 112, SE, HS, 1),  #  14² x 112
    Bneck(5, 672, 160, SE, HS, 2),  #  14² x 112
    Bneck(5, 960, 160, SE, HS, 1),  #   7² x 160
    Bneck(5, 960, 160, SE, HS, 1),  #   7² x 160
)  # fmt: skip

SMALL = (  # Table 2; it also marks SE on the 1x1 convolution after these rows, which no published network has
    #     k  exp  out  SE  NL  s    input
    Bneck(3,  16,  16, SE, RE, 2),  # 112² x 16
    Bneck(3,  72,  24, __, RE, 2),  #  56² x 16
    Bneck(3,  88,  24, __, RE, 1),  #  28² x 24
    Bneck(5,  96,  40, SE, HS, 2),  #  28² x 24
    Bneck(5, 240,  40, SE, HS, 1),  #  14² x 40
    Bneck(5, 240,  40, SE, HS, 1),  #  14² x 40
    Bneck(5, 120,  48, SE, HS, 1),  #  14² x 40
    Bneck(5, 144,  48, SE, HS, 1),  #  14² x 48
    Bneck(5, 288,  96, SE, HS, 2),  #  14² x 48
    Bneck(5, 576,  96, SE, HS, 1),  #   7² x 96
    Bneck(5, 576,  96, SE, HS, 1),  #   7² x 96
)  # fmt: skip


class SqueezeExcite(nn.Module):
    """Each channel weighted by a hard sigmoid of two 1x1 convolutions on the pooled map; a quarter as many between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeeze = round_channels(channels / 4)
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)

    def gates(self, images: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 1, 1) in [0, 1]."""
        squeezed = self.fc1(images.mean((2, 3), keepdim=True)).relu()
        return nn.functional.hardsigmoid(self.fc2(squeezed))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.gates(images)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, squeeze-and-excite, 1x1 linear projection; added to its input where shapes agree."""

    def __init__(
        self, row: Bneck, inp: int, exp: int, out: int, padding: Padding, bn_eps: float, pruned_to: int = 0
    ) -> None:
        super().__init__()
        expands = exp != inp
        exp = pruned_to if pruned_to and expands else exp
        layers: list[nn.Module] = [conv_bn(inp, exp, 1, act=row.nl, bn_eps=bn_eps)] if expands else []
        layers.append(conv_bn(exp, exp, row.k, row.s, groups=exp, act=row.nl, padding=padding, bn_eps=bn_eps))
        if row.se:
            layers.append(SqueezeExcite(exp))
        layers.append(conv_bn(exp, out, 1, act=None, bn_eps=bn_eps))
        self.block = nn.Sequential(*layers)
        self.residual = row.s == 1 and inp == out
        self.drop = StochasticDepth()

    def forward(self, images: Tensor) -> Tensor:
        return images + self.drop(self.block(images)) if self.residual else self.block(images)


class MobileNetV3(Net):
    """The networks of Tables 1 and 2, and what their authors published beside them."""

    def __init__(
        self,
        table: tuple[Bneck, ...],
        head: int,
        num_classes: int,
        width: float,
        padding: Padding,
        bn_eps: float,
        dropout: float,
        scale_head: bool,
        minimalistic: bool,
        expanded: Sequence[int] = (),
    ) -> None:
        super().__init__()
        nl = RE if minimalistic else HS
        if minimalistic:
            table = tuple(row._replace(k=3, se=False, nl=RE) for row in table)
        stem = STEM if width < 0.75 and not scale_head else round_channels(STEM * width)
        layers: list[nn.Module] = [conv_bn(3, stem, 3, 2, act=nl, padding=padding, bn_eps=bn_eps)]
        inp, inp_at_1 = stem, STEM
        for row, pruned_to in zip(table, expansions(expanded, len(table)), strict=True):
            # The authors' code expands the rounded input by the table's ratio; torchvision scales the expansion itself.
            exp = round_channels(row.exp * width if scale_head else inp * row.exp / inp_at_1)
            out = round_channels(row.out * width)
            layers.append(InvertedResidual(row, inp, exp, out, padding, bn_eps, pruned_to))
            inp, inp_at_1 = out, row.out
        last = 6 * inp if scale_head else round_channels(6 * inp_at_1 * width)
        head = round_channels(head * width) if scale_head else head
        layers.append(conv_bn(inp, last, 1, act=nl, bn_eps=bn_eps))
        self.features: Stages = Stages(layers, stage_ends([2, *(row.s for row in table), 1]))
        self.classifier = nn.Sequential(nn.Linear(last, head), nl(), nn.Dropout(dropout), nn.Linear(head, num_classes))
        init_weights(self)

    def blocks(self) -> list[nn.Module]:
        return [*self.features, self.classifier]


def mobilenet_v3_large(
    num_classes: int = 1000,
    width: float = 1.0,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-3,
    dropout: float = 0.2,
    scale_head: bool = False,
    minimalistic: bool = False,
    head: int = LARGE_HEAD,
    expanded: Sequence[int] = (),
) -> MobileNetV3:
    """MobileNetV3-Large at any width multiplier: 5,483,032 parameters and 216,589,760 MACs at width 1, 224 px.

    `bn_eps` 1e-3 is the papers' code's and torchvision's; timm's files that do not begin with tf_ have 1e-5.
    At a width other than 1 the layer after the pooling keeps its `head` channels, as in the paper's figures, and the
    stem its 16 below 0.75; with `scale_head` everything is scaled, as by torchvision's width_mult. `minimalistic`:
    no squeeze-and-excite, no h-swish, no 5x5 kernels. `expanded`: channels that each bneck expands to, where it has
    been pruned (`train.prune`).
    """
    return MobileNetV3(LARGE, head, num_classes, width, padding, bn_eps, dropout, scale_head, minimalistic, expanded)


def mobilenet_v3_small(
    num_classes: int = 1000,
    width: float = 1.0,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-3,
    dropout: float = 0.2,
    scale_head: bool = False,
    minimalistic: bool = False,
    head: int = SMALL_HEAD,
    expanded: Sequence[int] = (),
) -> MobileNetV3:
    """MobileNetV3-Small at any width multiplier: 2,542,856 parameters and 56,510,400 MACs at width 1, 224 px.

    The arguments are those of `mobilenet_v3_large`. With `head` 1280 it is the one of the paper's first draft.
    """
    return MobileNetV3(SMALL, head, num_classes, width, padding, bn_eps, dropout, scale_head, minimalistic, expanded)
