"""Inception-v3: Rethinking the Inception Architecture for Computer Vision. Szegedy et al. 2015, arXiv 1512.00567."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.nets.layers import NamedSteps, ReLU, init_weights, pool_to


class Conv(NamedTuple):
    """A convolution with batch norm and ReLU: filters, patch size (height, width), stride."""

    out: int
    patch: tuple[int, int]
    stride: int = 1


class Branch(NamedTuple):
    """A branch of an inception figure, from its base upwards; a pair of convolutions stands side by side."""

    name: str
    convs: tuple[Conv | tuple[Conv, Conv], ...]


_1x1, _3x3, _5x5 = (1, 1), (3, 3), (5, 5)
_1x3, _3x1, _1x7, _7x1 = (1, 3), (3, 1), (1, 7), (7, 1)


class Figure(NamedTuple):
    """An inception block: its branches, and the 1x1 filters after its average pool (None: a max pool of stride 2)."""

    branches: tuple[Branch, ...]
    pool: int | None


def figure_5(pool: int) -> Figure:
    """Two 3x3 for a 5x5. The published network keeps a 5x5 in the middle branch, which the figure replaces too."""
    return Figure(
        (
            Branch("branch1x1", (Conv(64, _1x1),)),
            Branch("branch5x5", (Conv(48, _1x1), Conv(64, _5x5))),
            Branch("branch3x3dbl", (Conv(64, _1x1), Conv(96, _3x3), Conv(96, _3x3))),
        ),
        pool,
    )


def figure_6(n: int) -> Figure:
    """1x7 and 7x1 for 7x7, with `n` filters inside."""
    a, b = Conv(n, _1x7), Conv(n, _7x1)
    return Figure(
        (
            Branch("branch1x1", (Conv(192, _1x1),)),
            Branch("branch7x7", (Conv(n, _1x1), a, Conv(192, _7x1))),
            Branch("branch7x7dbl", (Conv(n, _1x1), b, a, b, Conv(192, _1x7))),
        ),
        192,
    )


FIGURE_7 = Figure(
    (
        Branch("branch1x1", (Conv(320, _1x1),)),
        Branch("branch3x3", (Conv(384, _1x1), (Conv(384, _1x3), Conv(384, _3x1)))),
        Branch("branch3x3dbl", (Conv(448, _1x1), Conv(384, _3x3), (Conv(384, _1x3), Conv(384, _3x1)))),
    ),
    192,
)
TO_17 = Figure(  # Figure 10, from 35² to 17²
    (
        Branch("branch3x3", (Conv(384, _3x3, 2),)),
        Branch("branch3x3dbl", (Conv(64, _1x1), Conv(96, _3x3), Conv(96, _3x3, 2))),
    ),
    None,
)
TO_8 = Figure(  # Figure 10, from 17² to 8²
    (
        Branch("branch3x3", (Conv(192, _1x1), Conv(320, _3x3, 2))),
        Branch("branch7x7x3", (Conv(192, _1x1), Conv(192, _1x7), Conv(192, _7x1), Conv(192, _3x3, 2))),
    ),
    None,
)

# Table 1 prints another stem (two convolutions more, no second pool) and five blocks of Figure 6; below is the network
# that was published with its weights, under its names. Its stem is unpadded but for Conv2d_2b, as printed.
STEM = {  #              type                     input
    "Conv2d_1a_3x3": Conv( 32, _3x3, 2),  # 299² x 3
    "Conv2d_2a_3x3": Conv( 32, _3x3),     # 149² x 32
    "Conv2d_2b_3x3": Conv( 64, _3x3),     # 147² x 32, padded
    "maxpool1":      None,                # 147² x 64, 3x3/2
    "Conv2d_3b_1x1": Conv( 80, _1x1),     #  73² x 64
    "Conv2d_4a_3x3": Conv(192, _3x3),     #  73² x 80
    "maxpool2":      None,                #  71² x 192, 3x3/2
}  # fmt: skip
TABLE = {  # Table 1's inception blocks
    "Mixed_5b": figure_5(pool=32),        #  35² x 192
    "Mixed_5c": figure_5(pool=64),        #  35² x 256
    "Mixed_5d": figure_5(pool=64),        #  35² x 288
    "Mixed_6a": TO_17,                    #  35² x 288
    "Mixed_6b": figure_6(128),            #  17² x 768
    "Mixed_6c": figure_6(160),            #  17² x 768
    "Mixed_6d": figure_6(160),            #  17² x 768
    "Mixed_6e": figure_6(192),            #  17² x 768
    "Mixed_7a": TO_8,                     #  17² x 768
    "Mixed_7b": FIGURE_7,                 #   8² x 1280
    "Mixed_7c": FIGURE_7,                 #   8² x 2048
}  # fmt: skip
ENDS = ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")  # the maps before each reduction


def conv_bn(inp: int, conv: Conv, padded: bool = True) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the map keeps its size if padded."""
    height, width = conv.patch
    padding = (height // 2, width // 2) if padded else 0
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(inp, conv.out, conv.patch, conv.stride, padding, bias=False)
    layers["bn"] = nn.BatchNorm2d(conv.out, eps=1e-3)
    layers["relu"] = ReLU()
    return nn.Sequential(layers)


class Inception(nn.Module):
    """A figure's branches and its pool side by side. Convolutions of stride 2 are not padded.

    A branch's convolutions are named `branch5x5_1`, `branch5x5_2`..., a single one `branch1x1`, a pair side by side
    `branch3x3_2a` and `branch3x3_2b`.
    """

    def __init__(self, inp: int, figure: Figure) -> None:
        super().__init__()
        self.branches: list[list[tuple[str, ...]]] = []
        self.out = 0
        for name, convs in figure.branches:
            channels, steps = inp, []
            for number, step in enumerate(convs, start=1):
                pair = step if not isinstance(step, Conv) else (step,)
                names = [f"{name}_{number}{letter}" for letter in "ab"] if len(pair) == 2 else [f"{name}_{number}"]
                if len(convs) == 1:
                    names = [name]
                for conv_name, conv in zip(names, pair, strict=True):
                    self.add_module(conv_name, conv_bn(channels, conv, padded=conv.stride == 1))
                steps.append(tuple(names))
                channels = sum(conv.out for conv in pair)
            self.branches.append(steps)
            self.out += channels
        self.reduction = figure.pool is None
        if figure.pool:
            self.branch_pool = conv_bn(inp, Conv(figure.pool, _1x1))
        self.out += figure.pool or inp

    def forward(self, images: Tensor) -> Tensor:
        outputs = []
        for steps in self.branches:
            maps = [images]
            for names in steps:  # only the last step of a branch is a pair, so that one map comes in
                maps = [self.get_submodule(name)(maps[0]) for name in names]
            outputs += maps
        if self.reduction:
            return torch.cat([*outputs, F.max_pool2d(images, 3, 2)], 1)
        return torch.cat([*outputs, self.branch_pool(F.avg_pool2d(images, 3, 1, 1))], 1)


class Auxiliary(nn.Module):
    """Section 4's auxiliary classifier, batch-normalised: average pool 5x5/3, 1x1 and 5x5 convolutions, logits."""

    def __init__(self, inp: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = conv_bn(inp, Conv(128, _1x1))
        self.conv1 = conv_bn(128, Conv(768, _5x5), padded=False)
        self.classifier = nn.Sequential(nn.Linear(768, num_classes))

    def forward(self, maps: Tensor) -> Tensor:
        if min(maps.shape[-2:]) >= 17:
            maps = F.avg_pool2d(maps, 5, 3)  # 17² -> 5²
        else:
            maps = pool_to(maps, 5)  # from inputs below 299 px, of which the 5x5/3 leaves too little
        return self.classifier(self.conv1(self.conv0(maps)).mean((2, 3)))


class InceptionV3(NamedSteps):
    """The published network; its auxiliary classifier reads the last 17² map."""

    smallest_px = 75
    aux_weight = 0.4  # as TF-slim trained it

    def __init__(self, num_classes: int, aux: bool, dropout: float) -> None:
        super().__init__(ENDS, {"Mixed_6e": "AuxLogits"} if aux else {})
        channels = 3
        for name, row in STEM.items():
            if row is None:
                self.add_steps(**{name: nn.MaxPool2d(3, 2)})
            else:
                self.add_steps(**{name: conv_bn(channels, row, padded=name == "Conv2d_2b_3x3")})
                channels = row.out
        for name, figure in TABLE.items():
            block = Inception(channels, figure)
            self.add_steps(**{name: block})
            channels = block.out
            if name in self.taps:
                self.add_module(self.taps[name], Auxiliary(channels, num_classes))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        init_weights(self)


def inception_v3(num_classes: int = 1000, aux: bool = True, dropout: float = 0.5) -> InceptionV3:
    """Inception-v3: 5,713,216,096 MACs at 299 px.

    27,161,264 parameters with the auxiliary classifier, as torchvision counts; 23,834,568 in evaluation (`aux=False`).
    """
    return InceptionV3(num_classes, aux, dropout)
