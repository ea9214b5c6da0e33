"""What the tests of networks share: a network of ours with another's weights, and counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from handlens import nets
from handlens.nets import keys


@pytest.fixture(scope="session")
def twin() -> Callable[..., nets.Net]:
    """twin(name, reference, **arguments): our network with the weights of `reference`, in evaluation.

    `source` is "torchvision" or "timm": where the reference comes from, and so whose parameter names it has.

    The reference's weights are drawn first: of a size that keeps the signal alive to the logits, batch-norm scales and
    statistics unlike their defaults. Both then hold the same memory.
    """

    def make(name: str, reference: nn.Module, source: str = "torchvision", **arguments: Any) -> nets.Net:
        random = torch.Generator().manual_seed(0)
        for module in reference.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, generator=random)
                if module.bias is not None:
                    nn.init.normal_(module.bias, 0, 0.1, generator=random)
            elif isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.running_var):
                    nn.init.uniform_(value, 0.5, 1.5, generator=random)
                for value in (module.bias, module.running_mean):
                    nn.init.normal_(value, 0, 0.2, generator=random)
        net = nets.on_meta(name, **arguments)
        weights = {keys.rename(source, name, key): value for key, value in reference.state_dict().items()}
        net.load_state_dict(weights, assign=True)
        return net.eval()

    return make


@pytest.fixture(scope="session")
def macs() -> Callable[[nn.Module, int], int]:
    """macs(net, image_px): multiply-adds of one photo, of a network on the meta device."""

    def count(net: nn.Module, image_px: int) -> int:
        with FlopCounterMode(display=False) as counter:
            net.eval()(torch.empty(1, 3, image_px, image_px, device="meta"))
        return counter.get_total_flops() // 2

    return count
