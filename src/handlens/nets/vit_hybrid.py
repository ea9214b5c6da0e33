"""R50+ViT-B/16: a ResNet's maps as the patches of a Vision Transformer. Dosovitskiy et al. 2020, arXiv 2010.11929.

The ResNet is that of Big Transfer (Kolesnikov et al. 2019, arXiv 1912.11370): weights standardised (Qiao et al. 2019,
arXiv 1903.10520), group norm in place of batch norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.nets.layers import Conv2d, ReLU, StochasticDepth, same_pad
from handlens.nets.vit import TABLE as VIT_TABLE
from handlens.nets.vit import VisionTransformer


class Stage(NamedTuple):
    """Channels of the 3x3 convolutions (a quarter of the output's), blocks, stride of the first block."""

    channels: int
    blocks: int
    stride: int


STAGES = (  # Section 4.1: "remove stage 4, place the same number of layers in stage 3": 3, 4, 6 + 3 blocks
    #     channels      input
    Stage(64,  3, 1),  # 56² x 64
    Stage(128, 4, 2),  # 56² x 256
    Stage(256, 9, 2),  # 28² x 512; gives 14² x 1024
)  # fmt: skip
STRIDE_PX = 16  # pixels of the photo a side of the last map's


class StdConv2d(Conv2d):
    """A convolution with TensorFlow's padding; its filters are brought to mean 0 and variance 1 as they are used."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inp, out, kernel, stride, padding="tensorflow")

    def filters(self) -> Tensor:
        """The filters as they are used."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        variance = centred.square().mean((1, 2, 3), keepdim=True)  # var_mean is not known to every export
        return centred * torch.rsqrt(variance + 1e-8)

    def plain(self) -> Conv2d:
        """A convolution that has these filters as its own: the same function where they no longer change."""
        conv = Conv2d(self.in_channels, self.out_channels, self.kernel_size[0], self.stride[0], padding="tensorflow")
        conv.weight = nn.Parameter(self.filters().detach())
        return conv

    def forward(self, images: Tensor) -> Tensor:
        weight = self.filters()
        if self.same:
            images = same_pad(images, self.kernel_size[0], self.stride[0])
        return F.conv2d(images, weight, None, self.stride, self.padding)


class Projection(nn.Module):
    """The shortcut where shapes change."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = StdConv2d(inp, out, 1, stride)
        self.norm = nn.GroupNorm(32, out)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the channels, added to the shortcut."""

    def __init__(self, inp: int, channels: int, stride: int) -> None:
        super().__init__()
        out = 4 * channels
        self.conv1 = StdConv2d(inp, channels, 1)
        self.norm1 = nn.GroupNorm(32, channels)
        self.conv2 = StdConv2d(channels, channels, 3, stride)
        self.norm2 = nn.GroupNorm(32, channels)
        self.conv3 = StdConv2d(channels, out, 1)
        self.norm3 = nn.GroupNorm(32, out)
        self.relu = ReLU()
        self.downsample = Projection(inp, out, stride) if inp != out else nn.Identity()
        self.drop = StochasticDepth()

    def forward(self, images: Tensor) -> Tensor:
        branch = self.relu(self.norm1(self.conv1(images)))
        branch = self.relu(self.norm2(self.conv2(branch)))
        branch = self.norm3(self.conv3(branch))
        return self.relu(self.downsample(images) + self.drop(branch))


class Stem(nn.Module):
    """7x7 convolution of stride 2."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.conv = StdConv2d(3, out, 7, 2)
        self.norm = nn.GroupNorm(32, out)
        self.relu = ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(images)))


class Backbone(nn.Module):
    """The ResNet-50 of three stages."""

    def __init__(self) -> None:
        super().__init__()
        inp = 64
        self.stem = Stem(inp)
        self.stages = nn.ModuleList()
        for channels, n, stride in STAGES:
            blocks = []
            for index in range(n):
                blocks.append(Bottleneck(inp, channels, stride if index == 0 else 1))
                inp = 4 * channels
            self.stages.append(nn.Sequential(*blocks))
        self.out_channels = inp

    def forward(self, images: Tensor, last_only: bool = False) -> list[Tensor]:
        """(B, 3, H, W) -> the stem's map and each stage's, or only the last."""
        images = self.stem(images)
        maps = [images]
        images = F.max_pool2d(same_pad(images, 3, 2), 3, 2)  # zeros do for SAME: ReLU leaves nothing below them
        for stage in self.stages:
            if last_only:
                maps.clear()
            images = stage(images)
            maps.append(images)
        return maps


class HybridVisionTransformer(VisionTransformer):
    """The Vision Transformer whose patches are the pixels of the backbone's last map."""

    def __init__(self, size: str, image_px: int, num_classes: int, dropout: float) -> None:
        variant = VIT_TABLE[size]
        backbone = Backbone()
        conv_proj = nn.Conv2d(backbone.out_channels, variant.hidden_size, 1)
        super().__init__(conv_proj, STRIDE_PX, image_px, variant, num_classes, dropout)
        self.backbone = backbone  # as torch initialises it: the scale of standardised weights does not matter

    def patches(self, images: Tensor) -> Tensor:
        return self.conv_proj(self.backbone(images, last_only=True)[-1])

    def features(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone(images)
        return [*maps[:-1], self.token_map(self.conv_proj(maps[-1]))]

    def blocks(self) -> list[nn.Module]:
        bottlenecks = [block for stage in self.backbone.stages for block in stage.children()]
        return [self.backbone.stem, *bottlenecks, *super().blocks()]


def vit_base_r50_s16_224(num_classes: int = 1000, image_px: int = 224, dropout: float = 0.0) -> HybridVisionTransformer:
    """R50+ViT-B/16: 98,659,112 parameters and 21,535,358,976 MACs at 224 px. Arguments and errors as `vit.vit`'s."""
    return HybridVisionTransformer("B", image_px, num_classes, dropout)
