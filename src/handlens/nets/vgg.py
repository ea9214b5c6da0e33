"""VGG: Very Deep Convolutional Networks for Large-Scale Image Recognition. Simonyan et al. 2014, arXiv 1409.1556."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from handlens.nets.layers import LocalResponseNorm, Net, ReLU, Stages, init_weights, pool_to, stage_ends


class Column(NamedTuple):
    """A column of Table 1: the layers between its max pools."""

    to_224: str
    to_112: str
    to_56: str
    to_28: str
    to_14: str


# Table 1, a column a network; "conv3-64": a 3x3 convolution to 64 channels, with ReLU. Each stage ends in a max pool.
A = Column(
    "conv3-64",
    "conv3-128",
    "conv3-256 conv3-256",
    "conv3-512 conv3-512",
    "conv3-512 conv3-512",
)
A_LRN = A._replace(to_224="conv3-64 LRN")
B = Column(
    "conv3-64 conv3-64",
    "conv3-128 conv3-128",
    "conv3-256 conv3-256",
    "conv3-512 conv3-512",
    "conv3-512 conv3-512",
)
C = Column(
    "conv3-64 conv3-64",
    "conv3-128 conv3-128",
    "conv3-256 conv3-256 conv1-256",
    "conv3-512 conv3-512 conv1-512",
    "conv3-512 conv3-512 conv1-512",
)
D = Column(
    "conv3-64 conv3-64",
    "conv3-128 conv3-128",
    "conv3-256 conv3-256 conv3-256",
    "conv3-512 conv3-512 conv3-512",
    "conv3-512 conv3-512 conv3-512",
)
E = Column(
    "conv3-64 conv3-64",
    "conv3-128 conv3-128",
    "conv3-256 conv3-256 conv3-256 conv3-256",
    "conv3-512 conv3-512 conv3-512 conv3-512",
    "conv3-512 conv3-512 conv3-512 conv3-512",
)
NEURONS = 4096  # FC-4096 twice, then FC-1000
POOLED = 7  # side of the last map at 224 px; other sizes are averaged to it


class VGG(Net):
    """A column of Table 1. The maps of its stages are those before each max pool, and the last one after it."""

    def __init__(self, column: Column, num_classes: int, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        strides: list[int] = []
        channels = 3
        for stage in column:
            for layer in stage.split():
                if layer == "LRN":
                    added: list[nn.Module] = [LocalResponseNorm()]
                else:
                    kernel, out = map(int, layer.removeprefix("conv").split("-"))
                    added = [nn.Conv2d(channels, out, kernel, padding=kernel // 2)]  # with bias, batch norm or not
                    added += [nn.BatchNorm2d(out), ReLU()] if batch_norm else [ReLU()]
                    channels = out
                layers += added
                strides += [1] * len(added)
            layers.append(nn.MaxPool2d(2))
            strides.append(2)
        self.features: Stages = Stages(layers, stage_ends(strides))
        self.classifier = nn.Sequential(
            *(nn.Linear(channels * POOLED**2, NEURONS), ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(NEURONS, NEURONS), ReLU(), nn.Dropout(dropout)),
            nn.Linear(NEURONS, num_classes),
        )
        init_weights(self)

    def pool(self, last_map: Tensor) -> Tensor:
        return pool_to(last_map, POOLED).flatten(1)

    def blocks(self) -> list[nn.Module]:
        return [*self.features.by_convolution(), self.classifier]


def vgg11(num_classes: int = 1000, batch_norm: bool = False, dropout: float = 0.5) -> VGG:
    """Column A: 132,863,336 parameters and 7,609,090,048 MACs; batch norm adds 5,504 parameters."""
    return VGG(A, num_classes, batch_norm, dropout)


def vgg11_lrn(num_classes: int = 1000, dropout: float = 0.5) -> VGG:
    """Column A-LRN: A with response normalisation after the first convolution.

    It has no batch norm: the column is there to see what a normalisation does, and with batch norm in every layer its
    one response normalisation would be lost.
    """
    return VGG(A_LRN, num_classes, False, dropout)


def vgg13(num_classes: int = 1000, batch_norm: bool = False, dropout: float = 0.5) -> VGG:
    """Column B: 133,047,848 parameters and 11,308,466,176 MACs."""
    return VGG(B, num_classes, batch_norm, dropout)


def vgg16c(num_classes: int = 1000, batch_norm: bool = False, dropout: float = 0.5) -> VGG:
    """Column C, B with three 1x1 convolutions: 133,638,952 parameters and 11,770,888,192 MACs."""
    return VGG(C, num_classes, batch_norm, dropout)


def vgg16(num_classes: int = 1000, batch_norm: bool = False, dropout: float = 0.5) -> VGG:
    """Column D: 138,357,544 parameters and 15,470,264,320 MACs."""
    return VGG(D, num_classes, batch_norm, dropout)


def vgg19(num_classes: int = 1000, batch_norm: bool = False, dropout: float = 0.5) -> VGG:
    """Column E: 143,667,240 parameters and 19,632,062,464 MACs."""
    return VGG(E, num_classes, batch_norm, dropout)
