"""All that a network costs, by layer and in sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from handlens import nets
from handlens.cost import layers, memory
from handlens.cost.counts import count_params
from handlens.cost.layers import Layer
from handlens.cost.memory import WeightBytes
from handlens.errors import HandlensError


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one photo of `image_px` by `image_px` costs.

    num_params:            values that are trained, those of auxiliary classifiers among them.
    macs:                  multiply-accumulates of convolutions, linear layers and attention in evaluation.
    peak_activation_bytes: as `memory.peak_inference_bytes`; peak_training_bytes as the function of that name.
    weight_bytes:          as `memory.weight_bytes`.
    receptive_field_px:    of the last map or tokens, before they are pooled; None, and `sees_all`, as in `Layer`.
    layers:                in the order in which they run.
    stopped:               None, or one sentence: at which operation the network could not be traced further, and why.
                           Then `layers` are those before it and what it leaves unknown is None.
    """

    image_px: int
    num_params: int
    macs: int | None
    peak_activation_bytes: int | None
    peak_training_bytes: int | None
    weight_bytes: WeightBytes
    receptive_field_px: float | None
    sees_all: bool
    layers: tuple[Layer, ...]
    stopped: str | None


def report_on(net: str | nn.Module, image_px: int | None = None, **arguments: Any) -> Report:
    """The cost of a network, of a registered one by name, or of any module that takes images (B, 3, H, W).

    By name, `arguments` are those of `nets.create`. `image_px` left out is the published size, or 224. Nothing is
    computed but shapes, and the network is left as it is. Raises HandlensError for a name, argument or size that does
    not fit; a module that cannot be traced is told in the report's `stopped`.
    """
    if isinstance(net, str):
        image_px = nets.entry(net).image_px if image_px is None else image_px
        net = nets.on_meta(net, **arguments)
    elif arguments:
        raise TypeError("a network that is built already takes no other arguments")
    image_px = 224 if image_px is None else image_px
    if isinstance(net, nets.Net):
        nets.check_input(net, image_px)
    elif image_px < 1:
        raise HandlensError(f"image_px is {image_px}, expected at least 1")
    traced = layers.trace(net, image_px)
    stopped = traced.stopped
    inference = training = None
    if not stopped:
        inference = memory.peak_inference_bytes(net, image_px)
        try:
            training = memory.peak_training_bytes(net, image_px)
        except Exception as error:  # anything: the network may be anyone's
            reason = (str(error).strip() or "no message").splitlines()[0]
            stopped = f"the backward pass of {type(net).__name__} cannot be traced: {type(error).__name__}: {reason}"
    maps = [layer for layer in traced.layers if layer.is_map]
    return Report(
        image_px=image_px,
        num_params=count_params(net),
        macs=None if traced.stopped else sum(layer.macs for layer in traced.layers),
        peak_activation_bytes=inference,
        peak_training_bytes=training,
        weight_bytes=memory.weight_bytes(net),
        receptive_field_px=maps[-1].receptive_field_px if maps and not traced.stopped else None,
        sees_all=bool(maps) and maps[-1].sees_all and not traced.stopped,
        layers=traced.layers,
        stopped=stopped,
    )
