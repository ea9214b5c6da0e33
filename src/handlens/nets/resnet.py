"""ResNet: Deep Residual Learning for Image Recognition. He et al. 2015, arXiv 1512.03385."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from handlens.errors import HandlensError
from handlens.nets.layers import Conv2d, Net, ReLU, StochasticDepth, init_weights


class Row(NamedTuple):
    """A row of Table 1: channels of the 3x3 convolutions, stride of the first block, blocks in each of the nets."""

    layer_name: str
    channels: int
    stride: int
    blocks: dict[int, int]


TABLE = (  # Table 1, between the 7x7 convolution of stride 2 with its 3x3 max pool, and the average pool
    #    layer name  3x3  stride  18-layer 34-layer 50-layer 101-layer 152-layer    output
    Row("conv2_x",    64, 1, {18: 2,   34: 3,   50: 3,   101: 3,   152: 3}),   # 56²
    Row("conv3_x",   128, 2, {18: 2,   34: 4,   50: 4,   101: 4,   152: 8}),   # 28²
    Row("conv4_x",   256, 2, {18: 2,   34: 6,   50: 6,   101: 23,  152: 36}),  # 14²
    Row("conv5_x",   512, 2, {18: 2,   34: 3,   50: 3,   101: 3,   152: 3}),   #  7²
)  # fmt: skip


class CifarColumn(NamedTuple):
    """A column of Section 4.2's table, of 2n layers: the size of the maps, and their channels."""

    output_map_px: int
    filters: int


CIFAR_TABLE = (  # Section 4.2: 6n + 2 layers on 32² photos, after one 3x3 convolution
    CifarColumn(32, 16),
    CifarColumn(16, 32),
    CifarColumn(8, 64),
)


class ZeroPad(nn.Module):
    """Shortcut A: every `stride`-th pixel, and channels of zeros at the end. It has no parameters."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = out - inp, stride

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class Residual(nn.Module):
    """A branch of convolutions added to a shortcut (Figure 2), ReLU after the sum; without a shortcut a plain block."""

    expansion: ClassVar[int] = 1  # output channels a channel of the 3x3

    def __init__(self, inp: int, channels: int, stride: int, shortcut: str | None) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.relu = ReLU()
        if shortcut:
            self.downsample = _shortcut(inp, channels * self.expansion, stride, shortcut)
            self.drop = StochasticDepth()

    def branch(self, images: Tensor) -> Tensor:
        """The block's convolutions, without the last ReLU."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if not self.shortcut:
            return self.relu(self.branch(images))
        return self.relu(self.downsample(images) + self.drop(self.branch(images)))


