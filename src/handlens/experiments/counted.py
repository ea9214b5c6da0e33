"""Multiply-accumulates of any module, counted on shapes."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs_of(module: nn.Module, *shape: int) -> int:
    """Multiply-accumulates of a module's convolutions and linear layers on an input of this shape."""
    shapes = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2
