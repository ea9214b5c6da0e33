"""What a stack of convolutions sees: Simonyan and Zisserman 2014, arXiv 1409.1556, section 2.3; Luo et al. 2017,
arXiv 1701.04128.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from handlens.experiments.result import Result, panels

Step = tuple[int, int]  # kernel and stride of one layer
CHANNELS = 8
STACKS: dict[str, tuple[Step, ...]] = {
    "one 7x7": ((7, 1),),
    "3x3, 1 layer": ((3, 1),),
    "3x3, 2 layers": ((3, 1),) * 2,
    "3x3, 3 layers": ((3, 1),) * 3,
    "3x3, 5 layers": ((3, 1),) * 5,
    "3x3, 10 layers": ((3, 1),) * 10,
    "3x3, 20 layers": ((3, 1),) * 20,
    "3x3, 40 layers": ((3, 1),) * 40,
    "AlexNet's steps": ((11, 4), (3, 2), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 2)),
    "VGG-16's steps": tuple(step for n in (2, 2, 3, 3, 3) for step in (*((3, 1),) * n, (2, 2))),
}
SHOWN = ("one 7x7", "3x3, 3 layers", "3x3, 20 layers", "AlexNet's steps")
TWO_SIGMA = 1 - 0.9545  # a pixel counts when its gradient is above this share of the largest (Luo et al., section 3)


def receptive_field(steps: Sequence[Step]) -> int:
    """F(i) = (F(i+1) - 1) * stride + kernel from the last layer, where F is 1, back to the photo; in pixels."""
    field = 1
    for kernel, stride in reversed(steps):
        field = (field - 1) * stride + kernel
    return field


def experiment(seed: int = 0, draws: int = 20, stacks: Sequence[str] = tuple(STACKS)) -> Result:
    """Each stack's receptive field by formula, measured, and its effective part over `draws` random nets with ReLU."""
    rows: list[dict[str, Any]] = []
    maps: dict[str, Tensor] = {}
    for name in stacks:
        steps = STACKS[name]
        field = receptive_field(steps)
        # Weights of one: no gradient cancels, and every pixel that has a way to the output shows.
        reached = _gradient(_stack(steps, 1, ones=True), torch.ones(1, 1, _room(field), _room(field)).double())
        total = torch.zeros(_room(field), _room(field))
        for draw in range(draws):
            torch.manual_seed(seed * 1000 + draw)
            net = _stack(steps, CHANNELS)
            total += _gradient(net, torch.randn(1, CHANNELS, *total.shape)) / draws
        maps[name] = _around(total, field)
        effective = math.sqrt(int((total > TWO_SIGMA * total.max()).sum()))
        rows.append(
            {
                "stack": name,
                "layers": len(steps),
                "weights_per_channel_pair": sum(kernel**2 for kernel, _ in steps),
                "by_formula_px": field,
                "measured_px": _extent(reached > 0),
                "effective_px": effective,
                "effective_share": effective / field,
                "middle_third_share": _middle_share(maps[name]),
            }
        )
    of = {row["stack"]: row for row in rows}
    one, three = of["one 7x7"], of["3x3, 3 layers"]
    deep = [row for row in rows if row["stack"].startswith("3x3, ") and row["layers"] >= 3]
    growth = _slope([row["layers"] for row in deep], [row["effective_px"] for row in deep]) if len(deep) > 1 else None
    growth_words = (
        f" Over the depth n the field grows as 2n + 1, its effective part as n to the {growth:.2f}." if growth else ""
    )
    return Result(
        finding=f"Three 3x3 see {three['measured_px']} px, as one 7x7 does ({one['measured_px']}), with "
        f"{three['weights_per_channel_pair']} weights a pair of channels in place of "
        f"{one['weights_per_channel_pair']}. Formula and measurement agree on "
        f"{sum(r['by_formula_px'] == r['measured_px'] for r in rows)} of {len(rows)} stacks. Not all of it counts "
        f"alike: the middle ninth has {one['middle_third_share']:.0%} of the gradient of one 7x7, "
        f"{three['middle_third_share']:.0%} of that of three 3x3, {deep[-1]['middle_third_share']:.0%} of that of "
        f"{deep[-1]['layers']}, whose effective field is {deep[-1]['effective_px']:.0f} of {deep[-1]['by_formula_px']} "
        f"px.{growth_words}",
        tables={"Receptive field": rows},
        numbers={"effective_growth_exponent": growth},
        data={"seed": seed, "draws": draws, "channels": CHANNELS, "weights": "He's normal, untrained, ReLU between"},
        figure=_figure(rows, maps),
    )


def _stack(steps: Sequence[Step], channels: int, ones: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for kernel, stride in steps:
        convolution = nn.Conv2d(channels, channels, kernel, stride, bias=False)
        if ones:
            nn.init.ones_(convolution.weight)
        else:
            nn.init.kaiming_normal_(convolution.weight)
        layers += [convolution, nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    return net.double() if ones else net


def _room(field: int) -> int:
    """Pixels of an input that holds the whole field of its middle output, with a margin."""
    return field + 2 * (field // 4) + 8


def _gradient(net: nn.Module, images: Tensor) -> Tensor:
    """The absolute gradient of the middle output by each pixel, summed over channels: (H, W)."""
    images.requires_grad_()
    out = net(images)
    out[:, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    assert images.grad is not None
    return images.grad.abs().sum((0, 1))


def _extent(seen: Tensor) -> int:
    rows = seen.any(1).nonzero()
    return int(rows.max() - rows.min()) + 1


def _around(gradient: Tensor, field: int) -> Tensor:
    """The square of the theoretical field round the pixels that are reached."""
    rows, columns = (gradient > 0).any(1).nonzero(), (gradient > 0).any(0).nonzero()
    top, left = int(rows.min()), int(columns.min())
    return gradient[top : top + field, left : left + field]


def _middle_share(gradient: Tensor) -> float:
    """Share of the gradient that lies in the middle third of the rows and of the columns: a ninth if it were even."""
    edges = torch.linspace(0, 1, len(gradient) + 1)
    inside = (edges[1:].clamp(1 / 3, 2 / 3) - edges[:-1].clamp(1 / 3, 2 / 3)) * len(gradient)  # of each row's pixel
    return float(inside @ gradient @ inside / gradient.sum())


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the power law that fits best."""
    a, b = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a * a).sum())


def _figure(rows: list[dict[str, Any]], maps: dict[str, Tensor]) -> Any:
    shown = [name for name in SHOWN if name in maps]
    figure, axes = panels(len(shown) + 1, width=2.9, height=3.1)
    for panel, name in zip(axes, shown, strict=False):
        panel.imshow(maps[name].numpy(), cmap="magma", vmin=0)
        panel.set(title=f"{name}: {len(maps[name])} px", xticks=[], yticks=[])
    stacked = [row for row in rows if row["stack"].startswith("3x3, ")]
    for key, label in (("by_formula_px", "by formula"), ("effective_px", "effective")):
        axes[-1].loglog([row["layers"] for row in stacked], [row[key] for row in stacked], marker="o", label=label)
    axes[-1].set(xlabel="layers of 3x3", ylabel="px")
    axes[-1].legend()
    axes[-1].grid(alpha=0.3, which="both")
    return figure
