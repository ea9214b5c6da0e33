"""Structured pruning: expansion channels of inverted residuals taken out whole, which leaves a smaller network.

After Pruning Filters for Efficient ConvNets, Li et al. 2016, arXiv 1608.08710: channels by the size of their weights.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from handlens.errors import HandlensError
from handlens.nets import Net, mobilenet_v2, mobilenet_v3
from handlens.nets.layers import round_channels

BLOCKS = (mobilenet_v2.InvertedResidual, mobilenet_v3.InvertedResidual)


@torch.no_grad()
def shrink(net: Net, share: float) -> tuple[Net, tuple[int, ...]]:
    """A copy of a MobileNetV2 or V3 without `share` of the channels that each block expands to, and what is left.

    Of each block those go that matter least to what it gives: a channel's batch norm scale, after the depthwise
    convolution, times the weights that project it. What is left is rounded to a multiple of 8. The second value is
    the argument `expanded` with which `nets.create` makes such a network. It answers worse than before until it has
    been trained on. Raises HandlensError for other networks.
    """
    small = copy.deepcopy(net)
    blocks = [module for module in small.modules() if isinstance(module, BLOCKS)]
    if not blocks:
        raise HandlensError(
            f"{type(net).__name__} has no inverted residuals to prune", "prune a run of MobileNetV2 or V3"
        )
    return small, tuple(_shrink_block(block, share) for block in blocks)


def _shrink_block(block: nn.Module, share: float) -> int:
    gates = [module for module in block.modules() if isinstance(module, mobilenet_v3.SqueezeExcite)]
    within = {module for gate in gates for module in gate.modules()}
    convs = [module for module in block.modules() if isinstance(module, nn.Conv2d) and module not in within]
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    depthwise, project = convs[-2:]
    if len(convs) < 3:  # it does not expand
        return depthwise.out_channels
    weights = project.weight * _scale(norms[-1]).view(-1, 1, 1, 1)
    importance = norms[-2].weight.abs() * weights.abs().sum((0, 2, 3))
    if (left := len(importance) * (1 - share)) < 1:
        raise HandlensError(
            f"--prune {share:g} leaves {left:.2g} of a block's {len(importance)} channels, expected at least one",
            "give a smaller --prune",
        )
    width = min(len(importance), round_channels(left))
    kept = importance.topk(width).indices.sort().values
    expand, first, second = convs[0], norms[0], norms[1]
    _keep(expand, kept, inputs=False)
    _keep(depthwise, kept, inputs=False)
    depthwise.in_channels = depthwise.groups = width
    _keep(project, kept, inputs=True)
    for norm in (first, second):
        _keep_norm(norm, kept)
    for gate in gates:
        _shrink_gate(gate, kept)
    return width


def _shrink_gate(gate: mobilenet_v3.SqueezeExcite, kept: Tensor) -> None:
    """Fewer channels to weigh, and as many between as such a gate has (`SqueezeExcite`)."""
    _keep(gate.fc1, kept, inputs=True)
    _keep(gate.fc2, kept, inputs=False)
    importance = gate.fc1.weight.abs().sum((1, 2, 3)) * gate.fc2.weight.abs().sum((0, 2, 3))
    between = importance.topk(round_channels(len(kept) / 4)).indices.sort().values
    _keep(gate.fc1, between, inputs=False)
    _keep(gate.fc2, between, inputs=True)


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_var is not None
    return norm.weight * (norm.running_var + norm.eps).rsqrt()


def _keep(conv: nn.Conv2d, channels: Tensor, inputs: bool) -> None:
    """Leave only these input or output channels of a convolution."""
    conv.weight = nn.Parameter(conv.weight[:, channels] if inputs else conv.weight[channels])
    if inputs:
        conv.in_channels = len(channels)
        return
    conv.out_channels = len(channels)
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias[channels])


def _keep_norm(norm: nn.BatchNorm2d, channels: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight, norm.bias = nn.Parameter(norm.weight[channels]), nn.Parameter(norm.bias[channels])
    norm.running_mean, norm.running_var = norm.running_mean[channels], norm.running_var[channels]
    norm.num_features = len(channels)
