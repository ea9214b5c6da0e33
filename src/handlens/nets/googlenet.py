"""GoogLeNet: Going Deeper with Convolutions. Szegedy et al. 2014, arXiv 1409.4842."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.nets.layers import LocalResponseNorm, NamedSteps, ReLU, init_weights, modules_of, pool_to


class Row(NamedTuple):
    """An inception row of Table 1: filters of the six convolutions, and the output's channels."""

    name: str
    output: int
    n1x1: int
    n3x3_reduce: int
    n3x3: int
    n5x5_reduce: int
    n5x5: int
    pool_proj: int


STEM = (64, 64, 192)  # 7x7/2; then, between two max pools 3x3/2, "#3x3 reduce" and 3x3
TABLE = (  # Table 1; a max pool 3x3/2 comes before 4a and 5a
    #   type output #1x1 #3x3red #3x3 #5x5red #5x5 proj    input
    Row("3a",  256,   64,   96,  128,   16,   32,   32),  # 28² x 192
    Row("3b",  480,  128,  128,  192,   32,   96,   64),  # 28² x 256
    Row("4a",  512,  192,   96,  208,   16,   48,   64),  # 14² x 480
    Row("4b",  512,  160,  112,  224,   24,   64,   64),  # 14² x 512
    Row("4c",  512,  128,  128,  256,   24,   64,   64),  # 14² x 512
    Row("4d",  528,  112,  144,  288,   32,   64,   64),  # 14² x 512
    Row("4e",  832,  256,  160,  320,   32,  128,  128),  # 14² x 528
    Row("5a",  832,  256,  160,  320,   32,  128,  128),  #  7² x 832
    Row("5b", 1024,  384,  192,  384,   48,  128,  128),  #  7² x 832
)  # fmt: skip
AUXILIARY = {"4a": "aux1", "4d": "aux2"}  # section 5: which inception's map each auxiliary classifier reads


def conv(inp: int, out: int, kernel: int, stride: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Convolution, batch norm in place of a bias if asked for, ReLU; the map keeps its size at stride 1."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=not batch_norm)
    if batch_norm:
        layers["bn"] = nn.BatchNorm2d(out, eps=1e-3)
    layers["relu"] = ReLU()
    return nn.Sequential(layers)


class Inception(nn.Module):
    """Figure 2(b): 1x1, 3x3 and 5x5 convolutions and a max pool side by side, with 1x1 reductions."""

    def __init__(self, inp: int, row: Row, batch_norm: bool, size: int = 5) -> None:
        super().__init__()
        self.branch1 = conv(inp, row.n1x1, 1, 1, batch_norm)
        self.branch2 = nn.Sequential(
            conv(inp, row.n3x3_reduce, 1, 1, batch_norm), conv(row.n3x3_reduce, row.n3x3, 3, 1, batch_norm)
        )
        self.branch3 = nn.Sequential(
            conv(inp, row.n5x5_reduce, 1, 1, batch_norm), conv(row.n5x5_reduce, row.n5x5, size, 1, batch_norm)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inp, row.pool_proj, 1, 1, batch_norm))
        self.out = row.output

    def forward(self, images: Tensor) -> Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(images) for branch in branches], 1)


class NaiveInception(nn.Module):
    """Figure 2(a): without the 1x1 reductions; the pooled input keeps all its channels, so every block adds to them."""

    def __init__(self, inp: int, row: Row, batch_norm: bool) -> None:
        super().__init__()
        self.branch1 = conv(inp, row.n1x1, 1, 1, batch_norm)
        self.branch2 = conv(inp, row.n3x3, 3, 1, batch_norm)
        self.branch3 = conv(inp, row.n5x5, 5, 1, batch_norm)
        self.branch4 = nn.MaxPool2d(3, 1, 1)
        self.out = row.n1x1 + row.n3x3 + row.n5x5 + inp

    def forward(self, images: Tensor) -> Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(images) for branch in branches], 1)


