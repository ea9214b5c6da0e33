"""INT8 as integer kernels see it, computed in float: weights and activations rounded, the gradient straight through."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handlens.compress.calls import Calls, inside, tensors_in
from handlens.errors import HandlensError

HIGHEST = 127  # of signed weights; -128 is left out, so that they are symmetric
LEVELS = 255  # of unsigned activations, above the lowest
LINEAR = ("conv2d", "linear")  # operations with weights
KERNELS = frozenset((*LINEAR, "matmul", "add", "mul", "mean", "adaptive_avg_pool2d", "avg_pool2d", "hardswish",
                     "hardsigmoid", "sigmoid", "silu"))  # fmt: skip
"""Operations that read 8-bit values; others (ReLU, padding, reshaping, batch norm) are parts of these kernels."""


def round_weight(weight: Tensor) -> Tensor:
    """A weight (out, ...) rounded to 255 levels from -max to max of each output channel."""
    scale = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12) / HIGHEST
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -HIGHEST, HIGHEST)


def round_activation(values: Tensor, low: float, high: float) -> Tensor:
    """Values rounded to 256 levels from `low` to `high`, cut outside of them; 0 is always one of the levels.

    The gradient is 1 inside and 0 outside.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / LEVELS
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, LEVELS)


class Origin(NamedTuple):
    """Where an activation comes from: a name of its own, and the module whose kernel made it."""

    site: str
    module: str


class Rounded(Calls):
    """While it is entered, `net` computes as its int8 form would: `with Rounded(net, ranges): net(images)`.

    Each kernel (`KERNELS`) reads its activations rounded to the ranges, which are of whole tensors and found by
    `ranges_of`, and its weights rounded for each channel. Batch norm need not be folded: scaling a channel does not
    change what its weights round to. An activation is rounded where it is read, after the ReLU and whatever else its
    kernel does in one go.

    only: the name of a module; nothing is rounded but its weights and what it reads and gives. momentum: above zero,
    ranges move by this share towards those of each batch.
    """

    def __init__(
        self,
        net: nn.Module,
        ranges: dict[str, tuple[float, float]],
        only: str | None = None,
        momentum: float = 0.0,
    ) -> None:
        super().__init__(net)
        self.ranges = ranges
        self.only = only
        self.momentum = momentum
        self._seen: dict[str, int] = {}

    def begin(self, *inputs: Any) -> None:
        self._seen.clear()
        for images in tensors_in(inputs):
            _mark(images, Origin("photos", ""))

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        origins = [origin for tensor in tensors_in(args) if (origin := _origin(tensor))]
        if name in KERNELS and origins:
            args = tuple(self.activation(value) if _origin(value) else value for value in args)
            if name in LINEAR and (self.only is None or inside(self.scope, self.only)):
                args = (args[0], self.weight(args[1]), *args[2:])
        result = func(*args, **kwargs)
        for made in tensors_in(result):
            site = self.site(name)
            if origins:
                _mark(made, Origin(site, self.scope if name in KERNELS else origins[0].module))
        return result

    def site(self, name: str) -> str:
        """A name for the result of an operation of this name: the same in every pass."""
        site = f"{self.scope}/{name}"
        self._seen[site] = self._seen.get(site, 0) + 1
        return f"{site}_{self._seen[site]}"

    def weight(self, weight: Tensor) -> Tensor:
        """What a kernel reads in the place of a weight."""
        return round_weight(weight)

    def activation(self, values: Tensor) -> Tensor:
        """What a kernel reads in the place of an activation."""
        origin = _origin(values)
        assert origin
        if self.only is not None and not inside(self.scope, self.only) and not inside(origin.module, self.only):
            return values
        if self.momentum:
            low, high = self.extremes(values)
            old = self.ranges[origin.site]
            moved = old[0] + self.momentum * (low - old[0]), old[1] + self.momentum * (high - old[1])
            self.ranges[origin.site] = moved
        return _mark(round_activation(values, *self.ranges[origin.site]), origin)

    def extremes(self, values: Tensor) -> tuple[float, float]:
        """(lowest, highest). Raises HandlensError where they are no numbers."""
        values = values.detach()
        if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
            values = values.permute(0, 2, 3, 1)  # else aminmax makes a copy
        low, high = map(float, values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise HandlensError(
                f"{self.scope} reads values from {low} to {high}, expected finite ones",
                "the weights are damaged, or the rate of their training was too high",
            )
        return low, high


class Observed(Rounded):
    """Rounds nothing, and widens the ranges to all that it sees."""

    def weight(self, weight: Tensor) -> Tensor:
        return weight

    def activation(self, values: Tensor) -> Tensor:
        origin = _origin(values)
        assert origin
        low, high = self.extremes(values)
        old = self.ranges.get(origin.site, (0.0, 0.0))
        self.ranges[origin.site] = min(low, old[0]), max(high, old[1])
        return values


@torch.no_grad()
def ranges_of(net: nn.Module, images: Tensor) -> dict[str, tuple[float, float]]:
    """(lowest, highest) of every activation that a kernel reads; images (N, 3, H, W) as the network takes them."""
    ranges: dict[str, tuple[float, float]] = {}
    with Observed(net, ranges):
        for batch in batches(images):
            net(batch)
    return ranges


def batches(images: Tensor, size: int = 8) -> Iterator[Tensor]:
    """Images in batches of few: what is kept of each operation stays small."""
    yield from torch.split(images, size)


def _origin(value: Any) -> Origin | None:
    return getattr(value, "_handlens_origin", None) if isinstance(value, Tensor) else None


def _mark(tensor: Tensor, origin: Origin) -> Tensor:
    tensor._handlens_origin = origin  # type: ignore[attr-defined]
    return tensor
