"""What the weights show by themselves: the first layer's kernels, and depthwise kernels that do nothing."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from torch import nn

from handlens.errors import HandlensError
from handlens.nets import Net
from handlens.nets.vit_hybrid import StdConv2d
from handlens.preprocess import Preprocess

THRESHOLD = 0.01  # of the layer's median: trained layers have a gap of several powers of ten around it


def first_layer(net: Net, preprocess: Preprocess) -> tuple[str, np.ndarray]:
    """(name, kernels) of the convolution that reads the photo: float32 (N, k, k, 3), as RGB of the photo's own pixels.

    The contract's channel order and standard deviations are undone, so the weights are those for pixels in [0, 1].
    Filters that the network standardises are as it uses them.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            weight = module.filters() if isinstance(module, StdConv2d) else module.weight
            kernels = weight.detach().float().numpy().transpose(0, 2, 3, 1)
            if preprocess.channels == "bgr":
                kernels = kernels[..., ::-1]
            return name, np.ascontiguousarray(kernels / np.array(preprocess.std, np.float32))
    raise HandlensError(f"{type(net).__name__} has no convolution that reads the photo's three channels")


def describe(kernels: np.ndarray) -> dict[str, Any]:
    """Numbers of kernels (N, k, k, 3): `shape`, and for each its `norm` and `colour_share`.

    colour_share: the share of its squared weights that differ between the channels; 0 is a kernel that sees only
    grey, 1 one whose channels add up to nothing.
    """
    squares = (kernels.astype(np.float64) ** 2).sum((1, 2, 3))
    grey = 3 * (kernels.astype(np.float64).mean(3) ** 2).sum((1, 2))
    share = 1 - np.divide(grey, squares, out=np.ones_like(grey), where=squares > 0)
    return {
        "shape": list(kernels.shape),
        "norm": np.sqrt(squares).tolist(),
        "colour_share": np.clip(share, 0, 1).tolist(),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthwiseKernels:
    """The depthwise kernels of one layer.

    weight:  (C,), norm of each kernel with the batch norm after it folded in: |kernel| * |scale| / sqrt(variance +
             eps).
    spread:  (C,), standard deviation that the batch norm gives the channel on the training photos, |scale| *
             sqrt(variance / (variance + eps)); None where no batch norm follows.
    dead:    channels whose `weight` is below `threshold` times the layer's median: hardly any weight.
    silent:  channels that are not dead, but whose `spread` is below `threshold` times the median: the kernel has
             weight, but what it reads never changes, and neither does what it gives.
    """

    layer: str
    threshold: float
    weight: np.ndarray
    spread: np.ndarray | None
    dead: np.ndarray
    silent: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: the counts, the channels, the medians."""
        return {
            "layer": self.layer,
            "num_kernels": len(self.weight),
            "num_dead": len(self.dead),
            "num_silent": len(self.silent),
            "dead": self.dead.tolist(),
            "silent": self.silent.tolist(),
            "median_weight": float(np.median(self.weight)),
            "least_weight": float(self.weight.min()),
        }


def depthwise(net: Net, threshold: float = THRESHOLD) -> list[DepthwiseKernels]:
    """The depthwise layers from the photo to the logits. Raises HandlensError for a network that has none.

    A depthwise kernel reads one channel alone. The batch norm that directly follows is taken into account.
    """
    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    found = []
    for (name, module), (_, after) in itertools.pairwise([*leaves, ("", nn.Identity())]):
        if not (isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1):
            continue
        weight = module.weight.detach().double().flatten(1).norm(dim=1).numpy()
        spread = None
        if isinstance(after, nn.BatchNorm2d) and after.running_var is not None:
            scale = after.weight.detach().double().abs().numpy()
            variance = after.running_var.double().numpy()
            spread = scale * np.sqrt(variance / (variance + after.eps))
            weight = weight * scale / np.sqrt(variance + after.eps)
        dead = _low(weight, threshold)
        silent = np.setdiff1d(_low(spread, threshold), dead) if spread is not None else dead[:0]
        found.append(
            DepthwiseKernels(layer=name, threshold=threshold, weight=weight, spread=spread, dead=dead, silent=silent)
        )
    if not found:
        raise HandlensError(
            f"{type(net).__name__} has no depthwise convolutions", "the MobileNets, EfficientNets and Xception do"
        )
    return found


def _low(values: np.ndarray, threshold: float) -> np.ndarray:
    return np.flatnonzero(values <= threshold * np.median(values))