class Auxiliary(nn.Module):
    """Section 5: average pool 5x5/3, 1x1 convolution to 128, fully connected 1024, dropout of 70 %, logits."""

    def __init__(self, inp: int, num_classes: int, batch_norm: bool, overlapping: bool) -> None:
        super().__init__()
        self.overlapping = overlapping
        self.conv = conv(inp, 128, 1, 1, batch_norm)
        self.classifier = nn.Sequential(
            nn.Linear(128 * 4 * 4, 1024), ReLU(), nn.Dropout(0.7), nn.Linear(1024, num_classes)
        )

    def forward(self, maps: Tensor) -> Tensor:
        if self.overlapping and min(maps.shape[-2:]) >= 5:
            maps = F.avg_pool2d(maps, 5, 3)  # 14² -> 4²; what other input sizes leave is averaged to that
        return self.classifier(self.conv(pool_to(maps, 4)).flatten(1))


class GoogLeNet(NamedSteps):
    """Table 1; `torchvision` takes the departures of its published weights instead."""

    def __init__(
        self, num_classes: int, batch_norm: bool, naive: bool, aux: bool, dropout: float, torchvision: bool = False
    ) -> None:
        ends = ("conv1", "conv3" if batch_norm else "norm2", "inception3b", "inception4e", "inception5b")
        super().__init__(ends, {f"inception{row}": head for row, head in AUXILIARY.items()} if aux else {})
        a, b, channels = STEM
        self.add_steps(conv1=conv(3, a, 7, 2, batch_norm), maxpool1=max_pool())
        if not batch_norm:  # Figure 3's response normalisation, which batch norm stands in for
            self.add_steps(norm1=LocalResponseNorm())
        self.add_steps(conv2=conv(a, b, 1, 1, batch_norm), conv3=conv(b, channels, 3, 1, batch_norm))
        if not batch_norm:
            self.add_steps(norm2=LocalResponseNorm())
        self.add_steps(maxpool2=max_pool())
        for row in TABLE:
            if row.name == "4a":
                self.add_steps(maxpool3=max_pool())
            if row.name == "5a":
                self.add_steps(maxpool4=max_pool(2 if torchvision else 3))
            block: Inception | NaiveInception
            if naive:
                block = NaiveInception(channels, row, batch_norm)
            else:
                block = Inception(channels, row, batch_norm, 3 if torchvision else 5)
            channels = block.out
            self.add_steps(**{f"inception{row.name}": block})
            if aux and row.name in AUXILIARY:
                head = Auxiliary(channels, num_classes, batch_norm, overlapping=not torchvision)
                self.add_module(AUXILIARY[row.name], head)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        self.smallest_px = 15 if torchvision else 31
        init_weights(self)
        for convolution in modules_of(self, nn.Conv2d):
            assert isinstance(convolution, nn.Conv2d)
            # By fan in: by fan out a reduction 480 -> 16 amplifies 5-fold, and without batch norm training diverges.
            nn.init.kaiming_normal_(convolution.weight)


def max_pool(kernel: int = 3) -> nn.MaxPool2d:
    """Stride 2, rounding up: 112 -> 56 -> 28 -> 14 -> 7, the sizes of Table 1."""
    return nn.MaxPool2d(kernel, 2, ceil_mode=True)


def googlenet(
    num_classes: int = 1000, batch_norm: bool = False, naive: bool = False, aux: bool = True, dropout: float = 0.4
) -> GoogLeNet:
    """GoogLeNet as in its paper: 1,582,671,872 MACs at 224 px.

    6,998,552 parameters are what the paper's table counts and what is left in evaluation (`aux=False`); the two
    auxiliary classifiers add 6,379,728 in training. `naive` takes Figure 2(a)'s inception block, without reductions.
    `batch_norm` puts it after every convolution and leaves out biases and response normalisation.
    """
    return GoogLeNet(num_classes, batch_norm, naive, aux, dropout)


def googlenet_torchvision(num_classes: int = 1000, aux: bool = False, dropout: float = 0.2) -> GoogLeNet:
    """torchvision's, for its weights: batch norm, 3x3 where the paper has 5x5, the last max pool 2x2.

    6,624,904 parameters and 1,498,376,192 MACs at 224 px. Its auxiliary classifiers (`aux=True`: 13,004,888 parameters)
    came without trained weights, which is why torchvision's own count leaves them out.
    """
    return GoogLeNet(num_classes, True, False, aux, dropout, torchvision=True)
