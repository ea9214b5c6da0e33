"""AlexNet. Krizhevsky, Sutskever and Hinton 2012, ImageNet Classification with Deep Convolutional Neural Networks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from handlens.nets.layers import LocalResponseNorm, Net, ReLU, Stages, init_weights, pool_to, stage_ends


class Conv(NamedTuple):
    """A convolution of section 3.5 with what follows its ReLU: response normalisation, 3x3 max pooling of stride 2."""

    kernels: int
    size: int
    stride: int
    padding: int
    groups: int  # 2 where each GPU's kernels see only the maps on that GPU
    norm: bool
    pool: bool


TABLE = (  # section 3.5 and Figure 2; its input of 224 px gives 55² maps only if padded to 227
    #   kernels size s p g  norm   pool       input
    Conv( 96, 11, 4, 0, 1, True,  True),   # 227² x 3
    Conv(256,  5, 1, 2, 2, True,  True),   #  27² x 96
    Conv(384,  3, 1, 1, 1, False, False),  #  13² x 256
    Conv(384,  3, 1, 1, 2, False, False),  #  13² x 384
    Conv(256,  3, 1, 1, 2, False, True),   #  13² x 384
)  # fmt: skip
ONE_TOWER = (  # torchvision's, after Krizhevsky 2014, One weird trick, arXiv 1404.5997
    #   kernels size s p g  norm   pool       input
    Conv( 64, 11, 4, 2, 1, False, True),   # 224² x 3
    Conv(192,  5, 1, 2, 1, False, True),   #  27² x 64
    Conv(384,  3, 1, 1, 1, False, False),  #  13² x 192
    Conv(256,  3, 1, 1, 1, False, False),  #  13² x 384
    Conv(256,  3, 1, 1, 1, False, True),   #  13² x 256
)  # fmt: skip
NEURONS = 4096  # of each of the two fully connected layers
POOLED = 6  # side of the last map at the papers' input sizes; other sizes are averaged to it


class AlexNet(Net):
    """Five convolutions and three fully connected layers; dropout after the first two of these, or before them."""

    def __init__(
        self, table: tuple[Conv, ...], num_classes: int, dropout: float, dropout_first: bool, smallest_px: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        strides: list[int] = []
        channels = 3
        for kernels, size, stride, padding, groups, norm, pool in table:
            layers += [nn.Conv2d(channels, kernels, size, stride, padding, groups=groups), ReLU()]
            layers += [LocalResponseNorm()] if norm else []
            layers += [nn.MaxPool2d(3, 2)] if pool else []
            strides += [stride, 1, *[1] * norm, *[2] * pool]
            channels = kernels
        self.features: Stages = Stages(layers, stage_ends(strides))
        fc6, fc7 = nn.Linear(channels * POOLED**2, NEURONS), nn.Linear(NEURONS, NEURONS)
        if dropout_first:
            hidden = [nn.Dropout(dropout), fc6, ReLU(), nn.Dropout(dropout), fc7, ReLU()]
        else:
            hidden = [fc6, ReLU(), nn.Dropout(dropout), fc7, ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*hidden, nn.Linear(NEURONS, num_classes))
        self.smallest_px = smallest_px
        init_weights(self)

    def pool(self, last_map: Tensor) -> Tensor:
        return pool_to(last_map, POOLED).flatten(1)

    def blocks(self) -> list[nn.Module]:
        return [*self.features.by_convolution(), self.classifier]


def alexnet(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """AlexNet as in 2012, two towers in one: 60,965,224 parameters and 724,406,816 MACs at 227 px."""
    return AlexNet(TABLE, num_classes, dropout, dropout_first=False, smallest_px=67)


def alexnet_torchvision(num_classes: int = 1000, dropout: float = 0.5) -> AlexNet:
    """torchvision's one-tower variant: 61,100,840 parameters and 714,188,480 MACs at 224 px."""
    return AlexNet(ONE_TOWER, num_classes, dropout, dropout_first=True, smallest_px=63)
