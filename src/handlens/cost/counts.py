"""Parameters and multiply-accumulates of a network, counted on shapes alone."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from handlens import nets

# What they give out has the shape of what they are given: on the meta device they take two thirds of the time.
_SAME_SHAPE = (
    nn.BatchNorm2d, nn.Dropout, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, nn.GELU,
)  # fmt: skip


class Cost(NamedTuple):
    """What one photo costs.

    num_params: trainable values, batch norm's scale and shift among them.
    macs:       multiply-accumulates of convolutions, linear layers and attention in evaluation, as the papers count.
    """

    num_params: int
    macs: int


def count(net: str | nets.Net, image_px: int | None = None, **arguments: Any) -> Cost:
    """The cost of a network, or of a registered one by name, on one photo of `image_px` by `image_px`.

    By name, `arguments` are those of `nets.create` and `image_px` is the published one if left out. Nothing is
    computed but shapes, and the network given is left as it is. Raises HandlensError for a name, argument or size
    that does not fit.
    """
    if isinstance(net, str):
        image_px = nets.entry(net).image_px if image_px is None else image_px
        net = nets.on_meta(net, **arguments)
    elif image_px is None or arguments:
        raise TypeError("a network that is built already is counted at a given image_px, without other arguments")
    nets.check_input(net, image_px)
    return Cost(count_params(net), macs_of(net, 1, 3, image_px, image_px))


def macs_of(module: nn.Module, *shape: int) -> int:
    """Multiply-accumulates of any module's convolutions, linear layers and attention on an input of this shape."""
    shapes = _on_meta(module).eval().requires_grad_(False)  # else the counter asks parameters given on for gradients
    for layer in shapes.modules():
        if type(layer) in _SAME_SHAPE:
            layer.forward = nn.Identity().forward
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


def count_params(net: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in net.parameters())


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy of the module with shapes in place of values."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo)
