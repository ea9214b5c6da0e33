"""Float networks made easier to round: equalised layers, and biases that make up for rounded weights.

Data-Free Quantization Through Weight Equalization and Bias Correction. Nagel et al. 2019, arXiv 1906.04721.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from handlens.compress.calls import Calls, inside, tensors_in
from handlens.compress.fake import LINEAR, round_weight
from handlens.nets import Net
from handlens.nets.fold import SQUARE_PX

_PASSES = frozenset(("relu", "relu_", "pad", "max_pool2d", "dropout"))  # scaling channels before or after is the same
_ROUNDS = 20  # over all pairs; each brings the ranges nearer to their fixed point
_SETTLED = 1e-3  # as a share: when no scale differs more from 1 the ranges are equal


class _Readers(Calls):
    """Notes what reads what."""

    def __init__(self, net: Net) -> None:
        super().__init__(net)
        self.steps: list[tuple[str, str, list[int]]] = []  # operation, scope, steps whose results it reads
        self._kept: list[Tensor] = []  # alive, so that no two have one id
        self._made_by: dict[int, int] = {}

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sources = [self._made_by[id(tensor)] for tensor in tensors_in(args) if id(tensor) in self._made_by]
        result = func(*args, **kwargs)
        if made := tensors_in(result):
            self.steps.append((name, self.scope, sources))
            self._kept += made
            self._made_by |= {id(tensor): len(self.steps) - 1 for tensor in made}
        return result


@torch.no_grad()
def pairs(net: Net) -> list[tuple[str, str]]:
    """Names of the convolutions that follow one another with a ReLU between them or nothing, and no other reader.

    Padding and max pools, which scale as their input does, may be there too. ReLU6 and hard-swish do not.
    """
    px, like = max(SQUARE_PX, net.smallest_px), next(net.parameters())
    image = torch.zeros(1, 3, px, px, device=like.device, dtype=like.dtype)
    with _Readers(net) as readers:
        net(image)
    steps = readers.steps
    num_readers = [0] * len(steps)
    for _, _, sources in steps:
        for source in sources:
            num_readers[source] += 1
    calls: dict[str, int] = {}
    for name, scope, _ in steps:
        calls[scope] = calls.get(scope, 0) + (name == "conv2d")
    found = []
    for name, scope, sources in steps:
        if name != "conv2d" or not sources:
            continue
        step = sources[0]
        while steps[step][0] in _PASSES and steps[step][2] and num_readers[step] == 1:
            step = steps[step][2][0]
        first = steps[step][1]
        if steps[step][0] == "conv2d" and num_readers[step] == 1 and calls[first] == calls[scope] == 1:
            found.append((first, scope))
    return found


@torch.no_grad()
def equalise(net: Net) -> Net:
    """A copy of a folded network, the same function, in which neighbouring convolutions have channels of equal range.

    With s = sqrt(r1 / r2) for each channel between two convolutions, r1 the largest weight that makes it and r2 the
    largest that reads it, W1 / s, b1 / s and W2 * s have the same range on both sides (Nagel et al. 2019, eq. 9 to
    11). Done for all `pairs` in turn until nothing changes; the maps at the ends of stages may be scaled by it.
    """
    equal = copy.deepcopy(net).eval()
    convs = [(equal.get_submodule(first), equal.get_submodule(second)) for first, second in pairs(equal)]
    for _ in range(_ROUNDS):
        worst = 0.0
        for first, second in convs:
            assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
            out, each, *kernel = second.weight.shape
            read = second.weight.view(second.groups, out // second.groups, each, *kernel)
            r1, r2 = first.weight.abs().flatten(1).amax(1), read.abs().amax((1, 3, 4)).flatten()
            scale = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)  # a dead channel stays as it is
            first.weight.div_(scale.view(-1, 1, 1, 1))
            if first.bias is not None:
                first.bias.div_(scale)
            read.mul_(scale.view(second.groups, 1, each, 1, 1))
            worst = max(worst, float((scale - 1).abs().max()))
        if worst < _SETTLED:
            break
    return equal


class _Means(Calls):
    """Keeps the mean of each output channel of each layer with weights, by the layer's name."""

    def __init__(self, net: Net) -> None:
        super().__init__(net)
        self.means: dict[str, Tensor] = {}

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if name in LINEAR:
            self.means[self.scope] = channel_means(result)
        return result


class _Corrected(Calls):
    """Rounds the weights, and moves each layer's outputs, and its bias for good, to the means that are given."""

    def __init__(self, net: Net, means: dict[str, Tensor], keep_float: Collection[str]) -> None:
        super().__init__(net)
        self.means = means
        self.keep_float = keep_float

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name not in LINEAR:
            return func(*args, **kwargs)
        kept = any(inside(self.scope, module) for module in self.keep_float)
        result = func(args[0], args[1] if kept else round_weight(args[1]), *args[2:], **kwargs)
        layer = self.net.get_submodule(self.scope)
        bias = args[2] if len(args) > 2 else None
        if bias is None and getattr(layer, "weight", None) is args[1]:
            bias = layer.bias = nn.Parameter(torch.zeros_like(self.means[self.scope]))
        if bias is None:  # weights that are computed, where no bias is read: there is nothing to correct
            return result
        missing = self.means[self.scope] - channel_means(result)
        bias.add_(missing)
        return result + (missing.view(-1, 1, 1) if name == "conv2d" else missing)


@torch.no_grad()
def correct_bias(net: Net, images: Tensor, keep_float: Collection[str] = ()) -> Net:
    """A copy of a folded network whose biases make up for the rounding of its weights to int8.

    images: (N, 3, H, W) as the network takes them, run as one batch; 64 or more. keep_float: names of modules whose
    weights will not be rounded: with other biases than theirs the network would be worse than before. The weights
    stay in float here; once they are rounded
    (`fake.round_weight`) the mean of every output channel of every layer over these images is that of `net` (Nagel et
    al. 2019, section 4.2, by photos), each layer reading what the rounded ones before it give.
    """
    corrected = copy.deepcopy(net).eval()
    with _Means(corrected) as floats:
        corrected(images)
    with _Corrected(corrected, floats.means, keep_float):
        corrected(images)
    return corrected


def channel_means(outputs: Tensor) -> Tensor:
    """Of (B, C, h, w) or (..., C): (C,)."""
    return outputs.mean((0, 2, 3)) if outputs.ndim == 4 else outputs.flatten(0, -2).mean(0)
