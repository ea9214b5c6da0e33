"""The network's passes forward and backward as CUDA graphs: one launch in place of hundreds of small kernels'.

The loss and the optimiser stay outside: a few launches, for which the host has time while the card works.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from handlens.nets import Net


class Captured:
    """A network whose pass over batches of one shape is captured; others go through `model` as they are.

    model: the network as Fabric wraps it.  graphed: images (B, 3, px, px) -> (logits, *auxiliary logits).
    """

    def __init__(self, model: Any, net: Net, graphed: Any, shape: torch.Size) -> None:
        self.model, self.graphed, self.shape = model, graphed, shape
        self.aux_weight = net.aux_weight

    def forward_train(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As the network's own."""
        if images.shape != self.shape:
            logits, auxiliary = self.model.forward_train(images)
            return logits, auxiliary
        first, *others = self.graphed(images)
        return first, others


def captured(model: Any, net: Net, images: Tensor, precision: str) -> Any:
    """`model`, captured for batches such as `images` where they lie on a CUDA device and that can be done.

    The network must be in the modes that it is trained in. Capturing runs it on noise, and its statistics are put back.
    """
    if not _can_capture(images.device):
        return model
    before = [buffer.clone() for buffer in net.buffers()]
    try:
        # cuDNN tries its algorithms while the network warms up; the graph keeps the best.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            graphed = torch.cuda.make_graphed_callables(
                Whole(net, precision), (torch.randn_like(images),), allow_unused_input=True
            )
    except RuntimeError:  # something in it waits for the processor
        torch.cuda.synchronize(images.device)
        graphed = None
    for buffer, value in zip(net.buffers(), before, strict=True):
        buffer.copy_(value)
    return Captured(model, net, graphed, images.shape) if graphed else model


def _can_capture(device: torch.device) -> bool:
    return device.type == "cuda"


class Whole(nn.Module):
    """`Net.forward_train` with mixed precision inside, and a flat tuple of float32 logits, as capturing wants them."""

    def __init__(self, net: Net, precision: str) -> None:
        super().__init__()
        self.net, self.mixed = net, precision != "32-true"
        self.dtype = torch.float16 if precision.startswith("16") else torch.bfloat16

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # Weights cast once and remembered would not be cast again when the graph is replayed.
        with torch.autocast(images.device.type, self.dtype, enabled=self.mixed, cache_enabled=False):
            logits, auxiliary = self.net.forward_train(images)
        return logits.float(), *(extra.float() for extra in auxiliary)