def _shortcut(inp: int, out: int, stride: int, option: str) -> nn.Module:
    """Options A, B and C of Section 4.1: the identity where shapes agree, but in C."""
    if option != "C" and stride == 1 and inp == out:
        return nn.Identity()
    if option == "A":
        return ZeroPad(inp, out, stride)
    return nn.Sequential(Conv2d(inp, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(Residual):
    """Two 3x3 convolutions (Figure 5, left)."""

    def __init__(self, inp: int, channels: int, stride: int, shortcut: str | None) -> None:
        super().__init__(inp, channels, stride, shortcut)
        self.conv1 = Conv2d(inp, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)

    def branch(self, images: Tensor) -> Tensor:
        images = self.relu(self.bn1(self.conv1(images)))
        return self.bn2(self.conv2(images))


class Bottleneck(Residual):
    """1x1 to fewer channels, 3x3, 1x1 to four times as many (Figure 5, right).

    The paper's stride is in the first 1x1; in the 3x3, as torchvision has it, no pixel goes unread ("v1.5").
    """

    expansion: ClassVar[int] = 4

    def __init__(self, inp: int, channels: int, stride: int, shortcut: str | None, stride_in_1x1: bool) -> None:
        super().__init__(inp, channels, stride, shortcut)
        out = channels * self.expansion
        self.conv1 = Conv2d(inp, channels, 1, stride if stride_in_1x1 else 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, 1 if stride_in_1x1 else stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = Conv2d(channels, out, 1)
        self.bn3 = nn.BatchNorm2d(out)

    def branch(self, images: Tensor) -> Tensor:
        images = self.relu(self.bn1(self.conv1(images)))
        images = self.relu(self.bn2(self.conv2(images)))
        images = self.conv3(images)  # a line of its own: its input is gone when the norm runs
        return self.bn3(images)


class ResNet(Net):
    """A first convolution, a max pool or none, layers of residual blocks; all layers but the first halve the map."""

    def __init__(
        self,
        conv1: nn.Conv2d,
        maxpool: nn.Module | None,
        layers: Sequence[Sequence[Residual]],
        num_features: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = nn.BatchNorm2d(conv1.out_channels)
        self.relu = ReLU()
        self.maxpool = maxpool
        self.layer_names = [f"layer{number}" for number in range(1, len(layers) + 1)]
        for name, blocks in zip(self.layer_names, layers, strict=True):
            self.add_module(name, nn.Sequential(*blocks))
        self.classifier = nn.Sequential(nn.Linear(num_features, num_classes))
        self.smallest_px = 2 ** (len(layers) - 1) * (4 if maxpool else 1)  # one pixel in the last map
        init_weights(self)

    def features(self, images: Tensor) -> list[Tensor]:
        images = self.relu(self.bn1(self.conv1(images)))
        maps = []
        if self.maxpool is not None:
            maps.append(images)
            images = self.maxpool(images)
        for name in self.layer_names:
            images = self.get_submodule(name)(images)
            maps.append(images)
        return maps

    def last_map(self, images: Tensor) -> Tensor:
        images = self.relu(self.bn1(self.conv1(images)))
        images = images if self.maxpool is None else self.maxpool(images)
        for name in self.layer_names:
            images = self.get_submodule(name)(images)
        return images

    def blocks(self) -> list[nn.Module]:
        layers = [block for name in self.layer_names for block in self.get_submodule(name).children()]
        return [nn.Sequential(self.conv1, self.bn1), *layers, self.classifier]


def resnet(
    depth: int, num_classes: int = 1000, shortcut: str = "B", residual: bool = True, stride_in_1x1: bool = False
) -> ResNet:
    """ResNet of 18, 34, 50, 101 or 152 layers.

    `shortcut`: where shapes change "A" pads with zeros and "B" projects by a 1x1 convolution; "C" projects everywhere.
    `residual=False` gives the plain network, without shortcuts. `stride_in_1x1=True` is the paper's ResNet-50 of 3.86
    GMACs, False torchvision's of 4.09. Raises HandlensError for another shortcut.
    """
    option = _option(shortcut, residual)
    inp, layers = 64, []
    for row in TABLE:
        blocks: list[Residual] = []
        for index in range(row.blocks[depth]):
            stride = row.stride if index == 0 else 1
            if depth < 50:
                blocks.append(BasicBlock(inp, row.channels, stride, option))
            else:
                blocks.append(Bottleneck(inp, row.channels, stride, option, stride_in_1x1))
            inp = row.channels * blocks[-1].expansion
        layers.append(blocks)
    return ResNet(Conv2d(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), layers, inp, num_classes)


def resnet_cifar(depth: int, num_classes: int = 10, shortcut: str = "A", residual: bool = True) -> ResNet:
    """The ResNet of 6n + 2 layers for photos of 32 px (Section 4.2), with the paper's shortcuts A.

    `shortcut` and `residual` as in `resnet`. Raises HandlensError for another shortcut.
    """
    option = _option(shortcut, residual)
    n = (depth - 2) // 6
    inp, map_px, layers = 16, 32, []
    for column in CIFAR_TABLE:
        first = BasicBlock(inp, column.filters, map_px // column.output_map_px, option)
        map_px, inp = column
        layers.append([first, *(BasicBlock(inp, inp, 1, option) for _ in range(n - 1))])
    return ResNet(Conv2d(3, 16, 3), None, layers, inp, num_classes)


def _option(shortcut: str, residual: bool) -> str | None:
    if shortcut not in ("A", "B", "C"):
        raise HandlensError(f"shortcut is {shortcut!r}, expected 'A', 'B' or 'C'", "the paper's section 4.1 tells them")
    return shortcut if residual else None


resnet18 = partial(resnet, 18)
resnet34 = partial(resnet, 34)
resnet50 = partial(resnet, 50)
resnet101 = partial(resnet, 101)
resnet152 = partial(resnet, 152)
plain18 = partial(resnet, 18, residual=False)
plain34 = partial(resnet, 34, residual=False)

resnet20 = partial(resnet_cifar, 20)
resnet32 = partial(resnet_cifar, 32)
resnet44 = partial(resnet_cifar, 44)
resnet56 = partial(resnet_cifar, 56)
resnet110 = partial(resnet_cifar, 110)
resnet1202 = partial(resnet_cifar, 1202)
plain20 = partial(resnet_cifar, 20, residual=False)
plain56 = partial(resnet_cifar, 56, residual=False)
