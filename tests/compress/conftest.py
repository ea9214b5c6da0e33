"""Small networks whose statistics are not those of random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from handlens.nets import Net
from handlens.preprocess import Preprocess


@pytest.fixture(scope="session")
def shaken() -> Callable[..., Net]:
    """Builds a network in evaluation mode with batch norms of uneven scale, as training leaves them."""
    import copy
    import functools

    import torch

    from handlens import nets

    @functools.cache
    def made(name: str, num_classes: int = 5, seed: int = 0, **arguments: Any) -> Net:
        torch.manual_seed(seed)
        net = nets.create(name, num_classes, **arguments)
        norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        images = torch.randn(8, 3, 64, 64)
        with torch.no_grad():
            for norm in norms:
                norm.momentum = 1.0
                norm.weight.copy_(torch.rand_like(norm.weight) * 2 + 0.1)
                norm.bias.copy_(torch.randn_like(norm.bias) * 0.3)
            net.train()(images)
            for norm in norms:
                norm.momentum = 0.1
                norm.running_var.mul_(torch.rand_like(norm.running_var) + 0.5)
        return net.eval()

    def build(name: str, **arguments: Any) -> Net:
        return copy.deepcopy(made(name, **arguments))

    return build


@pytest.fixture(scope="session")
def with_rounded_weights() -> Callable[..., Callable[[np.ndarray], np.ndarray]]:
    """Of a network and a contract: what gives the logits with weights rounded to 127 steps a channel, in torch."""
    import copy

    import torch

    from handlens.nets.pixels import FromPixels

    def build(net: Net, contract: Preprocess) -> Callable[[np.ndarray], np.ndarray]:
        rounded = copy.deepcopy(net)
        with torch.no_grad():
            for module in rounded.modules():
                if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                    weight = module.weight
                    step = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / 127
                    weight.copy_((weight / step).round() * step)
        wrapped = FromPixels(rounded, contract).eval()

        def logits(photos: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                found: np.ndarray = wrapped(torch.from_numpy(photos))[1].numpy()
            return found

        return logits

    return build
