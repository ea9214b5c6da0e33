"""What the networks share: the common face, convolution with two kinds of padding, rounding of channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["symmetric", "tensorflow"]


class Net(nn.Module):
    """The face of every network here.

    `classifier` is an nn.Sequential whose last module is the nn.Linear that gives the logits; a network defines it,
    and `features`. Images are normalised float (B, 3, H, W).
    """

    classifier: nn.Sequential
    features: Callable[[Tensor], list[Tensor]]
    """(B, 3, H, W) -> the map at the end of each stage (each resolution), (B, C, h, w), largest first.

    A method, or a `Stages` module where the published parameter names begin with "features"."""
    smallest_px = 32  # the smallest square input that works

    @property
    def num_features(self) -> int:
        """Width of the vector that `embed` gives and the last linear layer reads."""
        return self._last_linear().in_features

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self._last_linear().out_features

    def pool(self, last_map: Tensor) -> Tensor:
        """The last stage's map (B, C, h, w) -> what `classifier` reads, (B, C)."""
        return last_map.mean((2, 3))

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_features): all of the network but its last linear layer."""
        return self.classifier[:-1](self.pool(self.features(images)[-1]))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes), before softmax."""
        return self.classifier[-1](self.embed(images))

    def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of auxiliary classifiers where the network has some in training (GoogLeNet)."""
        return self(images), []

    def blocks(self) -> list[nn.Module]:
        """The network in pieces from photo to logits, `classifier` last: what layer-wise rates and freezing go by.

        Every parameter belongs to exactly one of the pieces.
        """
        raise NotImplementedError

    def _last_linear(self) -> nn.Linear:
        last = self.classifier[-1]
        assert isinstance(last, nn.Linear)
        return last


class Stages(nn.Sequential):
    """Modules run in order; gives the maps after those whose indices are in `ends`.

    It is an nn.Sequential so that the parameters are named `features.0...`, as in torchvision's files.
    """

    def __init__(self, modules: Sequence[nn.Module], ends: Sequence[int]) -> None:
        super().__init__(*modules)
        self.ends = frozenset(ends)

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        maps = []
        for index, module in enumerate(self):
            images = module(images)
            if index in self.ends:
                maps.append(images)
        return maps


def stage_ends(strides: Sequence[int]) -> list[int]:
    """Indices of the modules after which the map's size changes, and the last: (2, 1, 2, 1, 1) -> [1, 4]."""
    changes = [index - 1 for index, stride in enumerate(strides) if stride > 1 and index > 0]
    return [*changes, len(strides) - 1]


def round_channels(channels: float, divisor: int = 8, minimum: int | None = None) -> int:
    """`channels` rounded to the nearest multiple of `divisor`, never below 90 % of it, at least `minimum`.

    The rule of the MobileNet papers' code: round_channels(32 * 0.75) == 24, round_channels(24 * 0.35) == 8.
    """
    rounded = max(minimum or divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class Conv2d(nn.Conv2d):
    """A convolution with padding "symmetric" ((k - 1) // 2 on every side) or "tensorflow" (its SAME).

    SAME makes ceil(input / stride) outputs and puts the odd row and column at the bottom and right; for stride 1 the
    two are equal, for stride 2 on even sizes they look at pixels one apart. Weights made with one lose up to 25
    points of top-1 with the other.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        padding: Padding = "symmetric",
    ) -> None:
        same = padding == "tensorflow" and stride > 1
        super().__init__(
            in_channels, out_channels, kernel, stride, 0 if same else (kernel - 1) // 2, groups=groups, bias=bias
        )
        self.same = same

    def forward(self, images: Tensor) -> Tensor:
        if self.same:
            images = same_pad(images, self.kernel_size[0], self.stride[0])
        return super().forward(images)


def same_pad(images: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (B, C, H, W) as TensorFlow's SAME does for this kernel and stride: the odd one at the bottom and right."""
    pads = [max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in images.shape[-2:]]
    height, width = pads
    return F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU6,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation (None: linear): `.0`, `.1` and `.2` of a Sequential."""
    layers: list[nn.Module] = [
        Conv2d(in_channels, out_channels, kernel, stride, groups, padding=padding),
        nn.BatchNorm2d(out_channels, eps=bn_eps),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


class StochasticDepth(nn.Module):
    """Drops a residual branch whole, photo by photo, with probability `p` in training (Huang et al. 2016)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return branch
        kept = branch.new_empty((len(branch),) + (1,) * (branch.ndim - 1)).bernoulli_(1 - self.p)
        return branch * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


def init_weights(net: nn.Module) -> None:
    """Kaiming-normal (fan out) for convolutions, N(0, 0.01) for linear layers, 1 and 0 for norms, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)


def modules_of(net: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """All modules of one type, in the order of definition."""
    return (module for module in net.modules() if isinstance(module, kind))


Hardswish = functools.partial(nn.Hardswish, inplace=True)
ReLU = functools.partial(nn.ReLU, inplace=True)
ReLU6 = functools.partial(nn.ReLU6, inplace=True)
