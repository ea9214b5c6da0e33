"""What the networks share: the common face, convolution with two kinds of padding, rounding of channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.errors import HandlensError
from handlens.nets.familiar import Familiar

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
    aux_weight = 0.3  # of the auxiliary classifiers' losses in training, where there are some
    temperature = 1.0  # what logits are divided by before the softmax (`nets.pixels`), so that it means something
    familiar: Familiar | None = None  # what photos of its classes look like to it, where that was fitted

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

    def last_map(self, images: Tensor) -> Tensor:
        """The last of `features`; a network that can lets go of the others, so that a pass takes less memory."""
        features = self.features
        return features(images, last_only=True)[-1] if isinstance(features, Stages) else features(images)[-1]

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> what `classifier` reads, (B, C)."""
        return self.pool(self.last_map(images))

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, num_features): all of the network but its last linear layer."""
        return self.classifier[:-1](self.pooled(images))

    def forward(self, images: Tensor, depth: int | None = None) -> Any:
        """(B, 3, H, W) -> logits (B, num_classes), before softmax.

        With a `depth`: (vector, logits), the vector (B, F) being what module `depth` of `classifier` reads.
        """
        if depth is None:
            return self.classifier[-1](self.embed(images))
        vector = self.classifier[:depth](self.pooled(images))
        return vector, self.classifier[depth:](vector)

    def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and those of auxiliary classifiers where the network has some in training (GoogLeNet)."""
        return self(images), []

    def auxiliary(self) -> list[nn.Module]:
        """The auxiliary classifiers in `forward_train`'s order, each with a `classifier` like the network's own."""
        return []

    def blocks(self) -> list[nn.Module]:
        """The network in pieces from photo to logits, `classifier` last: what layer-wise rates and freezing go by.

        Every parameter belongs to exactly one of the pieces.
        """
        raise NotImplementedError

    def check_input(self, image_px: int) -> None:
        """Raise HandlensError, naming the smallest size that works, for square photos that do not fit the network."""
        if image_px < self.smallest_px:
            raise HandlensError(
                f"{image_px} px is too small an input for {type(self).__name__}",
                f"the smallest that works is {self.smallest_px} px",
            )

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

    def forward(self, images: Tensor, last_only: bool = False) -> list[Tensor]:
        maps = []
        for index, module in enumerate(self):
            images = module(images)
            if index in self.ends and (not last_only or index == max(self.ends)):
                maps.append(images)
        return maps

    def by_convolution(self) -> list[nn.Module]:
        """The modules in groups that each begin with a convolution: the layers as the papers count them."""
        modules = list(self)
        starts = [index for index, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
        return [nn.Sequential(*modules[a:b]) for a, b in zip(starts, [*starts[1:], len(modules)], strict=True)]


class NamedSteps(Net):
    """A network of named modules that run one after another, with auxiliary classifiers on some of them in training.

    A network adds its modules by `add_steps` in their order; `ends` names those whose maps are the stages' ends, and
    `taps` says which auxiliary classifier reads the map of which step: {"inception4a": "aux1"}.
    """

    def __init__(self, ends: Sequence[str], taps: dict[str, str]) -> None:
        super().__init__()
        self.ends, self.taps = frozenset(ends), taps
        self.steps: list[str] = []

    def add_steps(self, **steps: nn.Module) -> None:
        for name, module in steps.items():
            self.add_module(name, module)
            self.steps.append(name)

    def features(self, images: Tensor) -> list[Tensor]:
        return self._run(images)[0]

    def last_map(self, images: Tensor) -> Tensor:
        for step in self.steps:
            images = self.get_submodule(step)(images)
        return images

    def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and in training those of the auxiliary classifiers."""
        maps, tapped = self._run(images)
        heads = self.auxiliary() if self.training else []
        return self.classifier(self.pool(maps[-1])), [head(read) for head, read in zip(heads, tapped, strict=False)]

    def auxiliary(self) -> list[nn.Module]:
        return [self.get_submodule(head) for head in self.taps.values()]

    def blocks(self) -> list[nn.Module]:
        """An auxiliary classifier comes right after the piece whose map it reads: frozen with it, or trained."""
        heads = {step: self.get_submodule(head) for step, head in self.taps.items()}
        pieces = [[self.get_submodule(step), *([heads[step]] if step in heads else [])] for step in self.steps]
        return [piece for pair in pieces for piece in pair if any(True for _ in piece.parameters())] + [self.classifier]

    def _run(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps at the ends of the stages, and those that the auxiliary classifiers read."""
        maps, tapped = [], []
        for step in self.steps:
            images = self.get_submodule(step)(images)
            if step in self.ends:
                maps.append(images)
            if step in self.taps:
                tapped.append(images)
        return maps, tapped


def stage_ends(strides: Sequence[int]) -> list[int]:
    """Indices of the modules after which the map's size changes, and the last: (2, 1, 2, 1, 1) -> [1, 4]."""
    changes = [index - 1 for index, stride in enumerate(strides) if stride > 1 and index > 0]
    return [*changes, len(strides) - 1]


def round_channels(channels: float, divisor: int = 8, minimum: int | None = None) -> int:
    """`channels` rounded to the nearest multiple of `divisor`, never below 90 % of it, at least `minimum`.

    The rule of the MobileNet papers' code: round_channels(32 * 0.75) == 24, round_channels(24 * 0.35) == 8.
    Raises HandlensError below one channel: what the minimum would make of that is another network.
    """
    if channels < 1:
        raise HandlensError(f"this width leaves a layer with {channels:.2g} channels", "use a larger width")
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
    # Above zero throughout: torch's tracer rounds a quotient of sizes to zero, not down.
    pads = [max(0, ((size + stride - 1) // stride - 1) * stride + kernel - size) for size in images.shape[-2:]]
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


class LocalResponseNorm(nn.Module):
    """b = a / (k + alpha * sum of a² over the n nearest channels) ** beta (Krizhevsky et al. 2012, section 3.3).

    As the paper writes it: torch's and Caffe's divide alpha by n. Sums of shifted maps, twice as fast as torch's.
    """

    def __init__(self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        super().__init__()
        self.n, self.k, self.alpha, self.beta = n, k, alpha, beta

    def forward(self, maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        before = self.n // 2
        squares = F.pad(maps * maps, (0, 0, 0, 0, before, self.n - 1 - before))
        total = squares[:, :channels]
        for shift in range(1, self.n):
            total = total + squares[:, shift : shift + channels]
        return maps * (self.k + self.alpha * total).pow(-self.beta)

    def extra_repr(self) -> str:
        return f"n={self.n}, k={self.k:g}, alpha={self.alpha:g}, beta={self.beta:g}"


def pool_to(maps: Tensor, size: int) -> Tensor:
    """(B, C, h, w) -> (B, C, size, size) by averaging: what lets fully connected layers take any input size."""
    if maps.shape[-2:] == (size, size):
        return maps
    # As linear layers, which every export target has and runs fast; Apple's MPS pools to divisors of the size only.
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if torch.compiler.is_exporting() or tracing or maps.device.type == "mps":
        height, width = (_averages(int(length), size).to(maps) for length in maps.shape[-2:])
        return F.linear(F.linear(maps, width).transpose(2, 3), height).transpose(2, 3)
    return F.adaptive_avg_pool2d(maps, size)


def _averages(length: int, size: int) -> Tensor:
    """(size, length): the matrix that adaptive average pooling along one dimension is."""
    rows = torch.zeros(size, length)
    for index in range(size):
        start, end = index * length // size, -(-(index + 1) * length // size)
        rows[index, start:end] = 1 / (end - start)
    return rows


def channel_shuffle(images: Tensor, groups: int) -> Tensor:
    """Deal the channels of (B, C, H, W) out like cards: the first of each group, then the second of each, and so on."""
    return torch.unflatten(images, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)


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


def expansions(given: Sequence[int], blocks: int) -> Sequence[int]:
    """The channels that each of so many blocks expands to, as given for a pruned network; 0s where none are.

    Raises HandlensError where they are not as many, or not all above zero.
    """
    if given and (len(given) != blocks or not all(isinstance(channels, int) and channels > 0 for channels in given)):
        raise HandlensError(f"expanded is {list(given)}, expected {blocks} numbers of channels, one a block")
    return given or [0] * blocks


def init_weights(net: nn.Module) -> None:
    """Kaiming-normal (fan out) for convolutions, N(0, 0.01) for linear layers, 1 and 0 for norms, biases 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


def modules_of(net: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """All modules of one type, in the order of definition."""
    return (module for module in net.modules() if isinstance(module, kind))


Hardswish = functools.partial(nn.Hardswish, inplace=True)
ReLU = functools.partial(nn.ReLU, inplace=True)
ReLU6 = functools.partial(nn.ReLU6, inplace=True)
