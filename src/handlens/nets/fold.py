"""Batch norm folded into the convolution before it, filters computed once: the same function, fewer operations."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from handlens.nets.layers import Net
from handlens.nets.vit_hybrid import StdConv2d

SQUARE_PX = 64  # of the photo that is pushed through to see which layer feeds which; enlarged where the net needs more


def fold_batch_norm(net: Net) -> Net:
    """A copy of `net` in evaluation mode, with every batch norm that directly follows a convolution folded into it.

    w' = w * gamma / sqrt(var + eps),  b' = (b - mean) * gamma / sqrt(var + eps) + beta  (Jacob et al. 2018, eq. 14).
    The batch norm's place is taken by nn.Identity, and the convolution gets a bias; names stay. Batch norms that do
    not follow a convolution, or one whose output something else reads too, are left as they are. A convolution that
    standardises its filters as it runs is replaced by one that has them so, whose weights are to be stored and rounded.
    """
    folded = copy.deepcopy(net).eval()
    for name, module in list(folded.named_modules()):
        if isinstance(module, StdConv2d):
            folded.set_submodule(name, module.plain())
    names = {module: name for name, module in folded.named_modules()}
    for conv, norm in pairs(folded):
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach()
        conv.weight = nn.Parameter(conv.weight.detach() * scale.reshape(-1, 1, 1, 1))
        conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias.detach())
        folded.set_submodule(names[norm], nn.Identity())
    return folded


@torch.no_grad()
def pairs(net: Net) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution of a network in evaluation mode with the batch norm that alone reads its output."""
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []  # kept alive, so that no two have one id
    calls: dict[nn.Module, int] = {}
    found: dict[nn.Conv2d, nn.BatchNorm2d] = {}

    def after(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            outputs.append(output)
            made_by[id(output)] = module

    def before(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(norm, nn.BatchNorm2d) and (conv := made_by.get(id(inputs[0]))) is not None:
            found[conv] = norm

    hooks = [
        module.register_forward_hook(after)
        for module in net.modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    ]
    hooks += [
        module.register_forward_pre_hook(before) for module in net.modules() if isinstance(module, nn.BatchNorm2d)
    ]
    try:
        px = max(SQUARE_PX, net.smallest_px)
        net(torch.zeros(1, 3, px, px).to(next(net.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    once = {module for module, count in calls.items() if count == 1}
    return [(conv, norm) for conv, norm in found.items() if conv in once and norm in once]
