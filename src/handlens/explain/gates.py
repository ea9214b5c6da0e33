"""Squeeze-and-excite: how far each channel's gate opens for photos of each class."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from handlens.errors import HandlensError
from handlens.explain import layers
from handlens.nets import Net, efficientnet, mobilenet_v3
from handlens.preprocess import Preprocess

KINDS = (mobilenet_v3.SqueezeExcite, efficientnet.SqueezeExcite)
SHUT, OPEN = 0.01, 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """What the gates of one layer do for K classes.

    mean_by_class:  (K, C), the mean gate of each channel over the photos of each class; NaN for a class without one.
    class_share:    (C,), each channel's variance between classes over its variance in all, in [0, 1]; 0 where a gate
                    never moves.
    layer_share:    the same for the layer: both variances summed over its channels first.
    chance_share:   what it would be on average if the classes were drawn by lot: (K - 1) / (N - 1).
    num_shut, num_open:  channels whose gate is below 0.01, or above 0.99, for every photo.
    """

    layer: str
    mean_by_class: np.ndarray
    class_share: np.ndarray
    layer_share: float
    chance_share: float
    num_shut: int
    num_open: int

    def best_channels(self) -> np.ndarray:
        """The channels whose gates move, from the one that tells the classes best apart."""
        order = np.argsort(-self.class_share, kind="stable")
        return order[self.class_share[order] > 0]

    def to_dict(self, classes: tuple[str, ...], most: int = 10) -> dict[str, Any]:
        """As JSON-ready values, with the `most` channels that tell the classes best apart."""
        best = self.best_channels()[:most]
        return {
            "layer": self.layer,
            "num_channels": len(self.class_share),
            "layer_share": self.layer_share,
            "chance_share": self.chance_share,
            "num_shut": self.num_shut,
            "num_open": self.num_open,
            "mean_by_class": dict(zip(classes, self.mean_by_class.tolist(), strict=True)),
            "class_share": self.class_share.tolist(),
            "best_channels": [
                {
                    "channel": int(channel),
                    "class_share": float(self.class_share[channel]),
                    "most_open_for": classes[int(np.nanargmax(self.mean_by_class[:, channel]))],
                    "least_open_for": classes[int(np.nanargmin(self.mean_by_class[:, channel]))],
                }
                for channel in best
            ],
        }


def record(net: Net, preprocess: Preprocess, photos: np.ndarray) -> dict[str, np.ndarray]:
    """The gates of every squeeze-and-excite layer, by its name, in the network's order.

    photos: uint8 RGB (B, image_px, image_px, 3) -> float32 (B, C) in [0, 1] each. Raises HandlensError for a network
    without such layers.
    """
    found: dict[str, np.ndarray] = {}

    def hook(name: str) -> Any:
        def see(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            assert isinstance(module, KINDS)
            found[name] = module.gates(given[0]).flatten(1).float().numpy()

        return see

    named = [(name, module) for name, module in net.named_modules() if isinstance(module, KINDS)]
    if not named:
        raise HandlensError(
            f"{type(net).__name__} has no squeeze-and-excite layers here", "MobileNetV3 and EfficientNet B0 to B7 do"
        )
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in named]
    try:
        with layers.in_use(net), torch.no_grad():
            net(layers.as_input(preprocess, photos))
    finally:
        for handle in handles:
            handle.remove()
    return found


def statistics(layer: str, gates: np.ndarray, labels: np.ndarray, num_classes: int) -> GateStatistics:
    """How gates (N, C) depend on the labels (N,) in range(num_classes)."""
    gates = gates.astype(np.float64)
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.zeros((num_classes, gates.shape[1]))
    np.add.at(sums, labels, gates)
    means = np.divide(sums, counts[:, None], out=np.full_like(sums, np.nan), where=counts[:, None] > 0)
    centre = gates.mean(0)
    between = np.nansum(counts[:, None] * (means - centre) ** 2, 0)
    total = ((gates - centre) ** 2).sum(0)
    moves = total > 1e-12 * len(gates)
    share = np.divide(between, total, out=np.zeros_like(total), where=moves)
    everything = total[moves].sum()
    return GateStatistics(
        layer=layer,
        mean_by_class=means,
        class_share=share,
        layer_share=float(between[moves].sum() / everything) if everything else 0.0,
        chance_share=float((np.count_nonzero(counts) - 1) / max(1, len(gates) - 1)),
        num_shut=int((gates.max(0) < SHUT).sum()),
        num_open=int((gates.min(0) > OPEN).sum()),
    )
